"""WER, CER and BLEU by hand."""

import pytest

from edgeqlora.errors import UserError
from edgeqlora.evaluation.scores import NORMALISERS, bleu, character_errors, normaliser, score_texts, word_errors
from edgeqlora_jetson.wer import corpus_error_rate


def test_word_errors_by_hand():
    # "the cat sat" -> "the cat": 1 deletion; "a b" -> "a c d": 1 substitution, 1 insertion; 5 reference words.
    score = word_errors(["the cat sat", "a b"], ["the cat", "a c d"])
    assert (score.substitutions, score.deletions, score.insertions, score.n_reference) == (1, 1, 1, 5)
    assert score.rate == pytest.approx(3 / 5)


def test_words_said_in_silence_are_insertions():
    score = word_errors(["", "yes"], ["thank you", "yes"])
    assert (score.insertions, score.n_reference, score.rate) == (2, 1, 2.0)


def test_no_reference_gives_null_with_a_reason():
    figure = score_texts([""], ["hm"], ["basic"])["wer"]["basic"]
    assert figure["value"] is None
    assert "no reference text" in figure["reason"]


def test_characters_by_hand():
    score = character_errors(["abc"], ["abd"])
    assert (score.substitutions, score.n_reference) == (1, 3)


def test_the_board_counts_the_same():
    pairs = [("turn the light on", "turn light off"), ("stop", "stop now"), ("", "x"), ("one two", "")]
    ours = word_errors([r for r, _ in pairs], [h for _, h in pairs])
    board = corpus_error_rate(pairs, unit="word")
    assert board["rate"] == pytest.approx(ours.rate)
    assert [board[k] for k in ("substitutions", "deletions", "insertions")] == [
        ours.substitutions,
        ours.deletions,
        ours.insertions,
    ]


def test_bleu_has_a_signature_and_refuses_what_is_too_short():
    perfect = bleu(["turn the kitchen light on"], ["turn the kitchen light on"])
    assert perfect["value"] == pytest.approx(100.0)
    assert "version:" in perfect["signature"]
    assert bleu(["stop"], ["stop"])["value"] is None


def test_numbers_are_one_spelling_for_whisper_english():
    apply = normaliser("whisper-english")
    assert apply("Seven!") == apply("7")
    assert normaliser("basic")("Seven!") == "seven"


def test_unknown_normaliser():
    with pytest.raises(UserError, match="allowed are"):
        normaliser("best")
    assert "basic" in NORMALISERS
