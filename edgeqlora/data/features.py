"""Log-mel features of the model's own extractor, and the normalisations of models that read raw audio."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeqlora.data.audio import SAMPLE_RATE_HZ, Audio
from edgeqlora.errors import UserError
from edgeqlora_jetson.files import read_json, write_json

# Added to a variance before the root, as transformers' Wav2Vec2FeatureExtractor does.
VARIANCE_FLOOR = 1e-7
NORMALISER_SCHEMA = "edgeqlora.normaliser/1"


class MelExtractor:
    """Log-mel of a `transformers.WhisperFeatureExtractor`, for windows other than its 30 s.

    The extractor's own code computes the features, so that they are exactly what the model was trained on;
    only the length to which audio is padded or cut changes.

    Raises UserError if the extractor works at another rate than our 16 kHz.
    """

    def __init__(self, feature_extractor: Any) -> None:
        self.sample_rate_hz = int(feature_extractor.sampling_rate)
        if self.sample_rate_hz != SAMPLE_RATE_HZ:
            raise UserError(
                f"the model's feature extractor works at {self.sample_rate_hz} Hz, "
                f"EdgeQLoRA at {SAMPLE_RATE_HZ} Hz: choose a Whisper model"
            )
        self.hop_length = int(feature_extractor.hop_length)
        self.n_mels = int(feature_extractor.feature_size)
        self._extractor = feature_extractor

    @property
    def settings(self) -> str:
        """Everything that changes the features, as text for a cache key."""
        fields = (
            "feature_size",
            "sampling_rate",
            "hop_length",
            "n_fft",
            "dither",
            "padding_value",
            "do_normalize",
        )
        values: dict[str, Any] = {field: getattr(self._extractor, field, None) for field in fields}
        values["class"] = type(self._extractor).__name__
        return json.dumps(values, sort_keys=True)

    def n_frames(self, window_s: float) -> int:
        """Frames in a window: 100 per second. UserError unless that is an even whole number.

        The encoder's second convolution halves the frames, hence even.
        """
        frames = window_s * self.sample_rate_hz / self.hop_length
        whole = round(frames)
        if whole < 2 or whole % 2 or abs(frames - whole) > 1e-6:
            frame_s = self.hop_length / self.sample_rate_hz
            near = max(2, 2 * math.ceil(frames / 2)) * frame_s
            raise UserError(
                f"window_s={window_s:g} must be a multiple of {2 * frame_s:g} s, at least one: try {near:g}"
            )
        return whole

    def n_valid_frames(self, n_samples: int, window_s: float) -> int:
        """Frames that hold some of the clip's samples rather than padding alone."""
        return min(self.n_frames(window_s), math.ceil(n_samples / self.hop_length))

    def mel(self, audio: Audio, window_s: float) -> npt.NDArray[np.float32]:
        """Compute the log-mel of audio of shape (n_samples,), zero-padded or cut to the window.

        Returns float32 of shape (n_mels, n_frames), n_frames = 100 * window_s.
        """
        n_frames = self.n_frames(window_s)
        with _one_thread():
            features = self._extractor(
                audio,
                sampling_rate=self.sample_rate_hz,
                padding="max_length",
                max_length=n_frames * self.hop_length,
                truncation=True,
                return_tensors="np",
            )
        mel = np.ascontiguousarray(features["input_features"][0], dtype=np.float32)
        assert mel.shape == (self.n_mels, n_frames), f"extractor gave {mel.shape}"
        return mel


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to one thread for a clip's log-mel.

    The work is too small to share: on a 2-core machine that is also busy elsewhere, a 2 s clip takes 4.5 ms
    with two threads, which wait for each other, and 0.8 ms with one.
    """
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def normalise_utterance(audio: Audio) -> Audio:
    """Shift and scale one utterance to zero mean and unit variance, as Wav2Vec2 models expect.

    Shape (n_samples,) in and out. Give the clip without padding: zeros would change both figures. A silent
    clip becomes all zeros. Source: transformers' `Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm`.
    """
    wide = audio.astype(np.float64)
    return ((wide - wide.mean()) / math.sqrt(wide.var() + VARIANCE_FLOOR)).astype(np.float32)


@dataclass(frozen=True)
class DatasetNormaliser:
    """Mean and variance of each feature over a training set, applied alike to every split."""

    mean: npt.NDArray[np.float64]
    """Mean of each feature, shape (n_features,)."""
    variance: npt.NDArray[np.float64]
    """Population variance of each feature, shape (n_features,)."""
    n_frames: int
    """Frames the two were computed over."""

    @classmethod
    def fit(cls, features: Iterable[npt.NDArray[np.floating[Any]]]) -> DatasetNormaliser:
        """Compute the statistics in one pass over arrays of shape (n_features, n_frames), padding left out.

        Sums are merged clip by clip in float64 (Chan, Golub and LeVeque 1979), so that long training sets
        lose no digits. Raises UserError when there is not one frame.
        """
        count = 0
        mean = squares = np.zeros(0)
        for clip in features:
            wide = np.asarray(clip, dtype=np.float64)
            n = wide.shape[1]
            if n == 0:
                continue
            clip_mean = wide.mean(axis=1)
            clip_squares = ((wide - clip_mean[:, None]) ** 2).sum(axis=1)
            if count == 0:
                count, mean, squares = n, clip_mean, clip_squares
                continue
            shift = clip_mean - mean
            squares = squares + clip_squares + shift**2 * (count * n / (count + n))
            mean = mean + shift * (n / (count + n))
            count += n
        if count == 0:
            raise UserError("data-set normalisation needs at least one frame of audio: the training set gave none")
        return cls(mean=mean, variance=squares / count, n_frames=count)

    def apply(self, features: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
        """Normalise features of shape (n_features, n_frames) to zero mean and unit variance over the set."""
        if features.shape[0] != self.mean.size:
            raise UserError(
                f"features have {features.shape[0]} rows, the normaliser {self.mean.size}: fit it on the same features"
            )
        scale = 1.0 / np.sqrt(self.variance + VARIANCE_FLOOR)
        return ((features - self.mean[:, None]) * scale[:, None]).astype(np.float32)

    def save(self, path: str | Path) -> None:
        """Write the statistics as JSON."""
        write_json(
            str(path),
            {
                "schema": NORMALISER_SCHEMA,
                "n_frames": self.n_frames,
                "mean": self.mean.tolist(),
                "variance": self.variance.tolist(),
            },
        )

    @classmethod
    def load(cls, path: str | Path) -> DatasetNormaliser:
        """Read what `save` wrote; UserError when it is anything else."""
        fields = read_json(str(path), "normaliser")
        try:
            mean = np.array(fields["mean"], dtype=np.float64)
            variance = np.array(fields["variance"], dtype=np.float64)
            valid = (
                fields["schema"] == NORMALISER_SCHEMA
                and mean.ndim == 1
                and mean.shape == variance.shape
                and bool(np.isfinite(mean).all() and np.isfinite(variance).all() and (variance >= 0).all())
            )
            n_frames = int(fields["n_frames"])
        except (KeyError, TypeError, ValueError):
            valid = False
        if not valid:
            raise UserError(f"{path} is not a normaliser of schema {NORMALISER_SCHEMA}: fit and save it again")
        return cls(mean=mean, variance=variance, n_frames=n_frames)
