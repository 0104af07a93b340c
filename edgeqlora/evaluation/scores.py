"""Scores of recognised text: WER and CER (jiwer), BLEU (sacrebleu), each with the name of its text normaliser."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgeqlora.card import measured, missing
from edgeqlora.errors import UserError
from edgeqlora_jetson.schema import Figure
from edgeqlora_jetson.wer import NORMALISERS as BOARD_NORMALISERS

NORMALISERS = (*BOARD_NORMALISERS, "whisper-english")
"""Those of the board, and `whisper-english` (OpenAI's, through transformers), which also spells numbers one way."""


@dataclass(frozen=True)
class Score:
    """Corpus-level counts of one error rate."""

    rate: float | None
    """Errors per reference item, in 0..; None when there is no reference item."""
    substitutions: int
    deletions: int
    insertions: int
    n_reference: int

    def to_json(self, normaliser: str) -> Figure:
        """Figure for a card or report, in percent, with counts and normaliser."""
        counts = {
            "substitutions": self.substitutions,
            "deletions": self.deletions,
            "insertions": self.insertions,
            "n_reference": self.n_reference,
            "normaliser": normaliser,
        }
        if self.rate is None:
            return missing("no reference text left after normalisation", **counts)
        return measured(round(100 * self.rate, 4), "%", **counts)


def normaliser(name: str, spelling: dict[str, str] | None = None) -> Callable[[str], str]:
    """The normaliser of that name.

    spelling: table of British to American spellings for `whisper-english`, where the model folder (or bundle) has one.
    """
    if name in BOARD_NORMALISERS:
        return BOARD_NORMALISERS[name]
    if name == "whisper-english":
        from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

        return EnglishTextNormalizer(spelling or {})
    raise UserError(f"normaliser={name!r}: allowed are {', '.join(NORMALISERS)}")


def word_errors(references: list[str], hypotheses: list[str]) -> Score:
    """Corpus WER with substitutions, deletions, insertions; texts are normalised already."""
    import jiwer

    return _errors(references, hypotheses, jiwer.process_words, lambda text: len(text.split()))


def character_errors(references: list[str], hypotheses: list[str]) -> Score:
    """Corpus CER (spaces count as characters)."""
    import jiwer

    return _errors(references, hypotheses, jiwer.process_characters, lambda text: len(text.strip()))


def _errors(
    references: list[str],
    hypotheses: list[str],
    process: Callable[[list[str], list[str]], Any],
    count: Callable[[str], int],
) -> Score:
    """Counts by jiwer, which refuses empty references: what is said where the reference has nothing is insertions."""
    texts = list(zip(references, hypotheses, strict=True))
    pairs = [(r, h) for r, h in texts if r.strip()]
    extra = sum(count(h) for r, h in texts if not r.strip())
    if not pairs:
        return Score(None, 0, 0, extra, 0)
    out = process([r for r, _ in pairs], [h for _, h in pairs])
    n = out.hits + out.substitutions + out.deletions
    errors = out.substitutions + out.deletions + out.insertions + extra
    return Score(errors / n, out.substitutions, out.deletions, out.insertions + extra, n)


def bleu(references: list[str], hypotheses: list[str]) -> Figure:
    """Corpus BLEU on the raw texts, with sacrebleu's signature (which names tokenisation and smoothing)."""
    import sacrebleu

    if not any(len(r.split()) >= 4 for r in references):
        return missing("no reference has 4 words, and BLEU counts runs of up to 4")
    metric = sacrebleu.metrics.BLEU()
    score = metric.corpus_score(hypotheses, [references])
    return measured(round(score.score, 4), "BLEU (0 to 100)", signature=str(metric.get_signature()))


def score_texts(
    references: list[str], hypotheses: list[str], names: list[str], spelling: dict[str, str] | None = None
) -> dict[str, Any]:
    """WER and CER under each named normaliser, and BLEU: {"wer": {name: figure}, "cer": {...}, "bleu": figure}."""
    wer, cer = {}, {}
    for name in names:
        apply = normaliser(name, spelling)
        left, right = [apply(r) for r in references], [apply(h) for h in hypotheses]
        wer[name] = word_errors(left, right).to_json(name)
        cer[name] = character_errors(left, right).to_json(name)
    return {"wer": wer, "cer": cer, "bleu": bleu(references, hypotheses)}
