"""What one decoding pass tells about an utterance."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgeqlora.data.audio import read_cut
from edgeqlora.data.row import Row
from edgeqlora.errors import UserError
from edgeqlora_jetson.audio.containers import CutOff
from edgeqlora_jetson.audio.load import live_channels, mix
from edgeqlora_jetson.audio.reader import NotScaled

# A sample this close to full scale has been cut off by the recorder, or nearly.
FULL_SCALE = 0.999
# Of stretches of 20 ms, the third loudest: a syllable lasts longer than 60 ms, the click of a switch does not.
LEVEL_STRETCH_S = 0.02
LEVEL_RANK = 3
# Channels that have nothing in common lose nothing beyond what averaging takes from noise; -10 dB below that they cancel.
CANCEL_SHARE = 0.1
Progress = Callable[[int, int], None]
Fault = Literal["undecodable", "cut off", "not scaled"]


@dataclass(frozen=True)
class ClipFacts:
    """Facts about the audio of one row; where `error` is set, the audio could not be decoded."""

    row: Row
    """The row they belong to."""
    error: str | None = None
    """Why the audio cannot be decoded; None if it can."""
    fault: Fault = "undecodable"
    """Kind of that error."""
    duration_s: float = 0.0
    """Seconds of audio, after the cut."""
    header_s: float = 0.0
    """Seconds that the file's header promises."""
    sample_rate_hz: int = 0
    """Rate of the file."""
    n_channels: int = 0
    """Channels of the file."""
    n_dead_channels: int = 0
    """Channels that are constant while another is not; they are left out of the mean."""
    level: float = 0.0
    """Root mean square of its loudest 60 ms, in the channel where that is largest; without its mean."""
    cancels: bool = False
    """Averaged, the channels cancel each other."""
    clipped_share: float = 0.0
    """Share of samples at full scale, in the channel where it is largest."""
    beyond_one_share: float = 0.0
    """Share of float samples beyond 1, which reading clips."""
    beyond_one_peak: float = 0.0
    """The largest of them."""
    lacks_end: bool = False
    """An Ogg file without a last page."""
    sha256: str = ""
    """Hash of rate and mono samples: the same for a recording and its lossless copy in another format."""


Clips = dict[str, list[ClipFacts]]


def inspect_clip(row: Row) -> ClipFacts:
    """Decode one row and gather its facts; bad audio is a fact too, not an exception."""
    try:
        cut = read_cut(row)
    except UserError as error:
        fault: Fault = (
            "cut off" if isinstance(error, CutOff) else "not scaled" if isinstance(error, NotScaled) else "undecodable"
        )
        return ClipFacts(row, error=str(error), fault=fault)
    audio, rate_hz = mix(cut.channels), cut.sample_rate_hz
    n_samples, n_channels = cut.channels.shape
    digest = hashlib.sha256(f"{rate_hz}\n".encode())
    digest.update(audio.tobytes())
    magnitude = np.abs(cut.channels)
    # Beyond 1, integers cannot be; decoders of compressed sound overshoot where the original was at full scale.
    beyond = magnitude > 1.0 if cut.is_float else np.zeros_like(magnitude, dtype=bool)
    live = live_channels(cut.channels)
    centred = np.clip(cut.channels, -1.0, 1.0)
    centred = centred - centred.mean(axis=0, dtype=np.float64)
    return ClipFacts(
        row,
        duration_s=n_samples / rate_hz,
        header_s=cut.header_s,
        sample_rate_hz=rate_hz,
        n_channels=n_channels,
        n_dead_channels=n_channels - len(live),
        level=_level(cut.channels, rate_hz),
        cancels=_cancels(centred[:, live]),
        clipped_share=float(((magnitude >= FULL_SCALE) & ~beyond).mean(axis=0).max()),
        beyond_one_share=float(beyond.mean()),
        beyond_one_peak=float(magnitude.max()) if beyond.any() else 0.0,
        lacks_end=cut.lacks_end,
        sha256=digest.hexdigest(),
    )


def _level(channels: npt.NDArray[Any], rate_hz: int) -> float:
    """Level of the loudest of some channels, float (n_samples, n_channels); each stretch without its mean."""
    length = min(len(channels), max(1, round(LEVEL_STRETCH_S * rate_hz)))
    whole = channels[: len(channels) // length * length]
    power = whole.reshape(-1, length, channels.shape[1]).var(axis=1, dtype=np.float64)
    return float(np.sqrt(np.sort(power, axis=0)[-min(LEVEL_RANK, len(power))].max()))


def _cancels(centred: npt.NDArray[Any]) -> bool:
    """True if the mean of channels without their own mean is far weaker than that of channels alien to each other."""
    n_channels = centred.shape[1]
    alien = float((centred**2).mean(axis=0).sum()) / n_channels**2
    return n_channels > 1 and float((centred.mean(axis=1) ** 2).mean()) < CANCEL_SHARE * alien


def inspect_clips(rows: Sequence[Row], workers: int = 2, progress: Progress | None = None) -> list[ClipFacts]:
    """Inspect rows in threads (decoding releases the interpreter lock), results in the order of the rows.

    `progress` is called with (rows done, rows in all).
    """
    facts: list[ClipFacts] = []
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        try:
            for fact in pool.map(inspect_clip, rows):
                facts.append(fact)
                if progress is not None:
                    progress(len(facts), len(rows))
        except BaseException:
            # Otherwise Ctrl-C waits for every clip that is still in the queue.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return facts


def all_clips(clips: Clips) -> Iterator[tuple[str, ClipFacts]]:
    """Every clip with the name of its split."""
    return ((name, fact) for name, facts in clips.items() for fact in facts)


def decoded_clips(clips: Clips) -> Iterator[tuple[str, ClipFacts]]:
    """Those clips whose audio decodes."""
    return ((name, fact) for name, fact in all_clips(clips) if fact.error is None)


def shown(name: str, fact: ClipFacts) -> str:
    """Split and file name of a clip, for an example."""
    return f"{name}: {fact.row.name}"


def training_split(clips: Clips) -> str | None:
    """The split that is trained on: the one whose name starts with train, else the first."""
    return next((name for name in clips if name.startswith("train")), next(iter(clips), None))
