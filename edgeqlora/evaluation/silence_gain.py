"""What cutting silence saves: some clips recognised whole and cut, in one run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from edgeqlora.card import measured, missing
from edgeqlora.data.manifest import evenly
from edgeqlora.data.row import Row
from edgeqlora.data.silence import Silence
from edgeqlora.models.family import Learner
from edgeqlora.models.quantised import plain_model

N_COMPARED = 8
"""Clips that are compared, drawn evenly."""

N_ROUNDS = 2
"""Times that each is recognised, in turns; the fastest counts, since other work on the machine can only slow one down."""


class Spent(NamedTuple):
    """What recognising some clips took, in s."""

    processing_s: float
    encoder_s: float


def compare(recognise: Callable[[Sequence[Row]], Spent], rows: Sequence[Row], silence: Silence) -> dict[str, Any]:
    """RTF and encoder time of at most N_COMPARED of the rows, as `without_silence` gave them: whole, cut, and the ratio.

    silence: of all rows; its detector's time counts for the cut ones, each second of recording alike.
    """
    from edgeqlora.data.audio import probe

    cut = evenly(list(rows), N_COMPARED)
    clips = {"cut": cut, "whole": [dataclasses.replace(row, kept=None) for row in cut]}
    audio_s = sum(probe(row)[1] for row in clips["whole"])
    rounds = [{name: recognise(of) for name, of in clips.items()} for _ in range(N_ROUNDS)]
    detector_s = silence.detector_s / silence.audio_s * audio_s if silence.audio_s else 0.0
    encoder = {name: min(spent[name].encoder_s for spent in rounds) for name in clips}
    rtf = {name: min(spent[name].processing_s for spent in rounds) / audio_s for name in clips} if audio_s else {}
    if rtf:
        rtf["cut"] += detector_s / audio_s
    how = {"n_clips": len(cut), "audio_s": round(audio_s, 3), "rounds": N_ROUNDS, "statistic": "fastest"}
    return {"encoder_time": _ratio(encoder, "s", how), "rtf": _ratio(rtf, "processing s / audio s", how)}


def _ratio(of: dict[str, float], unit: str, how: dict[str, Any]) -> Any:
    if not of or not of["whole"]:
        return missing("nothing to compare with", **how)
    shown = {name: round(of[name], 5) for name in ("whole", "cut")}
    return measured(round(of["cut"] / of["whole"], 4), f"cut / whole, each in {unit}", **shown, **how)


def format_silence(silence: dict[str, Any] | None) -> list[str]:
    """Lines of the report's part `silence` for a terminal; none where no silence was cut."""
    if silence is None:
        return []
    lines = [
        f"  {silence['removed']['value']:.1f} % of the audio is silence that was cut away ({silence['audio_s']:.1f} s before, "
        f"{silence['kept_s']:.1f} s after; {silence['detector']} took {silence['detector_time']['value']:.1f} s); "
        f"{silence['n_without_speech']} of {silence['n_clips']} clips have no speech: their text is empty"
    ]
    shown = (("encoder", "encoder_time", " s"), ("RTF with the detector", "rtf", ""))
    for title, name, unit in shown:
        figure = silence["compared"][name]
        if figure["value"] is not None:
            lines.append(
                f"    {title}: {figure['whole']:.3f}{unit} whole, {figure['cut']:.3f}{unit} cut, ratio {figure['value']:.2f} "
                f"({figure['n_clips']} clips)"
            )
    return lines


@contextmanager
def encoder_time(learner: Learner) -> Iterator[list[float]]:
    """Inside the `with`, each call of the model's encoder (of one without decoder: of the model) adds its seconds to the list."""
    import torch

    model = plain_model(learner.model)
    encoder = model.get_encoder() if model.can_generate() else model
    spent: list[float] = []
    started = 0.0

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def before(*_: Any) -> None:
        nonlocal started
        started = now()

    def after(*_: Any) -> None:
        spent.append(now() - started)

    hooks = encoder.register_forward_pre_hook(before), encoder.register_forward_hook(after)
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()
