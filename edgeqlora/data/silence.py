"""Silence around and inside speech, cut away before a model hears the clip; times lead back to the recording."""

from __future__ import annotations

import dataclasses
import functools
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from edgeqlora.card import installed_version, measured, read_card
from edgeqlora.data.audio import SAMPLE_RATE_HZ, Audio, load_audio
from edgeqlora.data.row import Ranges, Row
from edgeqlora.errors import UserError

KEPT_S = 0.2
"""Silence kept on each side of speech, so that one inside a clip is at most twice that: quiet ends of words (s, f, t) lie below
the detector's threshold, its times are multiples of 32 ms, and models learned from speech with pauses."""

LEAD_S = 0.5
"""Zeros that the detector hears before and after each clip, since it starts without any memory."""

THRESHOLD, LEAST_MS = 0.35, 32
"""Probability of speech in a 32 ms frame from which it counts; one such frame alone does not.

Of 1,500 spoken digits of 0.4 s that fill their clips (fsdd), the detector passes over 490 as it comes (no zeros, 0.5, 250 ms), 144
with 32 ms, 20 with zeros too, and 7 with these values. In 240 s of kitchen, dishes, bike and tap it finds no speech with any of
them: a word that is lost costs more than a noise that is kept.
"""


class TimeMap:
    """Where each sample of the cut audio was in the recording, and back: linear in pieces, exact to the sample.

    kept: sample ranges (start, end) of the recording that were kept, in order and apart; at least one.
    """

    def __init__(self, kept: Ranges):
        assert kept, "a clip without speech has no times"
        self._kept = kept
        self._starts = [0, *accumulate(end - start for start, end in kept)][:-1]

    def to_recording(self, sample: int, is_end: bool = False) -> int:
        """Place in the recording of a place in the cut audio, both in samples.

        At a joint it is where speech goes on; with is_end (of a segment), where it stopped. Places outside are moved in.
        """
        piece = (bisect_left if is_end else bisect_right)(self._starts, sample) - 1
        start, end = self._kept[max(piece, 0)]
        return min(start + max(sample - self._starts[max(piece, 0)], 0), end)

    def to_cut(self, sample: int) -> int:
        """Place in the cut audio of a place in the recording, both in samples; of one that was cut away: the joint."""
        piece = bisect_right(self._kept, sample, key=lambda one: one[0]) - 1
        if piece < 0:
            return 0
        start, end = self._kept[piece]
        return self._starts[piece] + min(sample, end) - start


def ranges_to_keep(speech: Sequence[tuple[int, int]], n_samples: int) -> Ranges:
    """Sample ranges of a clip to keep, in order and apart: speech with KEPT_S on each side.

    speech: sample ranges within the clip, in order. A clip without speech keeps nothing.
    """
    margin = round(KEPT_S * SAMPLE_RATE_HZ)
    kept: list[tuple[int, int]] = []
    for start, end in speech:
        start, end = max(start - margin, 0), min(end + margin, n_samples)
        if kept and start <= kept[-1][1]:
            start = kept.pop()[0]
        kept.append((start, end))
    return tuple(kept)


def find_speech(audio: Audio) -> list[tuple[int, int]]:
    """Sample ranges with speech in audio float32 (n_samples,) at 16 kHz, in order and apart, by Silero VAD.

    Raises UserError where silero-vad is not installed.
    """
    model, timestamps = _detector()
    lead = round(LEAD_S * SAMPLE_RATE_HZ)
    found = timestamps(
        np.pad(audio, lead), model, threshold=THRESHOLD, min_speech_duration_ms=LEAST_MS, speech_pad_ms=0
    )
    ranges = [(max(one["start"] - lead, 0), min(one["end"] - lead, audio.size)) for one in found]
    return [(start, end) for start, end in ranges if start < end]


def detector() -> str:
    """Name and version of the detector, for cards and reports."""
    return f"silero-vad {installed_version('silero-vad')}"


@functools.cache
def _detector() -> tuple[Any, Callable[..., list[dict[str, int]]]]:
    """Silero VAD (MIT) as an ONNX file inside its package: (model, function). No network."""
    import torch

    n_threads = torch.get_num_threads()
    try:
        from silero_vad import get_speech_timestamps_sequence, load_silero_vad
    except ImportError as error:
        raise UserError(
            f"skip_silence finds speech with the library silero-vad ({error}): run pip install silero-vad, "
            "or pass --no-skip-silence"
        ) from error
    finally:
        torch.set_num_threads(n_threads)  # its import leaves torch with one
    # The whole clip in one call: the same figures as frame by frame, in a fifth of the time.
    return load_silero_vad(sequence=True), get_speech_timestamps_sequence


@dataclass
class Silence:
    """What cutting silence did to some clips."""

    n_clips: int = 0
    n_without_speech: int = 0
    audio_s: float = 0.0
    """Seconds of the recordings."""
    kept_s: float = 0.0
    """Seconds that the model hears."""
    detector_s: float = 0.0
    """Seconds that the detector took; reading files left out."""

    @property
    def removed_percent(self) -> float:
        """Share of the recordings that was cut away, in percent."""
        return 100 * (1 - self.kept_s / self.audio_s) if self.audio_s else 0.0

    def to_plain(self) -> dict[str, Any]:
        """For cards and reports."""
        return {
            "detector": detector(),
            "n_clips": self.n_clips,
            "n_without_speech": self.n_without_speech,
            "audio_s": round(self.audio_s, 3),
            "kept_s": round(self.kept_s, 3),
            "removed": measured(round(self.removed_percent, 2), "%"),
            "detector_time": measured(round(self.detector_s, 3), "s"),
        }

    def __str__(self) -> str:
        return (
            f"silence: {self.removed_percent:.1f} % of {self.audio_s:.0f} s cut away by {detector()} in {self.detector_s:.1f} s; "
            f"{self.n_without_speech} of {self.n_clips} clips have no speech"
        )


def without_silence(
    rows: Sequence[Row], progress: Callable[[int, int], object] | None = None
) -> tuple[list[Row], Silence]:
    """The rows with what to keep of each, and what that comes to: every file is decoded once.

    A row of nothing but speech stays as it was. Raises UserError as `load_audio` and `find_speech` do.
    """
    cut, silence = [], Silence(len(rows))
    _detector()
    for row in rows:
        audio = load_audio(row)
        start_s = time.perf_counter()
        kept = ranges_to_keep(find_speech(audio), audio.size)
        silence.detector_s += time.perf_counter() - start_s
        silence.n_without_speech += not kept
        silence.audio_s += audio.size / SAMPLE_RATE_HZ
        silence.kept_s += sum(end - start for start, end in kept) / SAMPLE_RATE_HZ
        whole = kept == ((0, audio.size),)
        # A claimed duration is that of the whole clip.
        cut.append(row if whole else dataclasses.replace(row, kept=kept, duration=None))
        if progress:
            progress(len(cut), len(rows))
    return cut, silence


def was_cut(source: str) -> bool:
    """Whether the model of a folder was trained, or merged, on audio whose silence was cut away."""
    card = read_card(Path(source)) if Path(source).is_dir() else None
    return bool(card and card.get("skip_silence"))
