"""WER, CER and BLEU by hand."""

import pytest

from edgeqlora.errors import UserError
from edgeqlora.evaluation.scores import NORMALISERS, bleu, error_rate, normaliser, score_texts


def test_word_errors_by_hand():
    # "the cat sat" -> "the cat": 1 deletion; "a b" -> "a c d": 1 substitution, 1 insertion; 5 reference words.
    figure = error_rate(["the cat sat", "a b"], ["the cat", "a c d"], "word", "none")
    assert figure == {
        "value": 60.0,
        "unit": "%",
        "substitutions": 1,
        "deletions": 1,
        "insertions": 1,
        "n_reference": 5,
        "normaliser": "none",
    }


def test_words_said_in_silence_are_insertions():
    figure = error_rate(["", "yes"], ["thank you", "yes"], "word", "none")
    assert (figure["insertions"], figure["n_reference"], figure["value"]) == (2, 1, 200.0)


def test_no_reference_gives_null_with_a_reason():
    figure = score_texts([""], ["hm"], ["basic"])["wer"]["basic"]
    assert figure["value"] is None
    assert "no reference text" in figure["reason"]


def test_characters_by_hand():
    figure = error_rate(["abc"], ["abd"], "char", "none")
    assert (figure["substitutions"], figure["n_reference"]) == (1, 3)


def test_bleu_has_a_signature_and_refuses_what_is_too_short():
    perfect = bleu(["turn the kitchen light on"], ["turn the kitchen light on"])
    assert perfect["value"] == pytest.approx(100.0)
    assert "version:" in perfect["signature"]
    assert bleu(["stop"], ["stop"])["value"] is None


def test_numbers_are_one_spelling_for_whisper_english():
    apply = normaliser("whisper-english")
    assert apply("Seven!") == apply("7")
    assert normaliser("basic")("Seven!") == "seven"


def test_every_normaliser_that_is_allowed_is_there_and_no_other():
    with pytest.raises(UserError) as caught:
        normaliser("best")
    assert str(caught.value) == f"normaliser='best': allowed are {', '.join(NORMALISERS)}"
    assert {normaliser(name)("Stop").lower() for name in NORMALISERS} == {"stop"}
