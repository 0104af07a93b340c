"""The training set that a data loader reads: rows to features and token ids, augmented."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeqlora.data.audio import SAMPLE_RATE_HZ, load_audio, probe
from edgeqlora.data.augment import AugmentConfig, augment_audio, augment_mel
from edgeqlora.data.batching import SampleKey
from edgeqlora.data.cache import FeatureCache
from edgeqlora.data.row import Row


class SpeechDataset:
    """Samples by SampleKey, so that augmentation depends on seed, epoch and clip and not on who asks or when."""

    def __init__(
        self,
        rows: Sequence[Row],
        target_ids: Sequence[list[int]],
        cache: FeatureCache,
        augment: AugmentConfig,
        noises: Sequence[np.ndarray] = (),
        rooms: Sequence[np.ndarray] = (),
        seed: int = 42,
    ):
        """rows and target_ids (text ids + eos) belong together; noises, rooms: float32 arrays of shape (n_samples,)."""
        self.rows, self.target_ids, self.cache = rows, target_ids, cache
        self.augment, self.noises, self.rooms, self.seed = augment, noises, rooms, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """{"features": float32, "n_valid": frames that hold the clip, "target_ids": list of int}."""
        row = self.rows[key.row]
        rng = np.random.default_rng([self.seed, key.epoch, key.row])
        if self.augment.changes_audio:
            audio = augment_audio(
                load_audio(row),
                rng,
                self.augment,
                self.noises,
                self.rooms,
                max_samples=round(key.window_s * SAMPLE_RATE_HZ),
            )
            features = self.cache.extractor.features(audio, key.window_s)
            n_valid = self.cache.extractor.n_valid_frames(audio.size, key.window_s)
        else:
            features = self.cache.features(row, key.window_s)
            n_valid = self.cache.n_valid_frames(row, key.window_s)
        if self.augment.changes_mel:
            features = augment_mel(features, n_valid, rng, self.augment)
        return {"features": features, "n_valid": n_valid, "target_ids": self.target_ids[key.row]}


class Recordings(Sequence[np.ndarray]):
    """Noise or rooms as float32 arrays of shape (n_samples,) at 16 kHz, read when they are drawn; the last few are kept."""

    KEPT = 8

    def __init__(self, rows: Sequence[Row]):
        self.rows = rows
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if index not in self._kept:
            self._kept[index] = load_audio(self.rows[index])
        self._kept.move_to_end(index)
        if len(self._kept) > self.KEPT:
            self._kept.popitem(last=False)
        return self._kept[index]


def load_recordings(setting: str, source: str) -> Recordings:
    """Recordings of a manifest or a folder of audio files; none for "".

    setting: its name, for the message. Raises UserError for a folder without audio files, and for a file whose header
    cannot be read.
    """
    if not source:
        return Recordings([])
    from edgeqlora.data.manifest import load_rows
    from edgeqlora.errors import UserError

    path = Path(source)
    if path.is_dir() and not any(path.glob("*.jsonl")):
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in {".wav", ".flac", ".ogg", ".mp3"})
        if not files:
            raise UserError(
                f"{setting}={source!r}: no wav, flac, ogg or mp3 file in this folder; give another one, or a manifest"
            )
        rows = [Row(audio=str(file), text="") for file in files]
    else:
        rows = load_rows(source)
    for row in rows:
        probe(row)
    return Recordings(rows)
