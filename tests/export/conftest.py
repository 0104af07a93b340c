"""Fixtures of the export tests: the tiny model of export_tiny.py, some noise, and a merged folder."""

from pathlib import Path

import numpy as np
import pytest
from export_tiny import tiny_generation_config, tiny_tokenizer, tiny_whisper
from transformers import WhisperFeatureExtractor


@pytest.fixture(scope="session")
def whisper():
    return tiny_whisper()


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def clips():
    """Four seconds-long noises, each louder in another stretch: (audio float32 (n_samples,), text)."""
    rng = np.random.default_rng(1)
    out = []
    for i in range(4):
        audio = rng.normal(0, 0.01, 8000 + 4000 * i).astype(np.float32)
        audio[1000 * i : 1000 * i + 4000] *= 20
        out.append((np.clip(audio, -1, 1), f"clip {i}"))
    return out


@pytest.fixture(scope="session")
def merged(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("merged")
    model = tiny_whisper()
    model.generation_config = tiny_generation_config()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80, chunk_length=2).save_pretrained(folder)
    return folder
