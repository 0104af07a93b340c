"""Manifests: every format comes out as the same rows, and what is wrong is said with file, line and next step."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from edgeqlora.data.manifest import Row, describe_source, list_splits, load_rows, parse_object, write_manifest
from edgeqlora.data.row import parse_row
from edgeqlora.errors import UserError


def write_lines(path: Path, *objects: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in objects), encoding="utf-8")
    return path


def test_our_manifest(tmp_path):
    path = write_lines(
        tmp_path / "train.jsonl",
        {"audio": "clips/a.wav", "text": "zero", "duration": 1.5, "speaker": 19, "language": "en", "accent": "x"},
        {"audio": "/data/b.flac", "text": "", "start": 1, "end": 2.5, "speaker": None, "id": "b-1"},
    )
    first, second = load_rows(path)
    assert first == Row(str(tmp_path / "clips/a.wav"), "zero", 1.5, "19", "en", id="clips/a.wav")
    assert second == Row("/data/b.flac", "", 1.5, start=1.0, end=2.5, id="b-1")
    assert describe_source(path) == "JSONL manifest"
    assert load_rows(path, limit=1) == [first]


def test_nemo_manifest_offset_is_a_cut(tmp_path):
    path = write_lines(
        tmp_path / "nemo.json",
        {"audio_filepath": "a.wav", "text": "whole", "duration": 3.0, "start": None},
        {"audio_filepath": "a.wav", "text": "part", "duration": 1.25, "offset": 0.5, "lang": "de"},
    )
    whole, part = load_rows(path)
    assert describe_source(path) == "NeMo manifest"
    assert (whole.start, whole.end, whole.duration) == (None, None, 3.0)
    assert (part.start, part.end, part.duration, part.language) == (0.5, 1.75, 1.25, "de")
    assert part.id == "a.wav@0.5-1.75"


def test_split_field_and_folder_of_manifests(tmp_path):
    rows = [{"audio": f"{i}.wav", "text": "x", "split": split} for i, split in enumerate(["train", "train", "dev"])]
    path = write_lines(tmp_path / "one" / "manifest.jsonl", *rows)
    assert list_splits(path) == list_splits(path.parent) == ["dev", "train"]
    assert [row.id for row in load_rows(path.parent, "train")] == ["0.wav", "1.wav"]

    write_lines(tmp_path / "many" / "train.jsonl", rows[0])
    write_lines(tmp_path / "many" / "test.jsonl", rows[2])
    with pytest.raises(UserError, match=r"2\.wav says split dev in .*test\.jsonl, the file of split test"):
        load_rows(tmp_path / "many", "test")
    write_lines(tmp_path / "many" / "test.jsonl", {**rows[2], "split": "test"})
    assert list_splits(tmp_path / "many") == ["test", "train"]
    assert [row.id for row in load_rows(tmp_path / "many", "test")] == ["2.wav"]
    with pytest.raises(UserError, match="several splits: choose one of test, train"):
        load_rows(tmp_path / "many")
    with pytest.raises(UserError, match=r"no split tset: choose one of test, train. Did you mean test"):
        load_rows(tmp_path / "many", "tset")
    with pytest.raises(UserError, match="has no splits"):
        load_rows(
            write_lines(tmp_path / "p.jsonl", {"audio": "a", "text": ""}),
            "dev",
        )


def test_librispeech_folder(tmp_path):
    for subset, speaker in (("train-clean-100", "26"), ("dev-clean", "19")):
        chapter = tmp_path / subset / speaker / "198"
        chapter.mkdir(parents=True)
        (chapter / f"{speaker}-198.trans.txt").write_text(f"{speaker}-198-0001 HELLO WORLD\n{speaker}-198-0002 AGAIN\n")
        soundfile.write(chapter / f"{speaker}-198-0001.wav", np.zeros(160), 16000)
    assert describe_source(tmp_path) == "LibriSpeech folder"
    assert list_splits(tmp_path) == ["dev-clean", "train-clean-100"]
    assert len(load_rows(tmp_path)) == 4
    first, second = load_rows(tmp_path, "dev-clean")
    assert (first.text, first.speaker, first.id) == ("HELLO WORLD", "19", "19-198-0001")
    assert first.audio.endswith("dev-clean/19/198/19-198-0001.wav")
    assert second.audio.endswith("19-198-0002.flac"), "missing audio is named as LibriSpeech names it"
    assert load_rows(tmp_path / "dev-clean") == [first, second]


COMMON_VOICE = 'client_id\tpath\tsentence\tlocale\nabc\ta.mp3\tShe said "hello\ten\nabd\tb.mp3\tJa\tde\n'


def test_common_voice_folder_and_table(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "train.tsv").write_text(COMMON_VOICE, encoding="utf-8")
    (tmp_path / "test.tsv").write_text(COMMON_VOICE.replace("a.mp3", "c.mp3"), encoding="utf-8")
    assert describe_source(tmp_path) == "Common Voice folder"
    assert list_splits(tmp_path) == ["test", "train"]
    first, second = load_rows(tmp_path, "train")
    assert first == Row(str(tmp_path / "clips/a.mp3"), 'She said "hello', speaker="abc", language="en", id="a.mp3")
    assert second.language == "de"
    assert load_rows(tmp_path / "test.tsv")[0].id == "c.mp3"
    with pytest.raises(UserError, match="choose one of test, train"):
        load_rows(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"adio": "a.wav", "text": "x"}', r'm.jsonl:2: field "audio" is missing .*Did you mean "adio"'),
        ('{"audio": "a.wav", "txet": "x"}', r'Did you mean "txet"'),
        ('{"audio": "a.wav"}', r'Add "text" to every row'),
        ('{"audio": "a.wav", "text": 5}', r'"text" must be text, but is 5: write it in double quotes'),
        ('{"audio": " ", "text": ""}', "is not a file name"),
        ('{"audio": "a\\u0000b", "text": ""}', "is not a file name"),
        ('{"audio": "a", "text": "\\ud800"}', r"m.jsonl:2: broken JSON \(it holds half a character"),
        ('{"audio": "a", "text": "", "duration": "3 s"}', r'"duration" must be a number of seconds, but is \'3 s\''),
        ('{"audio": "a", "text": "", "duration": NaN}', "must be 0 or more seconds, below 100,000,000, but is nan"),
        ('{"audio": "a", "text": "", "start": -1}', "must be 0 or more seconds, below 100,000,000, but is -1"),
        ('{"audio": "a", "text": "", "start": 2, "end": 1}', "end=1 must be greater than start=2"),
        ('{"audio": "a", "text": "", "end": 0}', "end=0 must be greater than start=0"),
        ('{"audio": "a", "text": ""', r"m.jsonl:2: broken JSON \(Expecting"),
        ('[{"audio": "a", "text": ""}]', "expected one JSON object a line, found a JSON array"),
    ],
)
def test_broken_row_is_named(tmp_path, line, message):
    path = tmp_path / "m.jsonl"
    path.write_text('{"audio": "good.wav", "text": "good"}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        load_rows(path)


def test_unreadable_sources(tmp_path):
    with pytest.raises(UserError, match="does not exist: give a manifest file"):
        load_rows(tmp_path / "nowhere.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match=r"empty.jsonl holds no rows"):
        load_rows(tmp_path / "empty.jsonl")
    (tmp_path / "sound.jsonl").write_bytes(b"RIFF\xff\xfe\x00")
    with pytest.raises(UserError, match=r"sound.jsonl:1: not UTF-8"):
        load_rows(tmp_path / "sound.jsonl")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.md").write_text("")
    with pytest.raises(UserError, match=r"not a data set we read: it holds notes.md"):
        load_rows(tmp_path / "folder")
    with pytest.raises(UserError, match="limit=0 must be 1 or more"):
        load_rows(tmp_path / "empty.jsonl", limit=0)


def test_byte_order_mark_and_unicode_line_separators(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"audio": "a", "text": "x\u2028y"}, ensure_ascii=False).encode())
    assert load_rows(path)[0].text == "x\u2028y"


def test_write_manifest_is_relative_and_reads_back(tmp_path):
    rows = [
        Row(str(tmp_path / "audio/a.wav"), "größer", 1.0, "s", "de", 0.5, 1.5, id="audio/a.wav@0.5-1.5"),
        Row(str(tmp_path / "b.wav"), "", id="named"),
    ]
    path = write_manifest(rows, tmp_path / "out" / "m.jsonl")
    first = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert first["audio"] == "../audio/a.wav"
    again = load_rows(path)
    assert [(r.audio, r.text, r.start, r.end) for r in again] == [(r.audio, r.text, r.start, r.end) for r in rows]
    assert again[1].id == "named"
    moved = (tmp_path / "out").rename(tmp_path / "out2")
    assert load_rows(moved / "m.jsonl")[0].audio == rows[0].audio


def test_audio_in_memory_is_written_beside_the_manifest(tmp_path):
    content = (b"fLaC" + b"\0" * 40, b"\xff\xfb" + b"\0" * 40)
    write_manifest(
        [Row(f"hub#{i}", "x", read_bytes=partial(bytes, data)) for i, data in enumerate(content)], tmp_path / "m.jsonl"
    )
    first, second = load_rows(tmp_path / "m.jsonl")
    assert Path(first.audio).read_bytes() == content[0]
    assert first.audio.endswith("m-audio/000000.flac")
    assert second.audio.endswith("m-audio/000001.mp3")


def test_names_in_messages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Row(str(tmp_path / "a/b.wav"), "").name == "a/b.wav"
    assert Row("/elsewhere/b.wav", "", start=1.0).name == "/elsewhere/b.wav [1 to end s]"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3)
)
field_names = st.sampled_from(
    [
        "audio",
        "audio_filepath",
        "text",
        "sentence",
        "duration",
        "start",
        "end",
        "offset",
        "end_time",
        "speaker",
        "id",
        "x",
    ]
)


def outcome(action, *arguments):
    """What an action returns, or the text of its UserError."""
    try:
        return action(*arguments)
    except UserError as error:
        return str(error)


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_line_is_an_object_or_a_user_error(line):
    found = outcome(parse_object, line, "m.jsonl:1")
    assert isinstance(found, dict) or found.startswith("m.jsonl:1")


@given(st.dictionaries(field_names, json_values | st.just(10**400)))
def test_any_object_is_a_row_or_a_user_error(fields):
    row = outcome(parse_row, fields, "m.jsonl:1", "/data")
    if isinstance(row, str):
        assert row.startswith("m.jsonl:1")
    else:
        assert row.audio.startswith("/")
        assert row.end is None or row.end > (row.start or 0.0)
        row.text.encode("utf-8")


def test_deeply_nested_line_is_no_crash():
    with pytest.raises(UserError, match="nested too deep"):
        parse_object(b"[" * 100_000, "m.jsonl:1")


@pytest.mark.real
def test_real_fsdd_manifests(shared):
    folder = shared / "data" / "fsdd"
    assert list_splits(folder) == ["dev", "test", "train"]
    rows = {split: load_rows(folder, split) for split in list_splits(folder)}
    assert {split: len(found) for split, found in rows.items()} == {"dev": 500, "test": 500, "train": 2000}
    assert len(load_rows(folder / "manifest.jsonl")) == 3000
    assert load_rows(folder / "manifest.jsonl", "test") == rows["test"]
