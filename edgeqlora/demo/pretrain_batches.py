"""Batches for pre-training, read from disk when they are needed: memory does not grow with the speech."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeqlora.demo.perturb import perturb
from edgeqlora.errors import UserError
from edgeqlora_jetson.audio.windows import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import WhisperTokenizer


class Utterance(NamedTuple):
    """A clip on disk, what is said in it, and how long it is."""

    path: Path
    text: str
    duration_s: float


def read_utterances(manifest: Path) -> list[Utterance]:
    """Rows of a manifest written by edgeqlora.demo.make_speech. Raises UserError when there are none."""
    if not manifest.is_file():
        raise UserError(f"{manifest} is not there; make it: python -m edgeqlora.demo.make_speech OUT --part pretrain")
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    if not rows:
        raise UserError(f"{manifest} has no rows; at least 1 is needed")
    return [Utterance(manifest.parent / row["audio"], row["text"], row["duration"]) for row in rows]


def bucketed_batches(
    utterances: list[Utterance], size: int, n_batches: int, seed: int, pool: int = 16
) -> Iterator[list[Utterance]]:
    """`n_batches` batches of `size` (or of all utterances, if fewer) clips of similar length, in random order.

    Every epoch is shuffled, cut into pools of `pool` batches, and sorted by duration within a pool.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    size = min(size, len(utterances))
    waiting: list[list[int]] = []
    for _ in range(n_batches):
        if not waiting:
            order = rng.permutation(len(utterances))
            for start in range(0, len(order) - size + 1, pool * size):
                chosen = sorted(order[start : start + pool * size], key=lambda i: utterances[i].duration_s)
                waiting += [chosen[i : i + size] for i in range(0, len(chosen) - size + 1, size)]
            waiting = [waiting[i] for i in rng.permutation(len(waiting))]
        yield [utterances[index] for index in waiting.pop()]


@functools.cache
def feature_extractor() -> Any:
    """Whisper's own log-mel, 80 bins."""
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=80)


def load_batch(
    batch: list[Utterance],
    tokenizer: WhisperTokenizer,
    window_s: float,
    rng: np.random.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mel (batch, 80, n_frames), labels (batch, n_tokens): <|notimestamps|> text <|endoftext|>, then -100.

    With `rng` (training) the audio is perturbed and n_frames is what the clips need, sometimes more, at most
    100 * window_s; without it nothing is random and n_frames is 100 * window_s. The text gets a leading space, the
    form in which Whisper writes a transcript.
    """
    import soundfile
    import torch

    audio = [soundfile.read(utterance.path, dtype="float32")[0] for utterance in batch]
    if rng is not None:
        audio = [perturb(rng, one) for one in audio]
        need_s = max(one.size for one in audio) / SAMPLE_RATE_HZ
        slack_s = rng.uniform(0, 0.2) if rng.random() < 0.9 else rng.uniform(0, 3)
        # Multiples of 0.1 s: an encoder position is 0.02 s.
        window_s = min(window_s, math.ceil(10 * (need_s + slack_s)) / 10)
    n_samples = round(window_s * SAMPLE_RATE_HZ)
    features = feature_extractor()(
        [one[:n_samples] for one in audio],
        sampling_rate=SAMPLE_RATE_HZ,
        padding="max_length",
        max_length=n_samples,
        return_tensors="pt",
    )
    tokens = [tokenizer(f" {utterance.text}").input_ids[1:] for utterance in batch]
    labels = torch.full((len(batch), max(map(len, tokens))), -100)
    for row, ids in enumerate(tokens):
        labels[row, : len(ids)] = torch.tensor(ids)
    return features.input_features, labels
