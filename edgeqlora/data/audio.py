"""Audio files in, mono float32 out: soundfile reads (wav, flac, ogg, mp3), soxr resamples."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from edgeqlora.data.row import Row
from edgeqlora.errors import UserError
from edgeqlora_jetson.audio.windows import SAMPLE_RATE_HZ

# Manifests round seconds; a cut may reach this far beyond the last sample.
END_TOLERANCE_S = 0.1
BLOCK_SAMPLES = 1 << 20

Audio: TypeAlias = npt.NDArray[np.float32]


def load_audio(source: Row | str | Path, sample_rate_hz: int = SAMPLE_RATE_HZ) -> Audio:
    """Decode one utterance: cut by start and end, channels averaged, resampled.

    Returns float32, shape (n_samples,), in [-1, 1] (floating-point files may exceed it).

    Raises UserError naming the file when it is missing, not audio, empty, or holds NaN or infinite samples,
    or when the cut lies outside it.
    """
    audio, file_rate_hz = decode(source)
    if file_rate_hz != sample_rate_hz:
        audio = soxr.resample(audio, file_rate_hz, sample_rate_hz, quality="HQ").astype(np.float32, copy=False)
        if audio.size == 0:
            raise UserError(f"{_row(source).name}: too short to resample to {sample_rate_hz} Hz: remove it")
    return audio


def decode(source: Row | str | Path) -> tuple[Audio, int]:
    """Decode one utterance at the sample rate of its file: (float32 of shape (n_samples,), rate in Hz)."""
    row = _row(source)
    with _open(row) as file:
        rate_hz = file.samplerate
        start, end = _cut(row, file.frames, rate_hz)
        try:
            if start:
                file.seek(start)
            channels = _read(file, end - start)
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise _not_audio(row, error) from None
    if channels.shape[0] == 0:
        raise UserError(f"{row.name}: 0 samples of audio: remove it from the data set")
    audio = channels[:, 0] if channels.shape[1] == 1 else channels.mean(axis=1, dtype=np.float32)
    if not np.isfinite(audio).all():
        raise UserError(f"{row.name}: holds NaN or infinite samples: write the file again or remove it")
    return np.ascontiguousarray(audio), rate_hz


def probe(source: Row | str | Path) -> tuple[int, float, int]:
    """Read the header only: (sample_rate_hz, duration_s after the cut, channels).

    Raises UserError as `load_audio` does, except for what only decoding can find.
    """
    row = _row(source)
    with _open(row) as file:
        start, end = _cut(row, file.frames, file.samplerate)
        return file.samplerate, (end - start) / file.samplerate, file.channels


def _row(source: Row | str | Path) -> Row:
    return source if isinstance(source, Row) else Row(audio=str(source), text="")


def _open(row: Row) -> Any:
    content = None if row.read_bytes is None else row.read_bytes()
    if content is None:
        try:
            size = os.path.getsize(row.audio)
        except OSError as error:
            raise UserError(f"audio file {row.name} cannot be read: {error.strerror}: check the path") from None
        if os.path.isdir(row.audio):
            raise UserError(f"{row.name} is a folder, not an audio file: check the path in the manifest")
    else:
        size = len(content)
    if size == 0:
        raise UserError(f"{row.name}: empty file (0 bytes): remove it from the data set")
    try:
        return soundfile.SoundFile(row.audio if content is None else io.BytesIO(content))
    except (soundfile.SoundFileError, RuntimeError, TypeError, OSError) as error:
        # TypeError: soundfile takes a .raw file for headerless samples and asks for a rate.
        raise _not_audio(row, error) from None


def _read(file: Any, n_samples: int) -> Audio:
    """Read up to `n_samples`, shape (n_samples, n_channels), in blocks.

    A damaged header can claim terabytes of samples, and memory must not be set aside for a claim.
    """
    blocks = []
    while n_samples > 0:
        block = file.read(min(n_samples, BLOCK_SAMPLES), dtype="float32", always_2d=True)
        if block.shape[0] == 0:
            break
        blocks.append(block)
        n_samples -= block.shape[0]
    return np.concatenate(blocks) if len(blocks) > 1 else blocks[0] if blocks else np.zeros((0, 1), np.float32)


def _cut(row: Row, n_samples: int, rate_hz: int) -> tuple[int, int]:
    """Sample range of the utterance; UserError when there is no audio in it."""
    if n_samples <= 0:
        raise UserError(f"{row.name}: 0 samples of audio: remove it from the data set")
    start = round((row.start or 0.0) * rate_hz)
    end = n_samples if row.end is None else round(row.end * rate_hz)
    if start >= n_samples or end > n_samples + END_TOLERANCE_S * rate_hz or end <= start:
        shown_end = "none" if row.end is None else f"{row.end:g}"
        raise UserError(
            f"{row.name}: start={row.start or 0:g} end={shown_end} lies outside the file, "
            f"which is {n_samples / rate_hz:.3f} s long: correct the row"
        )
    return start, min(end, n_samples)


def _not_audio(row: Row, error: Exception) -> UserError:
    reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
    return UserError(f"{row.name}: not audio that can be decoded ({reason}): expected wav, flac, ogg or mp3")
