"""The log-mel spectrogram equals transformers' feature extractor, at a fraction of the work for short clips."""

import json
import os

import numpy as np
import pytest

from edgeqlora_jetson.audio.load import load_audio
from edgeqlora_jetson.audio.logmel import LogMel


def triangles(n_mels=16):
    """Plain triangular filters, 12 bins apart: float32 (201, n_mels)."""
    bins = np.arange(201)[:, np.newaxis]
    return np.clip(1.0 - np.abs(bins - 12.0 * (np.arange(n_mels) + 1)) / 12.0, 0.0, None).astype(np.float32)


def slow_log_mel(filters, audio, n_frames):
    """The definition, frame by frame, nothing left out."""
    padded = np.zeros(n_frames * 160)
    padded[: len(audio)] = audio[: n_frames * 160]
    padded = np.pad(padded, (200, 200), mode="reflect")
    window = np.hanning(401)[:400]
    power = [np.abs(np.fft.rfft(padded[160 * t : 160 * t + 400] * window)) ** 2 for t in range(n_frames)]
    log = np.log10(np.maximum(np.array(power).dot(filters).T, 1e-10))
    return (np.maximum(log, log.max() - 8.0) + 4.0) / 4.0


@pytest.mark.parametrize("n_samples", [1, 100, 199, 200, 201, 359, 360, 361, 7000, 7839, 7840, 7999, 8000, 9000])
def test_equals_the_definition_at_every_edge(n_samples):
    """Clips shorter than a frame, ending at frame borders, just below, at and beyond the window of 50 frames."""
    audio = np.random.RandomState(n_samples).uniform(-0.5, 0.5, n_samples).astype(np.float32)
    log_mel = LogMel(triangles())(audio, 50)
    assert log_mel.dtype == np.float32
    assert log_mel.shape == (16, 50)
    assert np.abs(log_mel - slow_log_mel(triangles(), audio, 50)).max() < 1e-5


def test_silence_and_nothing():
    """log10(1e-10) = -10, (-10 + 4) / 4 = -1.5."""
    log_mel = LogMel(triangles())
    assert (log_mel(np.zeros(5000), 50) == -1.5).all()
    assert (log_mel(np.zeros(0), 50) == -1.5).all()


def test_a_tone_lands_in_its_band():
    """Filter 5 (from 0) peaks at bin 72 of 201, 40 Hz a bin: 2880 Hz."""
    tone = 0.5 * np.sin(2 * np.pi * 2880 * np.arange(16000) / 16000.0)
    assert LogMel(triangles())(tone, 100)[:, 50].argmax() == 5


def test_wrong_filters_and_windows():
    with pytest.raises(ValueError, match=r"shape \(80, 201\), needed \(201, n_mels\)"):
        LogMel(np.zeros((80, 201)))
    with pytest.raises(ValueError, match="n_frames=1 is shorter"):
        LogMel(triangles())(np.zeros(10), 1)


@pytest.fixture(scope="module")
def extractor():
    transformers = pytest.importorskip("transformers")
    return transformers.WhisperFeatureExtractor(feature_size=80)


def assert_equals_transformers(extractor, audio):
    theirs = extractor(audio, sampling_rate=16000, return_tensors="np")["input_features"][0]
    ours = LogMel(extractor.mel_filters)(audio, 3000)
    assert np.abs(ours - theirs).max() < 1e-4


@pytest.mark.parametrize("n_samples", [160, 3000, 16000, 479999, 480000, 500000])
def test_equals_transformers_on_noise(extractor, n_samples):
    random = np.random.RandomState(1)
    assert_equals_transformers(extractor, (random.randn(n_samples) * 0.1).astype(np.float32))


def test_equals_transformers_on_silence_and_clicks(extractor):
    assert_equals_transformers(extractor, np.zeros(16000, dtype=np.float32))
    click = np.zeros(16000, dtype=np.float32)
    click[[0, 8000, 15999]] = 1.0
    assert_equals_transformers(extractor, click)


@pytest.mark.real
def test_equals_transformers_on_speech(extractor, shared):
    pytest.importorskip("soundfile")
    for name in ("fsdd", "librispeech-sample", "misc-sentences"):
        folder = str(shared / "data" / name)
        with open(os.path.join(folder, "manifest.jsonl")) as file:
            rows = [json.loads(line) for line in file][::25][:8]
        for row in rows:
            assert_equals_transformers(extractor, load_audio(os.path.join(folder, row["audio"])))
