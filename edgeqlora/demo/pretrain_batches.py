"""Batches for pre-training, read from disk when they are needed: memory does not grow with the speech."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeqlora.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import WhisperTokenizer

SAMPLE_RATE_HZ = 16000


class Utterance(NamedTuple):
    """A clip on disk and what is said in it."""

    path: Path
    text: str


def read_utterances(manifest: Path) -> list[Utterance]:
    """Rows of a manifest written by edgeqlora.demo.make_speech. Raises UserError when there are none."""
    if not manifest.is_file():
        raise UserError(f"{manifest} is not there; make it: python -m edgeqlora.demo.make_speech OUT --part pretrain")
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    if not rows:
        raise UserError(f"{manifest} has no rows; at least 1 is needed")
    return [Utterance(manifest.parent / row["audio"], row["text"]) for row in rows]


def shuffled_batches(utterances: list[Utterance], size: int, n_batches: int, seed: int) -> Iterator[list[Utterance]]:
    """`n_batches` batches of `size` (or of all utterances, if fewer), every epoch in another order."""
    import numpy as np

    rng = np.random.default_rng(seed)
    size = min(size, len(utterances))
    order: list[int] = []
    for _ in range(n_batches):
        if len(order) < size:
            order += rng.permutation(len(utterances)).tolist()
        chosen, order = order[:size], order[size:]
        yield [utterances[index] for index in chosen]


@functools.cache
def feature_extractor() -> Any:
    """Whisper's own log-mel, 80 bins."""
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=80)


def load_batch(
    batch: list[Utterance], tokenizer: WhisperTokenizer, window_s: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mel (batch, 80, 100 * window_s), labels (batch, n_tokens): <|notimestamps|> text <|endoftext|>, then -100.

    The text gets a leading space, the form in which Whisper writes a transcript.
    """
    import soundfile
    import torch

    n_samples = round(window_s * SAMPLE_RATE_HZ)
    audio = [soundfile.read(utterance.path, dtype="float32")[0][:n_samples] for utterance in batch]
    features = feature_extractor()(
        audio, sampling_rate=SAMPLE_RATE_HZ, padding="max_length", max_length=n_samples, return_tensors="pt"
    )
    tokens = [tokenizer(f" {utterance.text}").input_ids[1:] for utterance in batch]
    labels = torch.full((len(batch), max(map(len, tokens))), -100)
    for row, ids in enumerate(tokens):
        labels[row, : len(ids)] = torch.tensor(ids)
    return features.input_features, labels
