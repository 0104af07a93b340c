"""Audio files to what a model hears: one channel at one sample rate."""

from typing import Any, List

import numpy as np

from .reader import AudioFile
from .resample import resample
from .windows import SAMPLE_RATE_HZ

# A channel that stays within one step of 16 bits around its middle carries nothing: an input without a microphone.
_DEAD_SWING = 2.0 / 32768


def load_audio(path: Any, sample_rate_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    """Read an audio file as mono: float32 (n_samples,) in [-1, 1] at `sample_rate_hz`.

    Raises UserError naming the file when it is missing, empty, not audio, cut off, or has no samples.
    """
    with AudioFile(path) as file:
        return to_rate(mix(file.read()), file.sample_rate_hz, sample_rate_hz)


def mix(samples: np.ndarray) -> np.ndarray:
    """One channel of several, float (n_samples, n_channels), n_samples > 0: float32 (n_samples,) in [-1, 1].

    Samples beyond full scale are clipped. The mean of the channels, without those that are constant: a dead one would
    halve the level of the other.
    """
    samples = np.clip(samples, -1.0, 1.0)
    if samples.shape[1] == 1:
        return np.ascontiguousarray(samples[:, 0], dtype=np.float32)
    live = live_channels(samples)
    # One after the other: the order in which numpy adds along an axis depends on its version.
    total = np.zeros(len(samples))
    for channel in live:
        total += samples[:, channel]
    return (total / len(live)).astype(np.float32)


def live_channels(samples: np.ndarray) -> List[int]:
    """Channels of float (n_samples, n_channels) that are not constant; all of them when every one is."""
    swing = samples.max(axis=0) - samples.min(axis=0)
    return [int(channel) for channel in np.flatnonzero(swing > _DEAD_SWING)] or list(range(samples.shape[1]))


def to_rate(audio: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Audio, float32 (n_samples,) in [-1, 1], at another sample rate."""
    if from_hz == to_hz:
        return audio
    # The band-limited curve through full-scale samples may overshoot between them.
    return np.clip(resample(audio, from_hz, to_hz), -1.0, 1.0)
