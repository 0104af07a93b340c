"""WER, CER and BLEU by hand."""

import importlib.util

import pytest

from edgeqlora.errors import UserError
from edgeqlora.evaluation.scores import NORMALISERS, bleu, choose_by, normaliser, rank, score_texts


def test_word_errors_by_hand():
    # "the cat sat" -> "the cat": 1 deletion; "a b" -> "a c d": 1 substitution, 1 insertion; 5 reference words.
    figure = score_texts(["the cat sat", "a b"], ["the cat", "a c d"], ["none"])["wer"]["none"]
    assert figure == {
        "value": 60.0,
        "unit": "%",
        "substitutions": 1,
        "deletions": 1,
        "insertions": 1,
        "n_reference": 5,
        "counted": "words",
        "normaliser": "none",
    }


def test_words_said_in_silence_are_insertions():
    figure = score_texts(["", "yes"], ["thank you", "yes"], ["none"])["wer"]["none"]
    assert (figure["insertions"], figure["n_reference"], figure["value"]) == (2, 1, 200.0)


def test_no_reference_gives_null_with_a_reason():
    figure = score_texts([""], ["hm"], ["basic-unicode"])["wer"]["basic-unicode"]
    assert figure["value"] is None
    assert "no reference text" in figure["reason"]


@pytest.mark.parametrize(
    ("said", "got", "language", "n_words"),
    [
        ("\u0130stanbul", "istanbul", None, 1),
        ("I\u015eIK", "\u0131\u015f\u0131k", "tr", 1),
        ("STRASSE", "stra\u00dfe", "de", 1),
        ("don\u00b4t stop", "don't stop", "en", 2),
        ("don`t stop", "don't stop", "en", 2),
        ("don\u2032t stop", "don't stop", "en", 2),
        ("\u0643\u062a\u0640\u0640\u0627\u0628", "\u0643\u062a\u0627\u0628", "ar", 1),
        (
            "\u0dc1\u0dca\u200d\u0dbb\u0dd3 \u0dbd\u0d82\u0d9a\u0dcf",
            "\u0dc1\u0dca\u0dbb\u0dd3 \u0dbd\u0d82\u0d9a\u0dcf",
            "si",
            2,
        ),
        ("\u0645\u06cc\u200c\u0631\u0648\u0645", "\u0645\u06cc\u0631\u0648\u0645", "fa", 1),
        ("co\u00adoperate now", "cooperate now", "en", 2),
        ("kit\u200bchen light", "kitchen light", None, 2),
        ("I love it \u2764\ufe0f", "I love it", "en", 3),
        ("press 1\ufe0f\u20e3 now", "press 1 now", "en", 3),
        ("say \u00b4hello\u00b4", "say hello", "en", 2),
        ("a \u00a8 b", "a b", "en", 2),
        ("caf\u00e9 No\u00ebl", "cafe\u0301 Noe\u0308l", "fr", 2),
    ],
)
def test_what_looks_the_same_is_no_error(said, got, language, n_words):
    for reference, hypothesis in ((said, got), (got, said)):
        figure = score_texts([reference], [hypothesis], ["basic-unicode"], language=language)["wer"]["basic-unicode"]
        assert (figure["value"], figure["n_reference"]) == (0.0, n_words)


def test_ten_squared_is_not_a_hundred_and_two():
    assert score_texts(["10\u00b2"], ["102"], ["basic-unicode"])["wer"]["basic-unicode"]["value"] > 0


@pytest.mark.parametrize(
    ("said", "got", "language", "cer"),
    [
        (
            "\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff0c\u53bb\u516c\u56ed",
            "\u4eca\u5929\u5929\u6c14\u5f88\u597d\u53bb\u516c\u53f8",
            "zh",
            100 / 9,
        ),
        ("\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e34", None, 100 / 6),
        ("\u1781\u17d2\u1789\u17bb\u17c6\u200b\u1791\u17c5", "\u1781\u17d2\u1789\u17bb\u17c6\u1791\u17c5", "km", 0.0),
    ],
)
def test_texts_without_spaces_are_scored_by_characters(said, got, language, cer):
    scores = score_texts([said], [got], ["basic-unicode"], language=language)
    assert scores["leading"] == "cer"
    assert scores["wer"]["basic-unicode"]["value"] is None
    assert "written without spaces between words: read CER" in scores["wer"]["basic-unicode"]["reason"]
    assert scores["cer"]["basic-unicode"]["value"] == pytest.approx(cer)
    assert scores["cer"]["basic-unicode"]["counted"] == "characters without spaces"


