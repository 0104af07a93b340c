"""What a model hears of a clip, by the manifest's features.kind: log-mel, or the samples themselves."""

from typing import Any, Dict, Sequence, Tuple

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
        self._manifest = bundle.manifest

    def __call__(self, clips: Sequence[np.ndarray], window_s: float) -> np.ndarray:
        _, n_frames = self.shape(self._manifest, window_s)
        return np.stack([self._log_mel(audio, n_frames) for audio in clips])

    @staticmethod
    def shape(manifest: Manifest, window_s: float) -> Tuple[int, ...]:
        """(n_mels, n_frames) of one clip in a window."""
        features, n_samples = manifest["features"], window_samples(window_s, manifest["audio"]["sample_rate_hz"])
        return features["n_mels"], n_samples // features["hop_length"]


class WaveformFeatures(object):
    """The samples of each clip, normalised alone and padded with zeros: float32 (batch, n_samples)."""

    def __init__(self, bundle: Any) -> None:
        self._normalise = bundle.manifest["features"]["normalise"]
        self._manifest = bundle.manifest

    def __call__(self, clips: Sequence[np.ndarray], window_s: float) -> np.ndarray:
        batch = np.zeros((len(clips),) + self.shape(self._manifest, window_s), dtype=np.float32)
        for row, audio in zip(batch, clips):
            clip = audio[: len(row)]
            row[: len(clip)] = normalise(clip) if self._normalise and len(clip) else clip
        return batch

    @staticmethod
    def shape(manifest: Manifest, window_s: float) -> Tuple[int, ...]:
        """(n_samples,) of one clip in a window."""
        return (window_samples(window_s, manifest["audio"]["sample_rate_hz"]),)


def normalise(audio: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance of one clip, (n_samples,) to float32 of the same shape; silence becomes zeros.

    Source: transformers' Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm.
    """
    wide = np.asarray(audio, dtype=np.float64)
    return ((wide - wide.mean()) / np.sqrt(wide.var() + VARIANCE_FLOOR)).astype(np.float32)


def feature_shape(manifest: Manifest, window_s: float) -> Tuple[int, ...]:
    """Shape of one clip's features in a window, by the manifest's features.kind."""
    shape: Tuple[int, ...] = FEATURES[manifest["features"]["kind"]].shape(manifest, window_s)
    return shape


def n_outputs(n_samples: int, kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Steps that a stack of convolutions without padding makes of n_samples: (n - kernel) // stride + 1 each."""
    for kernel, stride in zip(kernels, strides):
        n_samples = max(0, (n_samples - kernel) // stride + 1)
    return n_samples


FEATURES: Dict[str, Any] = {"log-mel": LogMelFeatures, "waveform": WaveformFeatures}
