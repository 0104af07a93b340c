"""Hugging Face data sets: folders and parquet read without torchcodec; names on the hub without a network."""

import io
import sys

import numpy as np
import pytest
import soundfile

from edgeqlora.data.audio import load_audio
from edgeqlora.data.manifest import describe_source, list_splits, load_rows
from edgeqlora.data.sources import hub
from edgeqlora.errors import UserError

datasets = pytest.importorskip("datasets")


def flac(n_samples: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(n_samples, 0.25), 16000, format="FLAC")
    return buffer.getvalue()


@pytest.fixture
def dataset():
    columns = {
        "audio": [{"bytes": flac(160), "path": "a.flac"}, {"bytes": flac(320), "path": None}],
        "sentence": ["one", "two"],
        "speaker_id": [7, 8],
        "locale": ["en", "de"],
    }
    plain = datasets.Dataset.from_dict(columns)
    return plain.cast_column("audio", datasets.Audio(decode=False, sampling_rate=16000))


def assert_is_the_dataset(rows):
    assert [row.text for row in rows] == ["one", "two"]
    assert [load_audio(row).size for row in rows] == [160, 320]
    assert [(row.speaker, row.language) for row in rows] == [("7", "en"), ("8", "de")]
    assert len({row.id for row in rows}) == 2


def test_saved_dataset(tmp_path, dataset):
    # Saved as most are: with decoding switched on, which would need torchcodec.
    dataset.cast_column("audio", datasets.Audio(sampling_rate=16000)).save_to_disk(tmp_path / "saved")
    assert describe_source(tmp_path / "saved") == hub.SAVED
    assert list_splits(tmp_path / "saved") == []
    assert_is_the_dataset(load_rows(tmp_path / "saved"))
    assert len(load_rows(tmp_path / "saved", limit=1)) == 1


def test_saved_dataset_dict(tmp_path, dataset):
    datasets.DatasetDict({"train": dataset, "test": dataset.select([1])}).save_to_disk(tmp_path / "saved")
    assert list_splits(tmp_path / "saved") == ["test", "train"]
    assert_is_the_dataset(load_rows(tmp_path / "saved", "train"))
    assert [row.text for row in load_rows(tmp_path / "saved", "test")] == ["two"]
    with pytest.raises(UserError, match="choose one of test, train"):
        load_rows(tmp_path / "saved")


def test_parquet_folder_and_file(tmp_path, dataset):
    (tmp_path / "data").mkdir()
    dataset.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    dataset.select([0]).to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    assert describe_source(tmp_path) == hub.PARQUET
    assert list_splits(tmp_path) == ["test", "train"]
    assert_is_the_dataset(load_rows(tmp_path, "train"))
    assert_is_the_dataset(load_rows(tmp_path / "data" / "train-00000-of-00001.parquet"))


def test_hub_name(monkeypatch, dataset):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return dataset

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, config: ["train", "dev"])
    assert list_splits("hf:owner/name:en") == ["dev", "train"]
    assert_is_the_dataset(load_rows("hf:owner/name:en", "dev"))
    assert asked == [("owner/name", "en", "dev")]


def test_hub_failures_are_told(monkeypatch):
    def fail(*_):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "get_dataset_split_names", fail)
    with pytest.raises(UserError, match=r"cannot read data set hf:owner/name: ConnectionError: no route. Check"):
        load_rows("hf:owner/name", "train")
    with pytest.raises(UserError, match="not a hub name: expected hf:owner/name"):
        load_rows("hf:", "train")


def test_datasets_not_installed(monkeypatch, tmp_path, dataset):
    dataset.save_to_disk(tmp_path / "saved")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"run pip install datasets"):
        load_rows(tmp_path / "saved")


def test_columns_and_types(tmp_path):
    datasets.Dataset.from_dict({"sound": ["a.wav"], "sentence": ["x"]}).save_to_disk(tmp_path / "no_audio")
    with pytest.raises(UserError, match=r'field "audio" is missing \(fields present: sound, sentence\)'):
        load_rows(tmp_path / "no_audio")
    datasets.Dataset.from_dict({"audio": ["a.wav"], "text": [3]}).save_to_disk(tmp_path / "number")
    with pytest.raises(UserError, match='field "text" must be text, but is 3'):
        load_rows(tmp_path / "number")
    datasets.Dataset.from_dict({"audio": [None], "text": ["x"]}).save_to_disk(tmp_path / "nothing")
    with pytest.raises(UserError, match='field "audio" is null'):
        load_rows(tmp_path / "nothing")


def test_relative_paths_are_taken_from_the_folder(tmp_path):
    datasets.Dataset.from_dict({"audio": ["clips/a.wav"], "text": ["x"]}).save_to_disk(tmp_path / "saved")
    assert load_rows(tmp_path / "saved")[0].audio == str(tmp_path / "saved/clips/a.wav")
