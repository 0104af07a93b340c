"""The feature cache never serves wrong features."""

import errno
import logging
import os
import shlex
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from transformers import WhisperFeatureExtractor
from typer.testing import CliRunner

from edgeqlora.cli.main import app
from edgeqlora.data import cache, dataset
from edgeqlora.data.cache import FeatureCache, default_cache_folder, entries_of, read_cached, write_cached
from edgeqlora.data.row import Row
from edgeqlora.errors import UserError
from edgeqlora.models.whisper.processor import WhisperProcessor


def processor(feature_extractor) -> WhisperProcessor:
    """A processor around an extractor, with the sizes of whisper-tiny.en."""
    config = SimpleNamespace(
        max_source_positions=1500,
        vocab_size=51864,
        max_target_positions=448,
        num_mel_bins=feature_extractor.feature_size,
    )
    tokenizer = SimpleNamespace(eos_token_id=50256, get_vocab=dict)
    return WhisperProcessor("tiny", tokenizer, feature_extractor, config, SimpleNamespace(eos_token_id=50256))


@pytest.fixture(scope="module")
def extractor() -> WhisperProcessor:
    return processor(WhisperFeatureExtractor(feature_size=80))


def noise(n_samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, n_samples).astype(np.float32)


@pytest.fixture
def row(tmp_path) -> Row:
    soundfile.write(tmp_path / "a.wav", noise(8000), 16000)
    return Row(str(tmp_path / "a.wav"), "x")


def test_cache_serves_the_same_features(extractor, row, tmp_path):
    first = FeatureCache(extractor, tmp_path / "cache")
    mel = first.features(row, 1.0)
    second = FeatureCache(extractor, tmp_path / "cache")
    np.testing.assert_array_equal(second.features(row, 1.0), mel)
    assert (first.n_read, first.n_computed, second.n_read, second.n_computed) == (0, 1, 1, 0)
    np.testing.assert_array_equal(FeatureCache(extractor).features(row, 1.0), mel)
    stored = np.load(next((tmp_path / "cache").rglob("*.npy")), allow_pickle=False)
    np.testing.assert_array_equal(stored, mel)


def test_cache_key_follows_everything_that_changes_features(extractor, row, tmp_path):
    mels = FeatureCache(extractor, tmp_path / "cache")
    wide = FeatureCache(processor(WhisperFeatureExtractor(feature_size=128)), tmp_path / "cache")
    content = (tmp_path / "a.wav").read_bytes()
    same = Row("in memory", "other text", read_bytes=partial(bytes, content))
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
    mels = FeatureCache(extractor, tmp_path / "cache")
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
    mels = FeatureCache(extractor, tmp_path / "cache")
    mel = mels.features(row, 1.0)
    path = next((tmp_path / "cache").rglob("*.npy"))
    path.write_bytes(damage(path.read_bytes()))
    np.testing.assert_array_equal(mels.features(row, 1.0), mel)
    assert mels.n_computed == 2
    mels.features(row, 1.0)
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
    mels = FeatureCache(extractor, tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        assert mels.features(row, 1.0).shape == (80, 100)
        assert mels.features(row, 2.0).shape == (80, 200)
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
        FeatureCache(extractor, tmp_path).features(Row(str(tmp_path / "gone.wav"), ""), 1.0)


def test_valid_frames_of_a_row(extractor, row):
    assert FeatureCache(extractor).n_valid_frames(row, 1.0) == 50
    assert FeatureCache(extractor).n_valid_frames(Row(row.audio, "", start=0.25), 1.0) == 25


def test_default_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "edgeqlora" / "features"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_folder() == tmp_path / "home" / ".cache" / "edgeqlora" / "features"


def test_the_bound_is_kept_and_the_oldest_used_go_first(extractor, tmp_path):
    """Features of 1 s are 32,128 bytes and a checksum: of ten, three fit in 100 kB."""
    rows = []
    for number in range(10):
        soundfile.write(tmp_path / f"{number}.wav", noise(8000, number), 16000)
        rows.append(Row(str(tmp_path / f"{number}.wav"), "x"))
    folder = tmp_path / "cache"
    mels = FeatureCache(extractor, folder, max_bytes=100_000)
    (folder / "ab").mkdir(parents=True)
    (folder / "ab" / "notes.txt").write_text("not ours")
    for number, row in enumerate(rows):
        mels.features(row, 1.0)
        mels.features(rows[0], 1.0)  # used all the time: it stays
        for path in folder.rglob("*.npy"):  # the clock of a file system may stand still for some ms
            os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**9 * (number + 1)))
        os.utime(folder / mels.key(rows[0], 1.0)[:2] / f"{mels.key(rows[0], 1.0)}.npy")
        assert sum(entry.n_bytes for entry in entries_of(folder)) <= 100_000
    kept = {path.stem for path in folder.rglob("*.npy")}
    assert mels.key(rows[0], 1.0) in kept
    assert mels.key(rows[9], 1.0) in kept
    assert mels.key(rows[1], 1.0) not in kept
    assert (folder / "ab" / "notes.txt").exists()
    small = FeatureCache(extractor, tmp_path / "small", max_bytes=1000)
    assert small.features(rows[0], 1.0).shape == (80, 100)
    assert list(entries_of(tmp_path / "small")) == []


def test_the_command_shows_and_clears_only_what_is_ours(extractor, row, tmp_path):
    folder = tmp_path / "my cache"
    FeatureCache(extractor, folder).features(row, 1.0)
    (folder / "mine.npy").write_text("x")
    done = CliRunner().invoke(app, ["cache", "--cache", str(folder)])
    assert done.exit_code == 0
    assert f"folder   {folder}\nsize     1 entries, 0.0 MiB" in done.output
    following = done.output.rsplit("Next: ", 1)[1].strip()
    assert shlex.split(following) == ["edgeqlora", "cache", "--cache", str(folder), "--clear"]
    done = CliRunner().invoke(app, shlex.split(following)[1:])
    assert done.exit_code == 0
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["mine.npy"]


def test_recordings_are_read_when_they_are_drawn_and_few_are_kept(tmp_path, monkeypatch):
    for number in range(12):
        soundfile.write(tmp_path / f"{number:02d}.wav", noise(1600, number), 16000)
    read = []
    real = dataset.load_audio
    monkeypatch.setattr(dataset, "load_audio", lambda row: read.append(row.audio) or real(row))
    recordings = dataset.load_recordings("noise", str(tmp_path))
    assert (len(recordings), read) == (12, [])
    for index in (3, 3, *range(12), 3):
        assert recordings[index].shape == (1600,)
    assert [int(path[-6:-4]) for path in read] == [3, 0, 1, 2, *range(4, 12), 3]
    assert len(recordings._kept) == dataset.Recordings.KEPT
    (tmp_path / "12.wav").write_bytes(b"no audio")
    with pytest.raises(UserError, match=r"12\.wav"):
        dataset.load_recordings("noise", str(tmp_path))
