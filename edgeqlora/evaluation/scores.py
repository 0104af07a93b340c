"""Scores of recognised text: WER and CER as the board counts them, BLEU (sacrebleu), each with its text normaliser."""

from collections.abc import Callable
from typing import Any

from edgeqlora.card import measured, missing
from edgeqlora.errors import UserError
from edgeqlora_jetson.schema import Figure
from edgeqlora_jetson.wer import NORMALISERS as BOARD_NORMALISERS
from edgeqlora_jetson.wer import corpus_error_rate

NORMALISERS = (*BOARD_NORMALISERS, "whisper-english")
"""Those of the board, and `whisper-english` (OpenAI's, through transformers), which also spells numbers one way."""


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


def error_rate(references: list[str], hypotheses: list[str], unit: str, normaliser: str) -> Figure:
    """Corpus WER (unit "word") or CER ("char") in percent, with its counts; texts are normalised already, by that name."""
    counts = {**corpus_error_rate(zip(references, hypotheses, strict=True), unit), "normaliser": normaliser}
    rate = counts.pop("rate")
    if rate is None:
        return missing("no reference text left after normalisation", **counts)
    return measured(round(100 * rate, 4), "%", **counts)


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
        wer[name] = error_rate(left, right, "word", name)
        cer[name] = error_rate(left, right, "char", name)
    return {"wer": wer, "cer": cer, "bleu": bleu(references, hypotheses)}
