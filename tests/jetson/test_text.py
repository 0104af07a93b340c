"""Texts: what a normaliser makes equal and what it keeps apart, languages without spaces, pieces of a recording."""

import unicodedata

import pytest

from edgeqlora_jetson.text import NORMALISERS, join_pieces, normalise_unicode, why_no_words, written_language


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  Hello,   World! ", "hello world"),
        ("Don’t 'quote' o'clock dogs'", "don't quote o'clock dogs"),
        ("twenty-one 3.5", "twenty one 3 5"),
        ("ﬁne Ｆｕｌｌ ｶﾞ", "fine full ガ"),
        ("Ärger naïve", "ärger naïve"),
        ("हिन्दी में।", "हिन्दी में"),
        ("…", ""),
        ("$5 €", "5"),
        # What is not seen splits no word.
        (
            "\u0dc1\u0dca\u200d\u0dbb\u0dd3 \u0dbd\u0d82\u0d9a\u0dcf",
            "\u0dc1\u0dca\u0dbb\u0dd3 \u0dbd\u0d82\u0d9a\u0dcf",
        ),
        ("\u0645\u06cc\u200c\u0631\u0648\u0645", "\u0645\u06cc\u0631\u0648\u0645"),
        ("co\u00adoperate \ufeffnow kit\u200bchen \u200eli\u2060ght\u200f", "cooperate now kitchen light"),
        ("don\u200d\u2019t", "don't"),
        ("\u0643\u062a\u0640\u0640\u0627\u0628", "\u0643\u062a\u0627\u0628"),
        # Case is folded, not lowered.
        ("\u0130stanbul i\u0307i", "istanbul ii"),
        ("STRASSE stra\u00dfe \u1e9e", "strasse strasse ss"),
        ("\u039f\u03a3 \u03bf\u03c2", "\u03bf\u03c3 \u03bf\u03c3"),
        ("\u1c90\u1c91", "\u10d0\u10d1"),
        # Apostrophes between letters are one, whichever sign; elsewhere they are punctuation.
        ("don\u00b4t don`t don\u2032t don\u02b9t don\u05f3t don\u02bbt", " ".join(["don't"] * 6)),
        ("say \u00b4hello\u00b4 \u02bbokina", "say hello okina"),
        ("'' a''b ' ''' \u0149", "a b n"),
        # Marks belong to letters.
        ("I love it \u2764\ufe0f", "i love it"),
        ("press 1\ufe0f\u20e3 now", "press 1 now"),
        ("a \u00a8 b \u02d8 \u037a \u309b \u0385", "a b"),
        ("1\u0301 .\u0301x", "1 x"),
        ("e\u0301", "\u00e9"),
        # Numbers that are one sign stand apart from what is beside them.
        ("10\u00b2 m\u00b2 \u33a1", "10 2 m 2 m 2"),
        ("1\u00bd \u00be", "1 1 2 3 4"),
        ("\u2460\u2461 7\u2082 H\u2082O", "1 2 7 2 h2o"),
        ("12\u33e0 Foo\u2122", "12 1日 foo"),
        ("\U0001d7cf\U0001d7d0 \uff11\uff12", "12 12"),
    ],
)
def test_board_normaliser(text, normal):
    for form in ("NFC", "NFD"):
        assert normalise_unicode(unicodedata.normalize(form, text)) == unicodedata.normalize("NFC", normal)
    assert NORMALISERS["basic-unicode"](normal, None) == unicodedata.normalize("NFC", normal)


@pytest.mark.parametrize(
    ("language", "text", "normal"),
    [
        ("tr", "I\u015eIK \u0130stanbul I\u0307zmir", "\u0131\u015f\u0131k istanbul izmir"),
        ("az-AZ", "QIZIL", "q\u0131z\u0131l"),
        ("en", "I\u015eIK", "i\u015fik"),
        (None, "I\u015eIK", "i\u015fik"),
    ],
)
def test_the_dotless_i_of_turkish(language, text, normal):
    assert normalise_unicode(text, language) == normal
    assert normalise_unicode(normal, language) == normal


def test_none_normaliser_changes_nothing():
    assert NORMALISERS["none"](" A, b ", None) == " A, b "


def test_any_text_has_one_normal_form_of_words_only():
    hypothesis = pytest.importorskip("hypothesis")
    strategies = pytest.importorskip("hypothesis.strategies")
    odd = "iI\u0307\u0301\u0345\u0130\u0149'\u2019\u00b4\u200d\u00ad\ufe0f\u20e3\u0640\u00b2\u00bd\u20820Aa\u00df \u1e9e\u1100\u1161\uff9e\uff76\u0958\ufe77"

    @hypothesis.settings(max_examples=400)
    @hypothesis.given(
        strategies.text() | strategies.text(odd) | strategies.text(strategies.characters(min_codepoint=0)),
        strategies.sampled_from([None, "tr"]),
    )
    def check(text, language):
        once = normalise_unicode(text, language)
        assert normalise_unicode(once, language) == once
        assert once == " ".join(once.split())
        assert once == unicodedata.normalize("NFC", once)
        assert not any(unicodedata.category(char) in ("Cf", "Cc", "Me") for char in once)
        assert normalise_unicode(unicodedata.normalize("NFD", text), language) == once
        words = once.split()
        assert not any(word.startswith("'") or word.endswith("'") for word in words)
        assert not any(unicodedata.category(word[0])[0] == "M" for word in words)

    check()


@pytest.mark.parametrize(
    ("texts", "language", "expected"),
    [
        (["今天天气很好", "打开灯"], None, "these texts are written without spaces"),
        (["我用python写代码"], None, "these texts are written without spaces"),
        (["今天天气很好"], "de", "these texts are written without spaces"),  # of the wrong language, or told wrongly
        (["สวัสดีครับ"], None, "these texts"),
        ([""], "zh-TW", "zh is written without spaces"),
        (["ni hao"], "yue", "yue is written without spaces"),
        (["turn on the light", "go to 東京 now"], "en", None),
        (["안녕 하세요"], "ko", None),
        (["hello there"], None, None),
        ([], None, None),
    ],
)
def test_texts_without_words(texts, language, expected):
    reason = why_no_words(texts, language)
    assert reason is None if expected is None else reason.startswith(expected)
    assert reason is None or reason.endswith("read CER")


def test_a_translation_is_written_in_english():
    assert written_language("zh", "translate") == "en"
    assert written_language("zh", "transcribe") == written_language("zh", None) == "zh"


@pytest.mark.parametrize(
    ("pieces", "language", "joined"),
    [
        (["turn on", "", "the light"], "en", "turn on the light"),
        (["今天。", "天气"], "zh", "今天。天气"),
        (["今天", "天气"], None, "今天天气"),
        (["สวัสดี", "ครับ"], "th", "สวัสดีครับ"),
        (["12", "34"], "ja", "1234"),
        (["12", "34"], None, "12 34"),
        (["use hello", "world"], "zh", "use hello world"),
        (["用 python", "写"], "zh", "用 python写"),
        (["안녕", "하세요"], "ko", "안녕 하세요"),
        (["東京", "東京"], "en", "東京 東京"),
        (["", "a"], "en", "a"),
        ([], None, ""),
    ],
)
def test_pieces_are_joined_as_the_language_is_written(pieces, language, joined):
    assert join_pieces(pieces, language) == joined
