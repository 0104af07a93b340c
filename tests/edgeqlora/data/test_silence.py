"""Cutting silence: which samples stay, where they were, and what Silero VAD hears in speech, noise and nothing."""

import dataclasses
import itertools
import sys

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeqlora.data import silence
from edgeqlora.data.audio import load_audio, probe
from edgeqlora.data.cache import FeatureCache
from edgeqlora.data.manifest import load_rows
from edgeqlora.data.row import Row
from edgeqlora.data.silence import TimeMap, find_speech, ranges_to_keep, without_silence
from edgeqlora.demo import model_dir
from edgeqlora.errors import UserError
from edgeqlora.models.family import load_processor

SPEECH = model_dir().with_name("speech")
MARGIN = 3200
"""0.2 s in samples."""


@st.composite
def clips_with_speech(draw):
    """(number of samples, speech ranges in order and apart)."""
    edges = sorted(draw(st.sets(st.integers(0, 60_000), max_size=12)))
    edges = edges[: len(edges) // 2 * 2]
    n_samples = max(edges[-1] if edges else 1, draw(st.integers(1, 70_000)))
    return n_samples, list(zip(edges[::2], edges[1::2], strict=True))


def heard(ranges, n_samples):
    mask = np.zeros(n_samples, dtype=bool)
    for start, end in ranges:
        mask[start:end] = True
    return mask


@given(clips_with_speech())
def test_no_speech_is_lost_and_no_silence_is_longer_than_it_may_be(clip):
    n_samples, speech = clip
    kept = ranges_to_keep(speech, n_samples)
    assert all(0 <= start < end <= n_samples for start, end in kept)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(kept))
    said, stays = heard(speech, n_samples), heard(kept, n_samples)
    assert not (said & ~stays).any()
    silences = np.flatnonzero(np.diff(np.concatenate([[1], said[stays], [1]])))
    assert all(end - start <= 2 * MARGIN for start, end in zip(silences[::2], silences[1::2], strict=True))
    # What is cut away is farther than 0.2 s from any speech.
    near = heard([(max(start - MARGIN, 0), min(end + MARGIN, n_samples)) for start, end in speech], n_samples)
    assert (near == stays).all()


@given(clips_with_speech().filter(lambda clip: clip[1]))
def test_every_kept_sample_leads_to_the_recording_and_back(clip):
    n_samples, speech = clip
    kept = ranges_to_keep(speech, n_samples)
    recording = np.arange(n_samples)
    audio = np.concatenate([recording[start:end] for start, end in kept])
    times = TimeMap(kept)
    assert audio.size <= n_samples
    places = [*range(0, audio.size, 97), audio.size - 1]
    there = [times.to_recording(i) for i in places]
    assert there == [audio[i] for i in places]
    assert [times.to_cut(sample) for sample in there] == places
    ends = [times.to_recording(i + 1, is_end=True) for i in places]
    assert ends == [audio[i] + 1 for i in places]
    back = [times.to_cut(sample) for sample in range(0, n_samples + 1, 53)]
    assert back == sorted(back)
    assert (back[0], times.to_cut(n_samples)) == (0, audio.size)


def test_a_map_by_hand():
    """3 s: speech from 1 to 1.2 s and from 2 to 2.4 s; kept are 0.8 to 1.4 s and 1.8 to 2.6 s."""
    kept = ranges_to_keep([(16_000, 19_200), (32_000, 38_400)], 48_000)
    assert kept == ((12_800, 22_400), (28_800, 41_600))
    times = TimeMap(kept)
    assert times.to_recording(3_200) == 16_000
    assert (times.to_recording(9_600), times.to_recording(9_600, is_end=True)) == (28_800, 22_400)
    assert (times.to_recording(10**6), times.to_recording(-5)) == (41_600, 12_800)
    assert [times.to_cut(sample) for sample in (0, 12_800, 25_000, 28_800, 48_000)] == [0, 0, 9_600, 9_600, 22_400]


