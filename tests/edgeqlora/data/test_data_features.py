"""Log-mels equal the extractor's own; normalisations are hand-computed; the cache never serves wrong features."""

import errno
import logging

import numpy as np
import pytest
import soundfile
from transformers import WhisperFeatureExtractor

from edgeqlora.data import cache
from edgeqlora.data.cache import MelCache, default_cache_folder, read_cached, write_cached
from edgeqlora.data.features import DatasetNormaliser, MelExtractor, normalise_utterance
from edgeqlora.data.row import Row
from edgeqlora.errors import UserError


@pytest.fixture(scope="module")
def extractor() -> MelExtractor:
    return MelExtractor(WhisperFeatureExtractor(feature_size=80))


def noise(n_samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, n_samples).astype(np.float32)


def test_native_window_is_the_extractors_own_output(extractor):
    audio = noise(40000)
    own = WhisperFeatureExtractor(feature_size=80)(audio, sampling_rate=16000, return_tensors="np")
    np.testing.assert_array_equal(extractor.mel(audio, 30.0), own["input_features"][0])


@pytest.mark.parametrize("window_s", [0.02, 1.0, 2.0, 3.6])
def test_window_pads_or_cuts(extractor, window_s):
    n_samples = round(16000 * window_s)
    audio = noise(20000)
    mel = extractor.mel(audio, window_s)
    assert mel.shape == (80, round(100 * window_s))
    assert mel.dtype == np.float32
    exactly = np.pad(audio, (0, max(0, n_samples - audio.size)))[:n_samples]
    np.testing.assert_array_equal(mel, extractor.mel(exactly, window_s))


@pytest.mark.parametrize("window_s", [0.0, -2.0, 0.01, 2.01, 1.9999])
def test_window_must_be_an_even_number_of_frames(extractor, window_s):
    with pytest.raises(UserError, match=r"must be a multiple of 0.02 s, at least one: try \d"):
        extractor.mel(noise(100), window_s)


def test_valid_frames_are_those_that_hold_samples(extractor):
    assert [extractor.n_valid_frames(n, 2.0) for n in (1, 160, 161, 32000, 99999)] == [1, 1, 2, 200, 200]


def test_threads_of_torch_are_left_as_they_were(extractor):
    import torch

    before = torch.get_num_threads()
    extractor.mel(noise(100), 1.0)
    assert torch.get_num_threads() == before


def test_other_sample_rate_is_refused():
    with pytest.raises(UserError, match="works at 8000 Hz"):
        MelExtractor(WhisperFeatureExtractor(feature_size=80, sampling_rate=8000))


def test_normalise_utterance_by_hand():
    # Mean 2, variance ((1 + 0 + 1) / 3) = 2/3: -1, 0, 1 divided by 0.816497.
    np.testing.assert_allclose(
        normalise_utterance(np.array([1, 2, 3], np.float32)), [-1.2247448, 0, 1.2247448], atol=1e-6
    )
    assert not normalise_utterance(np.zeros(50, np.float32)).any()


def test_normalise_utterance_is_that_of_wav2vec2():
    from transformers import Wav2Vec2FeatureExtractor

    audio = noise(5000) + 0.1
    own = Wav2Vec2FeatureExtractor(do_normalize=True)(audio, sampling_rate=16000, return_tensors="np")
    np.testing.assert_allclose(normalise_utterance(audio), own["input_values"][0], atol=2e-6)


def test_dataset_normaliser_by_hand(tmp_path):
    # Feature 0 over both clips: 0, 2, 4 (mean 2, variance 8/3); feature 1: 5, 5, 5.
    clips = [np.array([[0.0, 2.0], [5.0, 5.0]]), np.zeros((2, 0)), np.array([[4.0], [5.0]])]
    fitted = DatasetNormaliser.fit(clips)
    np.testing.assert_allclose(fitted.mean, [2.0, 5.0])
    np.testing.assert_allclose(fitted.variance, [8 / 3, 0.0], atol=1e-12)
    assert fitted.n_frames == 3
    np.testing.assert_allclose(fitted.apply(clips[2])[:, 0], [2 / np.sqrt(8 / 3), 0.0], atol=1e-6)

    fitted.save(tmp_path / "n.json")
    again = DatasetNormaliser.load(tmp_path / "n.json")
    np.testing.assert_array_equal(again.mean, fitted.mean)
    np.testing.assert_array_equal(again.variance, fitted.variance)
    with pytest.raises(UserError, match="features have 3 rows, the normaliser 2"):
        again.apply(np.zeros((3, 4)))


def test_dataset_normaliser_keeps_digits_far_from_zero():
    clips = [1e6 + noise(8000, seed).reshape(4, -1).astype(np.float64) for seed in range(20)]
    together = np.concatenate(clips, axis=1)
    fitted = DatasetNormaliser.fit(clips)
    np.testing.assert_allclose(fitted.variance, together.var(axis=1), rtol=1e-7)


def test_dataset_normaliser_refuses_nonsense(tmp_path):
    with pytest.raises(UserError, match="at least one frame"):
        DatasetNormaliser.fit([])
    for content in ("{}", "[]", '{"schema": "edgeqlora.normaliser/1", "n_frames": 1, "mean": [1], "variance": [-1]}'):
        (tmp_path / "n.json").write_text(content)
        with pytest.raises(UserError, match="is not a normaliser"):
            DatasetNormaliser.load(tmp_path / "n.json")


