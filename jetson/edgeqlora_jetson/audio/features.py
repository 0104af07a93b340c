"""What a model hears of a clip, by the manifest's features.kind: log-mel, or the samples themselves."""

from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from ..schema import Manifest
from .logmel import LogMel
from .windows import window_samples

VARIANCE_FLOOR = 1e-7
"""Added to the variance before the root, as transformers' Wav2Vec2FeatureExtractor does."""


class LogMelFeatures(object):
    """Whisper's log-mel: float32 (batch, n_mels, n_frames)."""

    def __init__(self, bundle: Any) -> None:
        features = bundle.manifest["features"]
        self._log_mel = LogMel(bundle.load_mel_filters(), features["n_fft"], features["hop_length"])
        self._sample_rate_hz = bundle.sample_rate_hz

    def __call__(self, clips: Sequence[np.ndarray], window_s: float) -> np.ndarray:
        _, n_frames = log_mel_shape(self._log_mel.n_mels, self._log_mel.hop_length, window_s, self._sample_rate_hz)
        return np.stack([self._log_mel(audio, n_frames) for audio in clips])


class WaveformFeatures(object):
    """The samples of each clip, normalised alone and padded with zeros: float32 (batch, n_samples)."""

    def __init__(self, bundle: Any) -> None:
        self._normalise = bundle.manifest["features"]["normalise"]
        self._sample_rate_hz = bundle.sample_rate_hz

    def __call__(self, clips: Sequence[np.ndarray], window_s: float) -> np.ndarray:
        batch = np.zeros((len(clips), window_samples(window_s, self._sample_rate_hz)), dtype=np.float32)
        for row, audio in zip(batch, clips):
            clip = audio[: len(row)]
            row[: len(clip)] = normalise(clip) if self._normalise and len(clip) else clip
        return batch


def normalise(audio: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance of one clip, (n_samples,) to float32 of the same shape; silence becomes zeros.

    Source: transformers' Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm.
    """
    wide = np.asarray(audio, dtype=np.float64)
    return ((wide - wide.mean()) / np.sqrt(wide.var() + VARIANCE_FLOOR)).astype(np.float32)


def feature_shape(manifest: Manifest, window_s: float) -> Tuple[int, ...]:
    """Shape of one clip's features in a window."""
    features, rate = manifest["features"], manifest["audio"]["sample_rate_hz"]
    if features["kind"] == "log-mel":
        return log_mel_shape(features["n_mels"], features["hop_length"], window_s, rate)
    return (window_samples(window_s, rate),)


def log_mel_shape(n_mels: int, hop_length: int, window_s: float, sample_rate_hz: int) -> Tuple[int, int]:
    """(n_mels, n_frames) of a window."""
    return n_mels, window_samples(window_s, sample_rate_hz) // hop_length


def n_outputs(n_samples: int, kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Steps that a stack of convolutions without padding makes of n_samples: (n - kernel) // stride + 1 each."""
    for kernel, stride in zip(kernels, strides):
        n_samples = max(0, (n_samples - kernel) // stride + 1)
    return n_samples


FEATURES: Dict[str, Any] = {"log-mel": LogMelFeatures, "waveform": WaveformFeatures}

KINDS: List[str] = sorted(FEATURES)
