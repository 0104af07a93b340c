"""Scores of recognised text: WER and CER as the board counts them, BLEU (sacrebleu), each with its text normaliser."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from edgeqlora.card import measured, missing
from edgeqlora.errors import UserError
from edgeqlora.settings import check_normaliser
from edgeqlora_jetson.schema import Figure
from edgeqlora_jetson.text import NORMALISERS, UNSPACED_LANGUAGES, language_code, script_of, why_no_words
from edgeqlora_jetson.wer import error_figures

CHOICES = ("wer", "cer", "loss")
"""Figures of dev data that a model can be chosen by, the lowest first."""


def normaliser(name: str, spelling: dict[str, str] | None = None, language: str | None = None) -> Callable[[str], str]:
    """The normaliser of that name.

    spelling: table of British to American spellings for `whisper-english`, where the model folder (or bundle) has one.
    language: code of the language that the texts are in, for the board's own. UserError for a name that is not known.
    """
    check_normaliser(name)
    if name in NORMALISERS:
        own = NORMALISERS[name]
        return lambda text: own(text, language)
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    whole: Callable[[str], str] = (
        BasicTextNormalizer() if name == "whisper-basic" else EnglishTextNormalizer(spelling or {})
    )
    return whole


def choose_by(asked: str, references: Sequence[str], language: str | None) -> str:
    """wer, cer or loss: the one asked for; `auto` is wer, or cer for texts written without spaces between words.

    UserError for wer there: it would be the share of wrong sentences.
    """
    if asked not in ("auto", *CHOICES):
        raise UserError(f"choose_by={asked!r}: allowed are auto, {', '.join(CHOICES)}")
    reason = why_no_words(references, language)
    if asked == "wer" and reason:
        raise UserError(f"choose_by='wer': {reason}; allowed here are auto, cer and loss")
    return ("cer" if reason else "wer") if asked == "auto" else asked


def rank(chosen_by: str, figures: dict[str, Any]) -> tuple[float, float]:
    """What candidates are ordered by, lowest first: the figure chosen by, and the loss where it ties.

    figures: "wer" and "cer" in percent, "loss". A figure that is not available (a diverged model has no finite loss)
    counts as the worst.
    """
    first, loss = (math.inf if figures[name] is None else figures[name] for name in (chosen_by, "loss"))
    return first, loss


def format_figures(figures: dict[str, Any], chosen_by: str) -> str:
    """The error rate that is read, and the loss, in a few words; "--" for one that is null."""
    readable = "cer" if figures["wer"]["value"] is None else "wer"
    metric = readable if chosen_by == "loss" else chosen_by
    rate, loss = figures[metric]["value"], figures["loss"]["value"]
    shown = "--" if rate is None else f"{rate:.2f} %"
    return f"{metric.upper()} {shown}, loss {'--' if loss is None else f'{loss:.4f}'}"


def score_texts(
    references: list[str],
    hypotheses: list[str],
    names: list[str],
    spelling: dict[str, str] | None = None,
    language: str | None = None,
) -> dict[str, Any]:
    """WER and CER under each named normaliser, and BLEU: {"wer": {name: figure}, "cer": {...}, "bleu": figure, "leading"}.

    language: code of the language that the texts are in; None: not known. "leading" is the error rate to read: cer for
    texts written without spaces between words, whose WER is null with that reason.
    """
    no_words = why_no_words(references, language)
    scores: dict[str, Any] = {"leading": "cer" if no_words else "wer", "wer": {}, "cer": {}}
    for name in names:
        apply = normaliser(name, spelling, language)
        pairs = [(apply(r), apply(h)) for r, h in zip(references, hypotheses, strict=True)]
        for metric, figure in error_figures(pairs, no_words).items():
            scores[metric][name] = {**figure, "normaliser": name}
    return {**scores, "bleu": bleu(references, hypotheses, language)}


def bleu(references: list[str], hypotheses: list[str], language: str | None = None) -> Figure:
    """Corpus BLEU on the raw texts, with sacrebleu's signature (which names tokenisation and smoothing).

    Tokenised as the language is written: zh for Chinese, MeCab for Japanese and Korean where it is installed, single
    characters for them where it is not, and for other languages without spaces; else 13a.
    """
    import sacrebleu

    written = _bleu_language(references, language)
    wanted = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}.get(written, "char" if written else "13a")
    try:
        metric = sacrebleu.metrics.BLEU(tokenize=wanted)
    except (RuntimeError, ImportError):
        metric = sacrebleu.metrics.BLEU(tokenize="char")
    if not any(len(metric.tokenizer(reference).split()) >= 4 for reference in references):
        return missing("no reference has 4 words, and BLEU counts runs of up to 4")
    score = metric.corpus_score(hypotheses, [references])
    return measured(round(score.score, 4), "BLEU (0 to 100)", signature=str(metric.get_signature()))


_BLEU_LANGUAGES = {
    "zh": "zh yue cmn wuu zho chi chinese mandarin cantonese",
    "ja": "ja jpn japanese",
    "ko": "ko kor korean",
}


def _bleu_language(references: list[str], language: str | None) -> str:
    """zh, ja, ko, another language without spaces, or "" for those with spaces; by the letters where it is not known."""
    code = language_code(language)
    if code is not None:
        own = next((key for key, names in _BLEU_LANGUAGES.items() if code in names.split()), "")
        return own or (code if code in UNSPACED_LANGUAGES else "")
    letters = Counter(script_of(char) for text in references for char in text)
    if letters["HANGUL"] > letters["LATIN"]:
        return "ko"
    if why_no_words(references) is None:
        return ""
    if 10 * (letters["HIRAGANA"] + letters["KATAKANA"]) > letters["CJK"]:
        return "ja"
    return "zh" if letters["CJK"] else "th"
