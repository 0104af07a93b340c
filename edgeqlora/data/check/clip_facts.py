"""What one decoding pass tells about an utterance."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from edgeqlora.data.audio import decode, probe
from edgeqlora.data.row import Row
from edgeqlora.errors import UserError

# A sample this close to full scale has been cut off by the recorder, or nearly.
FULL_SCALE = 0.999
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ClipFacts:
    """Facts about the audio of one row; where `error` is set, the audio could not be decoded."""

    row: Row
    """The row they belong to."""
    error: str | None = None
    """Why the audio cannot be decoded; None if it can."""
    duration_s: float = 0.0
    """Seconds of audio, after the cut."""
    header_s: float = 0.0
    """Seconds that the file's header promises."""
    sample_rate_hz: int = 0
    """Rate of the file."""
    n_channels: int = 0
    """Channels of the file."""
    peak: float = 0.0
    """Largest absolute sample."""
    clipped_share: float = 0.0
    """Share of samples at full scale."""
    sha256: str = ""
    """Hash of rate and mono samples: the same for a recording and its lossless copy in another format."""


Clips = dict[str, list[ClipFacts]]


def inspect_clip(row: Row) -> ClipFacts:
    """Decode one row and gather its facts; bad audio is a fact too, not an exception."""
    try:
        audio, rate_hz = decode(row)
        _, header_s, n_channels = probe(row)
    except UserError as error:
        return ClipFacts(row, error=str(error))
    magnitude = np.abs(audio)
    digest = hashlib.sha256(f"{rate_hz}\n".encode())
    digest.update(audio.tobytes())
    return ClipFacts(
        row,
        duration_s=audio.size / rate_hz,
        header_s=header_s,
        sample_rate_hz=rate_hz,
        n_channels=n_channels,
        peak=float(magnitude.max()),
        clipped_share=float(np.count_nonzero(magnitude >= FULL_SCALE)) / audio.size,
        sha256=digest.hexdigest(),
    )


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
