"""How far a window may follow the clip: the least silence after it that costs no accuracy, found on real clips.

Whisper's encoder is made for 30 s, and most of that is padding for a short clip. Without silence after it the decoder falls
into repetition; how much it needs differs from model to model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgeqlora_jetson.audio.windows import SAMPLE_RATE_HZ
from edgeqlora_jetson.schema import Margin
from edgeqlora_jetson.text import NORMALISERS, why_no_words, written_language
from edgeqlora_jetson.transcribe import Transcriber
from edgeqlora_jetson.wer import error_figures, items

MARGINS_S = (0.5, 1.0, 2.0, 4.0, 6.0)
"""Seconds after a clip that are tried, the shortest first."""

LEAST_GAIN = 0.95
"""Share of its windows that the encoder must hear at most: for less gain nothing is risked."""

LEAST_WORDS = 250
"""Words (characters, in languages without spaces) that the clips must have for a margin to be looked for. Where a margin costs
1 % of the words, the chance that it costs none of 250 is 0.99 ** 250, or 8 %."""


def find_margin(
    bundle: Any,
    runtime: Any,
    clips: Sequence[tuple[np.ndarray, str]],
    margins_s: Sequence[float] = MARGINS_S,
    least_words: int = LEAST_WORDS,
    progress: Callable[[str], None] = lambda message: None,
) -> Margin:
    """The first of margins_s at which `clips` have no more errors than in whole windows, and no text more without an end.

    clips: (audio float32 (n_samples,) at 16 kHz, reference). The manifest of `bundle` is as before afterwards.
    """
    n_words = count_words(bundle.manifest["decoder"], [reference for _, reference in clips])
    if n_words < least_words:
        reason = (
            f"{len(clips)} clips with {n_words} words are too few to see what a shorter window costs, {least_words} are needed: give "
            "more clips with --data, or name a margin, such as --margin-s 2"
        )
        progress(f"whole windows are computed: {reason}")
        return {"margin_s": None, "reason": reason, "n_clips": len(clips), "tried": []}
    audio = bundle.manifest["audio"]
    before = audio.pop("margin", None)
    try:
        tried, found = _search(bundle, runtime, clips, margins_s, progress)
    finally:
        audio.pop("margin", None)
        if before is not None:
            audio["margin"] = before
    margin: Margin = {"margin_s": None, "n_clips": len(clips), "tried": tried}
    whole = tried[0]
    if found:
        margin["margin_s"], margin["least_s"] = found["margin_s"], found["least_s"]
        progress(
            f"windows follow the clip and end {found['margin_s']:g} s after it: {found['heard_s']:.0f} of "
            f"{whole['heard_s']:.0f} s are computed for {len(clips)} clips, with {found['n_errors']} errors ({whole['n_errors']})"
        )
    else:
        rows = "; ".join(
            f"{row['margin_s']:g} s after the clip: {row['heard_s']:.0f} s, {row['n_errors']} errors, {row['n_again']} heard again"
            for row in tried[1:]
        )
        margin["reason"] = (
            f"no shorter window was as good as whole ones ({whole['heard_s']:.0f} s for {len(clips)} clips, {whole['n_errors']} "
            f"errors): {rows}"
        )
        progress(f"whole windows are computed: {margin['reason']}")
    return margin


def count_words(decoder: Mapping[str, Any], references: Sequence[str]) -> int:
    """What an error rate of these texts would count: words, or characters of a language without spaces between words."""
    language = written_language(decoder.get("language"), decoder.get("task"))
    unit = "letter" if why_no_words(references, language) else "word"
    return sum(len(items(_normalise(text, language), unit)) for text in references)


def _search(
    bundle: Any,
    runtime: Any,
    clips: Sequence[tuple[np.ndarray, str]],
    margins_s: Sequence[float],
    progress: Callable[[str], None],
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """What was tried, whole windows first, and the row that is taken."""
    whole = _try(bundle, runtime, clips, None)
    tried = [whole]
    for margin_s in sorted(margins_s):
        progress(f"trying windows that end {margin_s:g} s after the clip")
        row = _try(bundle, runtime, clips, margin_s)
        tried.append(row)
        is_as_good = row["n_errors"] <= whole["n_errors"] and row["n_incomplete"] <= whole["n_incomplete"]
        is_shorter = row["heard_s"] <= LEAST_GAIN * whole["heard_s"]
        if is_as_good and is_shorter and row["n_again"] <= whole["n_incomplete"]:
            return tried, row
        if not is_shorter and not row["n_again"]:
            break  # longer ones are no shorter
    return tried, None


_normalise = NORMALISERS["basic-unicode"]


def _try(bundle: Any, runtime: Any, clips: Sequence[tuple[np.ndarray, str]], margin_s: float | None) -> dict[str, Any]:
    decoder = bundle.manifest["decoder"]
    # Shorter than what was tried, nothing is known: least_s of the result holds the runner to it.
    bundle.manifest["audio"]["margin"] = {"margin_s": margin_s, "least_s": 1 / SAMPLE_RATE_HZ}
    transcriber = Transcriber(bundle, runtime)
    found = [transcriber.transcribe(audio) for audio, _ in clips]
    language = written_language(decoder.get("language"), decoder.get("task"))
    no_words = why_no_words([reference for _, reference in clips], language)
    pairs = [
        (_normalise(said, language), _normalise(one.text, language))
        for (_, said), one in zip(clips, found, strict=True)
    ]
    kind = "cer" if no_words else "wer"
    figure: Any = error_figures(pairs, no_words)[kind]
    return {
        "margin_s": margin_s,
        kind: figure["value"],
        "n_errors": sum(figure.get(edit, 0) for edit in ("substitutions", "deletions", "insertions")),
        "n_incomplete": sum(one.n_incomplete for one in found),
        "n_again": sum(one.n_again for one in found),
        "heard_s": round(sum(one.heard_s for one in found), 3),
        "least_s": round(min(one.heard_s / one.n_pieces for one in found), 3),
        "ms_per_clip": round(sum(one.total_ms for one in found) / len(found), 3),
    }
