"""Error rates: hand-computed, and the same as jiwer's."""

import random

import pytest

from edgeqlora_jetson.wer import align_counts, corpus_error_rate, error_figures


@pytest.mark.parametrize(
    ("reference", "hypothesis", "counts"),
    [
        ("a b c", "a b c", (0, 0, 0, 3)),
        ("a b c", "a x c", (1, 0, 0, 3)),
        ("a b c", "a c", (0, 1, 0, 3)),
        ("a b c", "a b x c", (0, 0, 1, 3)),
        ("a b c", "", (0, 3, 0, 3)),
        ("", "a b", (0, 0, 2, 0)),
        ("", "", (0, 0, 0, 0)),
        ("the cat sat on the mat", "cat sat in the hat now", (2, 1, 1, 6)),
    ],
)
def test_counts_by_hand(reference, hypothesis, counts):
    assert align_counts(reference.split(), hypothesis.split()) == counts


def test_corpus_rate_weighs_by_reference_length():
    # 1 error of 1 word and 0 of 9: 10 %, not the mean of 100 % and 0 %.
    result = corpus_error_rate([("one", "two"), ("a b c d e f g h i", "a b c d e f g h i")])
    assert result == {"rate": 0.1, "substitutions": 1, "deletions": 0, "insertions": 0, "n_reference": 10}
    assert corpus_error_rate([("ab c", "ab  d")], "char")["rate"] == 0.25
    assert corpus_error_rate([("", "x")])["rate"] is None
    assert corpus_error_rate([])["n_reference"] == 0
    with pytest.raises(ValueError, match="unit='words'"):
        corpus_error_rate([], "words")


def test_words_are_not_counted_where_there_are_none():
    figures = error_figures([("今天 天气", "今天天汽")], "zh is written without spaces")
    assert figures["wer"] == {"value": None, "unit": "%", "reason": "zh is written without spaces"}
    assert (figures["cer"]["value"], figures["cer"]["counted"]) == (25.0, "characters without spaces")
    plain = error_figures([("a b", "ab")], None)
    assert (plain["wer"]["counted"], plain["cer"]["n_reference"], plain["cer"]["deletions"]) == ("words", 3, 1)


def test_counts_equal_jiwer():
    """Substitutions, deletions and insertions each, not only their sum: ties are broken alike."""
    jiwer = pytest.importorskip("jiwer")
    rng = random.Random(0)
    for _ in range(1500):
        words, length = rng.choice(["ab", "abc", "abcde", "abcdefghijklmnopqrst"]), rng.choice([1, 3, 8, 20, 70])
        reference = [rng.choice(words) for _ in range(rng.randint(1, length))]
        hypothesis = [rng.choice(words) for _ in range(rng.randint(0, length))]
        theirs = jiwer.process_words(" ".join(reference), " ".join(hypothesis))
        assert align_counts(reference, hypothesis)[:3] == (theirs.substitutions, theirs.deletions, theirs.insertions)


def test_corpus_rates_equal_jiwer():
    jiwer = pytest.importorskip("jiwer")
    references = ["seven three one", "turn on the light", "go"]
    hypotheses = ["seven tree", "turn off the the light", "go go"]
    pairs = list(zip(references, hypotheses))
    assert corpus_error_rate(pairs)["rate"] == pytest.approx(jiwer.wer(references, hypotheses))
    assert corpus_error_rate(pairs, "char")["rate"] == pytest.approx(jiwer.cer(references, hypotheses))


def test_distance_is_symmetric_and_bounded():
    hypothesis = pytest.importorskip("hypothesis")
    strategies = pytest.importorskip("hypothesis.strategies")
    words = strategies.lists(strategies.sampled_from("abcd"), max_size=12)

    @hypothesis.given(words, words)
    def check(a, b):
        s, d, i, n = align_counts(a, b)
        assert min(s, d, i) >= 0
        assert s + d <= n == len(a)
        assert len(a) - d + i == len(b)
        assert sum(align_counts(b, a)[:3]) == s + d + i

    check()
