"""The search for a precision: all that can be is low, unless that costs words; then the parts that cost most stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np

from edgeqlora_export.precision.judge import Clip, Heard, choices, cost, divergence, hear, nothing_heard
from edgeqlora_jetson.audio.windows import window_samples
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.errors import NotFiniteError, UserError
from edgeqlora_jetson.runtimes import open_runtime
from edgeqlora_jetson.schema import TriedMix
from edgeqlora_jetson.transcribe import Transcriber

N_SENSITIVITY = 8
"""Clips on which each part alone is measured."""


class Form(Protocol):
    """One way of making graphs smaller: which parts can be low, and the graphs of a mix."""

    low: str
    """Name of the lower precision: int8, fp16."""
    rest: str
    """Name of what the other parts have."""
    bundle: Bundle
    """Of the graphs in fp32, in a folder that can be written."""
    is_timed: bool
    """Whether the time that a mix takes here says something."""

    @property
    def parts(self) -> list[str]:
        """All that can be low, as "graph/part", in the order in which they run."""

    @property
    def all_parts(self) -> list[str]:
        """These, and those that have a higher precision in any mix."""

    def hear_plain(self, clips: Sequence[Clip]) -> Heard:
        """What fp32 makes of the clips; parts may be fewer after it."""

    def write(self, low: Sequence[str], ending: str) -> Bundle:
        """The graphs of a mix as they are heard here, in files GRAPH-ENDING.onnx, and a bundle of them."""

    def bytes_of(self, low: Sequence[str], written: Bundle) -> int:
        """Bytes of the graphs of a mix as they ship."""

    def names(self, low: Sequence[str]) -> dict[str, list[str]]:
        """The mix as the manifest names it: the parts of each precision that a row of `tried` has."""

    def ship(self, low: Sequence[str]) -> Bundle:
        """The graphs of a mix as they ship, in files GRAPH-mix.onnx, and a bundle of them."""

    def record(self) -> dict[str, Any]:
        """What else the manifest says of this form."""


class Search:
    """One search. allowed: points of the error rate, None: any. known: what fp32 made of the clips, the rows that another search tried, and
    the one that it chose."""

    def __init__(
        self,
        form: Form,
        clips: Sequence[Clip],
        allowed: float | None,
        threads: int,
        progress: Callable[[str], None],
        known: tuple[Heard, list[TriedMix], TriedMix] | None = None,
    ) -> None:
        self.form, self.clips, self.allowed, self.threads, self.progress = form, clips, allowed, threads, progress
        self.rows: list[TriedMix] = []
        self.sensitivity: dict[str, float | None] = {}
        if known is not None:
            self.plain, self.rows, self._start = known[0], list(known[1]), known[2]
        else:
            progress(f"fp32: {len(clips)} clips")
            self.plain = form.hear_plain(clips)
            self._start = self._add(form.bundle, [], self.plain)

    def run(self, only_low: bool) -> tuple[list[str], TriedMix]:
        """Which parts are low, and the row of that mix. only_low: raise UserError, with the reason, where not all can be."""
        form = self.form
        row = self._try(form.parts)
        if row["refused"] and only_low:
            raise UserError(
                f"precision {form.low} was asked for, and {row['refused']} ({len(self.clips)} clips): pass --precision auto, which keeps "
                f"in {form.rest} what costs most, or a higher --max-wer-increase"
            )
        if not row["refused"]:
            return list(form.parts), row
        self._measure_parts()
        return self._fall_back()

    def _transcriber(self, bundle: Bundle) -> Transcriber:
        return Transcriber(bundle, open_runtime(bundle, "onnxruntime", threads=self.threads))

    def _try(self, low: Sequence[str]) -> TriedMix:
        bundle = self.form.write(low, f"mix{len(self.rows)}")
        try:
            heard = hear(self._transcriber(bundle), self.clips)
        except NotFiniteError:
            heard = nothing_heard(self.plain)
        return self._add(bundle, low, heard)

    def _add(self, bundle: Bundle, low: Sequence[str], heard: Heard) -> TriedMix:
        form, costs = self.form, cost(self.plain, heard, self.allowed)
        row = cast(TriedMix, {**form.names(low), "bytes": form.bytes_of(low, bundle), **costs})
        if not form.is_timed:
            row["ms_per_clip"] = None
        self.rows.append(row)
        if low:
            time = f", {row['ms_per_clip']:.0f} ms a clip" if row["ms_per_clip"] is not None else ""
            self.progress(
                f"{len(low)} of {len(form.parts)} parts in {form.low}: error rate {row['wer']:.2f} % ({row['increase']:+.2f} points, 95 % "
                f"interval {row['low']:+.2f} to {row['high']:+.2f}), {row['bytes'] / 1e6:.1f} MB{time}"
                f"{'; refused: ' + row['refused'] if row['refused'] else ''}"
            )
        return row

    def _measure_parts(self) -> None:
        """How far the choices are from fp32's with each part alone in the lower precision."""
        form, plain = self.form, self._transcriber(self.form.write([], "plain"))
        longest = window_samples(max(form.bundle.windows_s), form.bundle.sample_rate_hz)
        audios = [audio[:longest] for audio, _ in self.clips[:N_SENSITIVITY]]
        texts = [plain.transcribe(audio).tokens for audio in audios]
        wanted = choices(plain, audios, texts)
        for i, part in enumerate(form.parts):
            self.progress(f"measuring part {i + 1} of {len(form.parts)} alone in {form.low}: {part}")
            far = divergence(wanted, choices(self._transcriber(form.write([part], "part")), audios, texts))
            self.sensitivity[part] = round(far, 6) if np.isfinite(far) else None

    def _fall_back(self) -> tuple[list[str], TriedMix]:
        """The mix with the fewest parts that stay, the most sensitive first, that is allowed; else nothing is low."""
        far, parts = self.sensitivity, self.form.parts
        worst = sorted(parts, key=lambda part: -np.inf if (one := far[part]) is None else -one)
        n_bad, n_good = 0, len(worst)
        found: tuple[list[str], TriedMix] = [], self._start
        while n_good - n_bad > 1:
            n = (n_bad + n_good) // 2
            kept = set(worst[:n])
            low = [part for part in parts if part not in kept]
            row = self._try(low)
            if row["refused"]:
                n_bad = n
            else:
                n_good, found = n, (low, row)
        return found


def front(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Which rows, of those not refused, no other is better than in error rate, bytes and (where it was measured) time at once."""

    def beats(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
        pairs = [(a[key] or 0, b[key] or 0) for key in ("wer", "bytes", "ms_per_clip")]
        return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)

    allowed = [row for row in rows if not row["refused"]]
    return [i for i, row in enumerate(rows) if not row["refused"] and not any(beats(other, row) for other in allowed)]
