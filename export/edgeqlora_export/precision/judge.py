"""What a mix costs: error rate beside fp32 on the same clips, texts that collapse, and how far its choices are from fp32's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from edgeqlora_jetson.audio.features import FEATURES
from edgeqlora_jetson.decoders import CtcDecoder, open_decoder
from edgeqlora_jetson.text import NORMALISERS, why_no_words, written_language
from edgeqlora_jetson.transcribe import Transcriber
from edgeqlora_jetson.wer import align_counts, items

Clip = tuple[np.ndarray, str]

N_DRAWS = 2000
COLLAPSED = 0.5
"""Share of its words, and two at least, by which a clip's errors may grow before it counts as collapsed."""


class Heard(NamedTuple):
    """What a bundle made of clips: errors, words (characters in languages without spaces), texts, and pieces that repeat themselves or
    find no end, one for each clip."""

    errors: np.ndarray
    words: np.ndarray
    texts: list[str]
    incomplete: np.ndarray
    ms_per_clip: float

    @property
    def percent(self) -> float:
        return float(100 * self.errors.sum() / max(1, self.words.sum()))


def hear(transcriber: Transcriber, clips: Sequence[Clip]) -> Heard:
    """Transcribe the clips one by one."""
    decoder, normalise = transcriber.bundle.manifest["decoder"], NORMALISERS["basic-unicode"]
    language = written_language(decoder.get("language"), decoder.get("task"))
    unit = "letter" if why_no_words([reference for _, reference in clips], language) else "word"
    found = [transcriber.transcribe(audio) for audio, _ in clips]
    counts = [
        align_counts(items(normalise(said, language), unit), items(normalise(one.text, language), unit))
        for (_, said), one in zip(clips, found, strict=True)
    ]
    return Heard(
        errors=np.array([sum(count[:3]) for count in counts]),
        words=np.array([count[3] for count in counts]),
        texts=[one.text for one in found],
        incomplete=np.array([one.n_incomplete for one in found]),
        ms_per_clip=sum(one.total_ms for one in found) / len(found),
    )


def nothing_heard(plain: Heard) -> Heard:
    """Of a mix that answers NaN or infinity: every word of every clip is wrong."""
    return plain._replace(errors=np.maximum(plain.words, plain.errors + 3), texts=[""] * len(plain.texts))


def cost(plain: Heard, mix: Heard, allowed: float | None) -> dict[str, Any]:
    """Error rate of a mix and its increase over fp32 in points, with the 95 % interval of a paired bootstrap over clips; and
    `refused`: why it may not ship, or None. allowed: increase in points, None: any."""
    draw = np.random.default_rng(0).integers(0, len(plain.words), (N_DRAWS, len(plain.words)))
    grown = mix.errors - plain.errors
    rates = 100 * grown[draw].sum(axis=1) / np.maximum(1, plain.words[draw].sum(axis=1))
    low, high = np.quantile(rates, [0.025, 0.975])
    increase = mix.percent - plain.percent
    collapsed = int((grown > np.maximum(2, COLLAPSED * plain.words)).sum())
    silent = sum(bool(a) and not b for a, b in zip(plain.texts, mix.texts, strict=True))
    endless = max(0, int(mix.incomplete.sum() - plain.incomplete.sum()))
    refused = None
    if collapsed or silent or endless:
        refused = f"{collapsed} clips collapse, {silent} have no text any more, {endless} more repeat themselves or find no end"
    elif allowed is not None and increase > allowed + 1e-9:
        refused = f"the error rate grows by {increase:.2f} points, allowed are {allowed:g}"
    return {
        "wer": round(mix.percent, 3),
        "increase": round(increase, 3),
        "low": round(float(low), 3),
        "high": round(float(high), 3),
        "n_collapsed": collapsed,
        "n_silent": silent,
        "n_endless": endless,
        "ms_per_clip": round(mix.ms_per_clip, 2),
        "refused": refused,
    }


def choices(transcriber: Transcriber, clips: Sequence[np.ndarray], texts: Sequence[list[int]]) -> list[Any]:
    """Logits of each step of each clip, while these tokens are said: pairs of logits (n,) and their ids, or None for all."""
    bundle = transcriber.bundle
    decoder = open_decoder(bundle, transcriber.runtime)
    features = FEATURES[bundle.manifest["features"]["kind"]](bundle)
    found: list[Any] = []
    for audio, tokens in zip(clips, texts, strict=True):
        window_s = transcriber.choose_window(len(audio))
        heard = features([audio], transcriber.heard_s(len(audio), window_s))
        if isinstance(decoder, CtcDecoder):
            found += [(row, None) for row in decoder.logits(heard, [len(audio)])[0]]
            continue
        state = decoder.start(decoder.encode(heard))
        for said in [bundle.manifest["decoder"]["prompt_ids"], *([token] for token in tokens)]:
            logits = state.step(np.array([said], dtype=np.int32))
            found.append((logits[0], None if state.candidates is None else state.candidates[0].copy()))
    return found


def divergence(plain: Sequence[Any], mix: Sequence[Any]) -> float:
    """Mean KL divergence of the mix's next token from fp32's, in nats, over the tokens that the mix gives logits of."""
    total = 0.0
    for (wanted, _), (got, ids) in zip(plain, mix, strict=True):
        p, q = (_log_softmax(row) for row in (wanted if ids is None else wanted[ids], got))
        total += float((np.exp(p) * (p - q)).sum())
    return total / max(1, len(plain))


def _log_softmax(row: np.ndarray) -> np.ndarray:
    shifted = row.astype(np.float64) - row.max()
    out: np.ndarray = shifted - np.log(np.exp(shifted).sum())
    return out
