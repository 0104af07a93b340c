"""How far a window may follow the clip: the least silence after it that costs no accuracy, found on real clips.

Whisper's encoder is made for 30 s, and most of that is padding for a short clip. Without silence after it the decoder falls
into repetition; how much it needs differs from model to model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgeqlora_jetson.audio.windows import SAMPLE_RATE_HZ
from edgeqlora_jetson.schema import Margin
from edgeqlora_jetson.text import NORMALISERS, why_no_words, written_language
from edgeqlora_jetson.transcribe import Transcriber
from edgeqlora_jetson.wer import error_figures

MARGINS_S = (0.5, 1.0, 2.0, 4.0, 6.0)
"""Seconds after a clip that are tried, the shortest first."""

LEAST_GAIN = 0.95
"""Share of its windows that the encoder must hear at most: for less gain nothing is risked."""


def find_margin(
    bundle: Any,
    runtime: Any,
    clips: Sequence[tuple[np.ndarray, str]],
    margins_s: Sequence[float] = MARGINS_S,
    progress: Callable[[str], None] = lambda message: None,
) -> Margin:
    """The first of margins_s at which `clips` have no more errors than in whole windows, and no text more without an end.

    clips: (audio float32 (n_samples,) at 16 kHz, reference). The manifest of `bundle` is as before afterwards.
    """
    audio = bundle.manifest["audio"]
    before = audio.pop("margin", None)
    try:
        whole = _try(bundle, runtime, clips, None)
        tried, found, reason = [whole], None, "every shorter window had more errors, or texts without an end"
        for margin_s in sorted(margins_s):
            progress(f"trying windows that end {margin_s:g} s after the clip")
            row = _try(bundle, runtime, clips, margin_s)
            if not row["n_again"] and row["heard_s"] > LEAST_GAIN * whole["heard_s"]:
                reason = "the clips fill their windows" if len(tried) == 1 else reason
                break
            tried.append(row)
            is_as_good = row["n_errors"] <= whole["n_errors"] and row["n_incomplete"] <= whole["n_incomplete"]
            if is_as_good and row["n_again"] <= whole["n_incomplete"]:
                found = row
                break
    finally:
        audio.pop("margin", None)
        if before is not None:
            audio["margin"] = before
    margin: Margin = {"margin_s": None, "reason": reason, "n_clips": len(clips), "tried": tried}
    if found:
        margin = {
            "margin_s": found["margin_s"],
            "least_s": found["least_s"],
            "n_clips": len(clips),
            "tried": tried,
        }
        progress(
            f"windows follow the clip and end {found['margin_s']:g} s after it: {found['heard_s']:.0f} of "
            f"{whole['heard_s']:.0f} s are computed for {len(clips)} clips, with {found['n_errors']} errors ({whole['n_errors']})"
        )
    else:
        progress(f"whole windows are computed: {reason}")
    return margin


def _try(bundle: Any, runtime: Any, clips: Sequence[tuple[np.ndarray, str]], margin_s: float | None) -> dict[str, Any]:
    decoder = bundle.manifest["decoder"]
    # Shorter than what was tried, nothing is known: least_s of the result holds the runner to it.
    bundle.manifest["audio"]["margin"] = {"margin_s": margin_s, "least_s": 1 / SAMPLE_RATE_HZ}
    transcriber = Transcriber(bundle, runtime)
    found = [transcriber.transcribe(audio) for audio, _ in clips]
    language = written_language(decoder.get("language"), decoder.get("task"))
    no_words = why_no_words([reference for _, reference in clips], language)
    apply = NORMALISERS["basic-unicode"]
    pairs = [(apply(said, language), apply(one.text, language)) for (_, said), one in zip(clips, found, strict=True)]
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