@pytest.fixture
def row(tmp_path) -> Row:
    soundfile.write(tmp_path / "a.wav", noise(8000), 16000)
    return Row(str(tmp_path / "a.wav"), "x")


def test_cache_serves_the_same_features(extractor, row, tmp_path):
    first = MelCache(extractor, tmp_path / "cache")
    mel = first.mel(row, 1.0)
    second = MelCache(extractor, tmp_path / "cache")
    np.testing.assert_array_equal(second.mel(row, 1.0), mel)
    assert (first.n_read, first.n_computed, second.n_read, second.n_computed) == (0, 1, 1, 0)
    np.testing.assert_array_equal(MelCache(extractor).mel(row, 1.0), mel)
    stored = np.load(next((tmp_path / "cache").rglob("*.npy")), allow_pickle=False)
    np.testing.assert_array_equal(stored, mel)


def test_cache_key_follows_everything_that_changes_features(extractor, row, tmp_path):
    mels = MelCache(extractor, tmp_path / "cache")
    wide = MelCache(MelExtractor(WhisperFeatureExtractor(feature_size=128)), tmp_path / "cache")
    content = (tmp_path / "a.wav").read_bytes()
    same = Row("in memory", "other text", audio_bytes=content)
    keys = [
        mels.key(row, 1.0),
        mels.key(row, 2.0),
        wide.key(row, 1.0),
        mels.key(Row(row.audio, "x", start=0.1), 1.0),
        mels.key(Row(row.audio, "x", end=0.1), 1.0),
    ]
    assert len(set(keys)) == 5
    assert mels.key(same, 1.0) == keys[0], "the key is of the content, not of the name"
    soundfile.write(row.audio, noise(8001, seed=1), 16000)
    assert mels.key(row, 1.0) != keys[0], "a changed file is hashed again"


def test_each_file_is_hashed_once(extractor, row, tmp_path, monkeypatch):
    mels = MelCache(extractor, tmp_path / "cache")
    mels.key(row, 1.0)
    monkeypatch.setattr(cache.hashlib, "sha256", _counting(cache.hashlib.sha256, calls := []))
    mels.key(row, 1.0)
    assert len(calls) == 1, "only the key itself"


def _counting(function, calls):
    def counted(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return counted


@pytest.mark.parametrize(
    "damage",
    [lambda c: c[:-40], lambda c: b"", lambda c: c[:200] + bytes([c[200] ^ 1]) + c[201:], lambda c: b"x" * len(c)],
    ids=["truncated", "empty", "flipped bit", "garbage"],
)
def test_damaged_cache_file_is_computed_again(extractor, row, tmp_path, damage):
    mels = MelCache(extractor, tmp_path / "cache")
    mel = mels.mel(row, 1.0)
    path = next((tmp_path / "cache").rglob("*.npy"))
    path.write_bytes(damage(path.read_bytes()))
    np.testing.assert_array_equal(mels.mel(row, 1.0), mel)
    assert mels.n_computed == 2
    mels.mel(row, 1.0)
    assert mels.n_read == 1, "and the good one is back on disk"


def test_cache_of_another_shape_or_type_is_not_served(tmp_path):
    write_cached(tmp_path / "a.npy", np.zeros((80, 100), np.float32))
    assert read_cached(tmp_path / "a.npy", (80, 100)) is not None
    assert read_cached(tmp_path / "a.npy", (80, 200)) is None
    write_cached(tmp_path / "b.npy", np.zeros((80, 100)))
    assert read_cached(tmp_path / "b.npy", (80, 100)) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "b.npy"], "no temporary file is left"


def test_full_disk_gives_the_cache_up_with_one_warning(extractor, row, tmp_path, monkeypatch, caplog):
    def full(path, mel):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "write_cached", full)
    mels = MelCache(extractor, tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        assert mels.mel(row, 1.0).shape == (80, 100)
        assert mels.mel(row, 2.0).shape == (80, 200)
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot cache features in {tmp_path / 'cache'} (No space left on device): going on without the cache"
    ]


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def stop(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_cached(tmp_path / "a.npy", np.zeros((2, 2), np.float32))
    assert list(tmp_path.iterdir()) == []


def test_missing_audio_is_named(extractor, tmp_path):
    with pytest.raises(UserError, match=r"gone.wav cannot be read"):
        MelCache(extractor, tmp_path).mel(Row(str(tmp_path / "gone.wav"), ""), 1.0)


def test_valid_frames_of_a_row(extractor, row):
    assert MelCache(extractor).n_valid_frames(row, 1.0) == 50
    assert MelCache(extractor).n_valid_frames(Row(row.audio, "", start=0.25), 1.0) == 25


def test_default_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "edgeqlora" / "features"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_folder() == tmp_path / "home" / ".cache" / "edgeqlora" / "features"


@pytest.mark.real
def test_real_extractor(shared):
    own = WhisperFeatureExtractor.from_pretrained(shared / "models" / "whisper-tiny.en")
    row = Row(str(shared / "data/fsdd/audio/george/0_george_0.flac"), "zero")
    mel = MelCache(MelExtractor(own)).mel(row, 2.0)
    assert mel.shape == (80, 200)
    # The log-mel of a window is that of 30 s, as long as the clip's loudest cell is in it.
    audio, _ = soundfile.read(row.audio, dtype="float32")
    whole = own(audio, sampling_rate=16000, return_tensors="np")["input_features"][0]
    np.testing.assert_allclose(mel, whole[:, :200], atol=1e-5)
