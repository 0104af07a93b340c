"""Audio files to samples."""

import os
from typing import Any, Tuple

import numpy as np

from ..errors import UserError
from .resample import resample
from .sniff import look_at
from .wav import UnsupportedWav, parse_wav
from .windows import SAMPLE_RATE_HZ

_MIN_RATE_HZ, _MAX_RATE_HZ = 1000, 768000


def load_audio(path: Any, sample_rate_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    """Read an audio file as mono: float32 (n_samples,) in [-1, 1] at `sample_rate_hz`.

    WAV needs nothing but this package; other formats (FLAC, Ogg, MP3) are read through soundfile if it is installed.
    Channels are averaged. Raises UserError naming the file when it is missing, empty, not audio, or has no samples.
    """
    path = os.fspath(path)
    data = _read_bytes(path)
    samples, file_rate_hz = _decode(path, data)
    if samples.shape[0] == 0:
        raise UserError("{}: holds 0 samples of sound: record it again or leave it out".format(path))
    if not _MIN_RATE_HZ <= file_rate_hz <= _MAX_RATE_HZ:
        raise UserError(
            "{}: sample rate {} Hz, allowed {} to {} Hz: a damaged header?".format(
                path, file_rate_hz, _MIN_RATE_HZ, _MAX_RATE_HZ
            )
        )
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)
    if file_rate_hz == sample_rate_hz:
        return np.ascontiguousarray(mono, dtype=np.float32)
    # The band-limited curve through full-scale samples may overshoot between them.
    return np.clip(resample(mono, file_rate_hz, sample_rate_hz), -1.0, 1.0)


def _read_bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise UserError("{}: there is no such audio file".format(path))
    except OSError as error:
        raise UserError("{}: this audio file cannot be read: {}".format(path, error.strerror or error))
    if not data:
        raise UserError("{}: the file is empty (0 bytes)".format(path))
    return data


def _decode(path: str, data: bytes) -> Tuple[np.ndarray, int]:
    """Samples float32 (n_samples, n_channels) and the file's sample rate in Hz."""
    look = look_at(data[:64])
    description = look.description
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        try:
            return parse_wav(data, path)
        except UnsupportedWav as error:
            description = str(error)
    elif not look.is_media and not description.startswith("bytes"):
        raise UserError("{}: not audio, it looks like {}. Wanted: WAV, FLAC, Ogg or MP3".format(path, description))
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: the Python part is there, libsndfile is not
        raise UserError(
            "{}: looks like {}; without the soundfile library only WAV (PCM or float) is read. If it is audio, "
            "convert it: ffmpeg -i {} -ac 1 -ar 16000 speech.wav   or: pip install soundfile".format(
                path, description, path
            )
        )
    try:
        samples, file_rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except (RuntimeError, OSError) as error:  # soundfile.LibsndfileError is a RuntimeError
        raise UserError(
            "{}: cannot be read as audio, it looks like {}. Wanted: WAV, FLAC, Ogg or MP3".format(path, description)
        ) from error
    return np.clip(samples, -1.0, 1.0), int(file_rate_hz)
