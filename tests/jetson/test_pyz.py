"""The runner as one file: same bytes each time, runs from inside a bundle without anything installed."""

import json
import os
import subprocess
import sys
import zipfile

import pytest

from edgeqlora_jetson.pyz import PYZ_NAME, build_pyz, find_pyz


def run(folder, *args):
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    process = subprocess.Popen(
        [sys.executable, PYZ_NAME] + list(args), cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = process.communicate()
    return process.returncode, out.decode("utf-8"), err.decode("utf-8")


def test_same_bytes_each_time(tmp_path):
    build_pyz(tmp_path / "a.pyz")
    build_pyz(tmp_path / "b.pyz")
    data = (tmp_path / "a.pyz").read_bytes()
    assert data == (tmp_path / "b.pyz").read_bytes()
    assert data.startswith(b"#!/usr/bin/env python3\n")
    assert os.access(str(tmp_path / "a.pyz"), os.X_OK)
    with zipfile.ZipFile(str(tmp_path / "a.pyz")) as archive:
        names = archive.namelist()
        assert names == sorted(names)
        assert "edgeqlora_jetson/runtimes/onnxruntime.py" in names
        assert [name for name in names if not name.endswith(".py")] == ["edgeqlora_jetson/board/boards.json"]
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_the_board_table_is_read_from_inside_the_archive(tmp_path):
    build_pyz(tmp_path / PYZ_NAME)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import json, pkgutil, edgeqlora_jetson\n"
        "assert edgeqlora_jetson.__file__.startswith(sys.argv[1])\n"
        "print(len(json.loads(pkgutil.get_data('edgeqlora_jetson.board', 'boards.json').decode('utf-8'))['boards']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / PYZ_NAME)], cwd=str(tmp_path), stdout=subprocess.PIPE
    )
    out, _ = process.communicate()
    assert process.returncode == 0
    assert int(out) == 16


def test_from_a_folder_there_is_no_pyz():
    assert find_pyz() is None


def test_info_without_anything_installed(bundle_copy):
    build_pyz(os.path.join(bundle_copy, PYZ_NAME))
    code, out, err = run(bundle_copy, "info")
    assert (code, err) == (0, "")
    assert "tiny-fixture" in out
    assert "Next: python3 {} transcribe speech.wav\n".format(PYZ_NAME) in out


def test_transcribe_and_bench_take_the_bundle_around_them(bundle_copy, expected, tmp_path):
    pytest.importorskip("onnxruntime")
    build_pyz(os.path.join(bundle_copy, PYZ_NAME))
    code, out, _ = run(bundle_copy, "transcribe", os.path.join("eval", "0001.wav"))
    assert (code, out) == (0, expected["texts"][1] + "\n")
    code, out, _ = run(bundle_copy, "bench", "--repeats", "1", "--output", str(tmp_path / "report.json"))
    assert code == 0
    with open(str(tmp_path / "report.json"), encoding="utf-8") as file:
        assert [row["hypothesis"] for row in json.load(file)["utterances"]] == expected["texts"]