def test_speech_between_silences_is_found_and_silence_and_noise_are_none():
    rng = np.random.default_rng(0)
    hush = (0.0005 * rng.standard_normal(48_000)).astype(np.float32)
    for row in load_rows(SPEECH / "dev.jsonl", limit=8):
        word = load_audio(row)
        speech = find_speech(np.concatenate([hush, word, hush]))
        assert speech, row.name
        assert speech[0][0] >= 48_000 - 1_600, row.name
        assert speech[-1][1] <= 48_000 + word.size + 1_600, row.name
    for nothing in (
        hush,
        np.zeros(16_000, np.float32),
        (0.1 * rng.standard_normal(80_000)).astype(np.float32),
        hush[:5],
    ):
        assert find_speech(nothing) == []


def test_a_word_that_fills_its_clip_is_found():
    """The detector starts without memory: without zeros before the clip it would not hear short words."""
    rows = load_rows(SPEECH / "dev.jsonl")
    cut, found = without_silence(rows)
    assert found.n_without_speech == 0
    assert found.audio_s == pytest.approx(sum(probe(row)[1] for row in rows), abs=0.01)
    assert 0 < found.kept_s <= found.audio_s
    assert all(row.kept != () for row in cut)


@pytest.mark.real
def test_real_digits_without_any_silence_are_found(shared):
    rows = load_rows(shared / "data" / "fsdd" / "test.jsonl")
    found = without_silence(rows[::3])[1]
    assert found.n_without_speech <= found.n_clips / 100


@pytest.mark.real
def test_real_noise_has_no_speech(shared):
    files = sorted((shared / "data" / "noise" / "audio").glob("*.flac"))
    cut, found = without_silence([Row(str(file), "") for file in files])
    assert (found.n_without_speech, found.kept_s, {row.kept for row in cut}) == (len(files), 0.0, {()})


def test_the_detector_leaves_torch_its_threads():
    before = torch.get_num_threads()
    silence._detector.cache_clear()
    for name in [name for name in sys.modules if name.startswith("silero_vad")]:
        del sys.modules[name]
    torch.set_num_threads(2)
    try:
        find_speech(np.zeros(16_000, np.float32))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_without_the_library_the_error_says_how_to_get_it(monkeypatch):
    silence._detector.cache_clear()
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    with pytest.raises(UserError, match=r"run pip install silero-vad, or pass --no-skip-silence"):
        without_silence([])


@pytest.fixture
def ramp(tmp_path) -> Row:
    """One second whose samples count up, so that each tells where it was; 0.5 s at 0.1 to 0.2 and 0.4 to 0.6 s are kept."""
    path = tmp_path / "ramp.wav"
    soundfile.write(path, np.arange(16_000, dtype=np.float32) / 32_768, 16_000, subtype="FLOAT")
    return Row(str(path), "", kept=((1_600, 3_200), (6_400, 9_600)))


def test_a_row_is_read_as_it_is_kept(ramp):
    audio = load_audio(ramp)
    assert (audio * 32_768).round().astype(int).tolist() == [*range(1_600, 3_200), *range(6_400, 9_600)]
    assert probe(ramp)[1] == 0.3
    nothing = dataclasses.replace(ramp, kept=())
    assert (load_audio(nothing).shape, load_audio(nothing).dtype, probe(nothing)[1]) == ((0,), np.float32, 0.0)


def test_cut_features_are_cached_apart(ramp, tmp_path):
    cache = FeatureCache(load_processor(str(model_dir())), tmp_path / "cache")
    whole = dataclasses.replace(ramp, kept=None)
    assert cache.key(ramp, 1.0) != cache.key(whole, 1.0)
    assert (cache.n_valid_frames(ramp, 1.0), cache.n_valid_frames(whole, 1.0)) == (30, 100)
    first = cache.features(ramp, 1.0)
    assert not np.array_equal(first, cache.features(whole, 1.0))
    np.testing.assert_array_equal(cache.features(ramp, 1.0), first)
    assert (cache.n_computed, cache.n_read) == (2, 1)


def test_a_clip_of_nothing_but_speech_stays_as_it_was(monkeypatch, ramp):
    row = dataclasses.replace(ramp, kept=None, duration=1.0)
    monkeypatch.setattr(silence, "find_speech", lambda audio: [(0, audio.size)])
    assert without_silence([row])[0] == [row]
    monkeypatch.setattr(silence, "find_speech", lambda audio: [(8_000, 9_000)])
    (cut,), found = without_silence([row])
    assert (cut.kept, cut.duration) == (((4_800, 12_200),), None)  # its claimed duration is no longer its own
    assert found.removed_percent == pytest.approx(100 * (1 - 7_400 / 16_000))
