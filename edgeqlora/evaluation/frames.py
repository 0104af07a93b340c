"""What merging frames of the encoder costs and gains: the same clips with and without, the encoder timed in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from edgeqlora.card import measured, missing
from edgeqlora.data.row import Row
from edgeqlora.evaluation.recognise import Recogniser, Recognition
from edgeqlora.models.family import Features, Transcription
from edgeqlora.models.frames import LONGEST_RUN, Counts, FrameMerger

MOST_TIMED = 16
"""Batches on which the encoder is timed; one more, the first, is for warming up."""


class _Merging:
    """A decoder that tells a merger which frames of its batches are speech, counts, and times the encoder."""

    def __init__(self, decoder: Any, merger: FrameMerger, is_timed: bool):
        self.decoder, self.merger = decoder, merger
        self.rules, self.language = decoder.rules, decoder.language
        self.counts = Counts()
        self.timed_ms: list[tuple[float, float]] = []
        """Milliseconds a clip of each batch, without and with merging."""
        self.timing_s = 0.0
        self._before = (self.counts, 0, 0.0)
        self._is_timed, self._is_timing, self._is_warm = is_timed, False, False

    def transcribe(self, features: Features, n_valid: Sequence[int], window_s: float) -> list[Transcription]:
        self.merger.n_valid = n_valid
        self._before = (self.counts, len(self.timed_ms), self.timing_s)
        handle = self.merger.encoder.register_forward_pre_hook(self._time, with_kwargs=True)
        try:
            with self._counted_once():
                found: list[Transcription] = self.decoder.transcribe(features, n_valid, window_s)
        finally:
            handle.remove()
        self.counts += self.merger.counts
        return found

    def losses(self, found: Sequence[Transcription], target_ids: Sequence[list[int]]) -> list[float]:
        self.merger.take_all_rows()
        with self._counted_once():
            losses: list[float] = self.decoder.losses(found, target_ids)
        return losses

    @contextmanager
    def _counted_once(self) -> Iterator[None]:
        """Where a GPU's memory is too small, the batch comes again in halves, and counts then."""
        try:
            yield
        except BaseException:
            self.counts, n_timed, self.timing_s = self._before
            del self.timed_ms[n_timed:]
            raise

    def _time(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._is_timed or self._is_timing or len(self.timed_ms) >= MOST_TIMED:
            return
        self._is_timing, begin_s = True, time.perf_counter()
        took_ms = {}
        order = (False, True) if len(self.timed_ms) % 2 else (True, False)
        try:
            for is_on in order:
                self.merger.is_on = is_on
                _finish()
                start_s = time.perf_counter()
                module(*args, **kwargs)
                _finish()
                took_ms[is_on] = 1000 * (time.perf_counter() - start_s) / len(self.merger.n_valid)
        finally:
            self.merger.is_on, self._is_timing = True, False
            self.timing_s += time.perf_counter() - begin_s
        if self._is_warm:
            self.timed_ms.append((took_ms[False], took_ms[True]))
        self._is_warm = True


def _finish() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def _merged(recogniser: Recogniser, merger: FrameMerger, is_timed: bool) -> Iterator[_Merging]:
    decoder = recogniser.decoder
    merging = recogniser.decoder = _Merging(decoder, merger, is_timed)  # type: ignore[assignment]
    try:
        with merger.merging():
            yield merging
    finally:
        recogniser.decoder = decoder


def recognise_merged(
    recogniser: Recogniser,
    merger: FrameMerger,
    rows: Sequence[Row],
    batch_size: int,
    progress: Any = None,
    is_timed: bool = True,
) -> tuple[Recognition, dict[str, Any]]:
    """Texts with losses, and figures of `rows` with frames merged.

    The figures: share of frames that were merged, of speech and of padding, and the encoder's time with and without,
    taken in turns on the same batches. Timing is not in the texts' processing_s.
    """
    with _merged(recogniser, merger, is_timed) as merging:
        result = recogniser.recognise(rows, batch_size, progress, with_losses=True)
        result.processing_s -= merging.timing_s
    counts = merging.counts
    return result, {
        "kappa": merger.kappa,
        "after_layers": merger.after,
        "longest_run": LONGEST_RUN,
        "speech": _share(counts.speech_merged, counts.speech),
        "padding": _share(counts.padding_merged, counts.padding),
        **_times(merging.timed_ms),
    }  # fmt: skip


def _share(merged: int, n_frames: int) -> Any:
    if not n_frames:
        return missing("no such frames")
    return measured(round(100 * merged / n_frames, 3), "% of frames merged into a neighbour", n_frames=n_frames)


def _times(timed_ms: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Medians over batches; the ratio is the median of the batches' ratios, with over without."""
    names = ("encoder_ms_without", "encoder_ms", "encoder_ratio")
    if not timed_ms:
        return dict.fromkeys(names, missing("one batch warms up: take more clips, or a smaller --batch-size"))
    columns = [*zip(*timed_ms, strict=True), [with_ms / without_ms for without_ms, with_ms in timed_ms]]
    units = ("ms per clip", "ms per clip", "with / without")
    return {
        name: measured(round(statistics.median(values), 4), unit, n_batches=len(values), how="in turns")
        for name, unit, values in zip(names, units, columns, strict=True)
    }


def format_merging(figures: dict[str, Any]) -> list[str]:
    """Lines for a terminal: without and with side by side."""

    def number(figure: Any, form: str) -> str:
        return "--" if figure["value"] is None else format(figure["value"], form)

    without = figures["without"]
    metric = without["leading"]
    wers = ", ".join(f"{number(figure, '.2f')} % {name}" for name, figure in without[metric].items())
    merged = f"speech {number(figures['speech'], '.2f')} %, padding {number(figures['padding'], '.2f')} %"
    times = (
        f"{number(figures['encoder_ms_without'], '.1f')} ms a clip without, {number(figures['encoder_ms'], '.1f')} ms with"
        f", ratio {number(figures['encoder_ratio'], '.3f')}"
        if figures["encoder_ratio"]["value"] is not None
        else figures["encoder_ratio"]["reason"]
    )
    return [
        f"  frames merged after {figures['after_layers']} encoder layers at kappa {figures['kappa']:g}: {merged}",
        f"  without merging: {metric.upper()} {wers}, perplexity {number(without['perplexity'], '.3f')}",
        f"  encoder: {times}",
    ]