@pytest.mark.parametrize(
    ("asked", "texts", "language", "expected"),
    [
        ("auto", ["hello you"], "en", "wer"),
        ("auto", ["\u4eca\u5929"], None, "cer"),
        ("auto", [], None, "wer"),
        ("loss", ["\u4eca\u5929"], "zh", "loss"),
        ("cer", ["hello"], "en", "cer"),
    ],
)
def test_what_is_chosen_by(asked, texts, language, expected):
    assert choose_by(asked, texts, language) == expected


def test_a_sentence_is_never_chosen_by_as_a_word():
    with pytest.raises(
        UserError, match=r"choose_by='wer': ja is written without spaces.*allowed here are auto, cer and loss"
    ):
        choose_by("wer", ["hello"], "ja")


def test_a_figure_that_is_not_there_is_the_worst():
    assert rank("wer", {"wer": None, "cer": 1.0, "loss": 0.1}) > rank("wer", {"wer": 99.0, "cer": 9.0, "loss": None})
    assert rank("cer", {"wer": None, "cer": 1.0, "loss": 0.1}) < rank("cer", {"wer": None, "cer": 1.0, "loss": 0.2})
    assert rank("loss", {"wer": 0.0, "cer": 0.0, "loss": 0.2}) > rank("loss", {"wer": 9.0, "cer": 9.0, "loss": 0.1})


@pytest.mark.parametrize(
    ("text", "language", "tokeniser"),
    [
        ("turn the kitchen light on", None, "13a"),
        ("turn the kitchen light on", "de", "13a"),
        ("\u4eca\u5929\u5929\u6c14\u5f88\u597d", "zh", "zh"),
        ("\u4eca\u5929\u5929\u6c14\u5f88\u597d", "yue-HK", "zh"),
        ("\u4eca\u5929\u5929\u6c14\u5f88\u597d", None, "zh"),
        ("\u4eca\u65e5\u306f\u3044\u3044\u5929\u6c17", None, "ja-mecab"),
        ("\uc548\ub155 \ud558\uc138\uc694", "ko", "ko-mecab"),
        ("\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "th", "char"),
    ],
)
def test_bleu_is_tokenised_as_the_language_is_written(text, language, tokeniser):
    perfect = bleu([text], [text], language)
    assert perfect["value"] == pytest.approx(100.0)
    assert "version:" in perfect["signature"]
    if "mecab" in tokeniser and importlib.util.find_spec("MeCab" if tokeniser == "ja-mecab" else "mecab_ko") is None:
        tokeniser = "char"
    assert f"|tok:{tokeniser}" in perfect["signature"]


def test_bleu_refuses_what_is_too_short():
    assert bleu(["stop"], ["stop"])["value"] is None


def test_openais_normalisers_keep_their_names():
    apply = normaliser("whisper-english")
    assert apply("Seven!") == apply("7")
    assert normaliser("basic-unicode")("Seven!") == "seven"
    # OpenAI's own: what is in brackets goes, and so do marks that are no letters' own.
    assert normaliser("whisper-basic")("[noise] Seven!").strip() == "seven"


@pytest.mark.parametrize("name", ["best", "basic"])
def test_unknown_normaliser(name):
    with pytest.raises(UserError, match=r"basic-unicode.*whisper-basic"):
        normaliser(name)
    assert name not in NORMALISERS


def test_every_normaliser_that_is_allowed_is_there():
    assert {normaliser(name)("Stop").lower() for name in NORMALISERS} == {"stop"}
