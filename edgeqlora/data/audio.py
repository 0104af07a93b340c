"""Audio of a row: the cut by its start and end, mixed and resampled by the board's own reader."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from edgeqlora.data.row import Row
from edgeqlora.data.text import name_hint
from edgeqlora.errors import UserError
from edgeqlora_jetson.audio.load import mix, to_rate
from edgeqlora_jetson.audio.reader import AudioFile
from edgeqlora_jetson.audio.windows import SAMPLE_RATE_HZ

# Manifests round seconds; a cut may reach this far beyond the last sample.
END_TOLERANCE_S = 0.1

Audio: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Cut:
    """The sound of one utterance as its file holds it."""

    channels: npt.NDArray[Any]
    """Samples, float of shape (n_samples, n_channels); beyond 1 in some files of floats."""
    sample_rate_hz: int
    """Rate of the file."""
    header_s: float
    """Seconds that the file's header promises, after the cut."""
    is_float: bool
    """The file stores floats, not integers or compressed sound."""
    lacks_end: bool
    """An Ogg file without a last page."""


def load_audio(source: Row | str | Path, sample_rate_hz: int = SAMPLE_RATE_HZ) -> Audio:
    """Decode one utterance: cut by start and end, channels averaged, resampled, of that what the row keeps.

    Returns float32, shape (n_samples,), in [-1, 1].

    Raises UserError naming the file when it is missing, not audio, empty, cut off, holds samples that are not numbers
    or were not scaled, or when the cut lies outside it.
    """
    audio, file_rate_hz = decode(source)
    audio, kept = to_rate(audio, file_rate_hz, sample_rate_hz), _row(source).kept
    if kept is None:
        return audio
    assert sample_rate_hz == SAMPLE_RATE_HZ, "what is kept is counted in samples of that rate"
    return np.concatenate([audio[:0], *(audio[start:end] for start, end in kept)])


def decode(source: Row | str | Path) -> tuple[Audio, int]:
    """Decode one utterance at the sample rate of its file: (float32 of shape (n_samples,) in [-1, 1], rate in Hz)."""
    cut = read_cut(source)
    return mix(cut.channels), cut.sample_rate_hz


def read_cut(source: Row | str | Path) -> Cut:
    """Decode one utterance, every channel. Raises UserError as `load_audio` does."""
    row = _row(source)
    with _open(row) as file:
        start, end = _range(row, file)
        return Cut(
            channels=file.read(start, end),
            sample_rate_hz=file.sample_rate_hz,
            header_s=(end - start) / file.sample_rate_hz,
            is_float=file.is_float,
            lacks_end=file.lacks_end,
        )


def probe(source: Row | str | Path) -> tuple[int, float, int]:
    """Read the header only: (sample_rate_hz, duration_s after the cut and of what is kept, channels).

    Raises UserError as `load_audio` does, except for what only decoding can find.
    """
    row = _row(source)
    with _open(row) as file:
        start, end = _range(row, file)
        duration_s = (end - start) / file.sample_rate_hz
        if row.kept is not None:
            duration_s = sum(end - start for start, end in row.kept) / SAMPLE_RATE_HZ
        return file.sample_rate_hz, duration_s, file.n_channels


def _row(source: Row | str | Path) -> Row:
    return source if isinstance(source, Row) else Row(audio=str(source), text="")


def _open(row: Row) -> AudioFile:
    try:
        return AudioFile(row.audio if row.read_bytes is None else row.read_bytes(), row.name)
    except UserError as error:
        if row.read_bytes is None and (hint := name_hint(row.audio)):
            raise UserError(f"{error}{hint}") from None
        raise


def _range(row: Row, file: AudioFile) -> tuple[int, int]:
    """Sample range of the utterance; UserError when there is no audio in it."""
    rate_hz, n_samples = file.sample_rate_hz, file.n_samples
    start = round((row.start or 0.0) * rate_hz)
    end = n_samples if row.end is None else round(row.end * rate_hz)
    if start >= n_samples or end > n_samples + END_TOLERANCE_S * rate_hz or end <= start:
        shown_end = "none" if row.end is None else f"{row.end:g}"
        raise UserError(
            f"{row.name}: start={row.start or 0:g} end={shown_end} lies outside the file, "
            f"which is {n_samples / rate_hz:.3f} s long: correct the row"
        )
    return start, min(end, n_samples)
