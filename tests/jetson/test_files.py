"""Files are whole or absent; errors say what to do."""

import errno
import os
import stat
import subprocess
import sys

import numpy as np
import pytest

from edgeqlora_jetson import files
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.files import (
    atomic_folder,
    read_json,
    read_json_lines,
    sha256_file,
    verify_replaceable,
    write_bytes,
    write_json,
    write_text,
)


def fail_with(number):
    def fail(*args):
        raise OSError(number, os.strerror(number))

    return fail


def test_json_round_trip_with_numpy_numbers(tmp_path):
    path = str(tmp_path / "new folder" / "a.json")
    write_json(path, {"wer": np.float32(0.5), "n": np.int64(3), "text": "größer"})
    assert read_json(path, "report") == {"wer": 0.5, "n": 3, "text": "größer"}
    assert os.listdir(os.path.dirname(path)) == ["a.json"]


def test_written_files_follow_the_umask(tmp_path):
    old = os.umask(0o022)
    try:
        write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(str(tmp_path / "a.txt")).st_mode) == 0o644


def test_nan_is_refused(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"wer": float("nan")})
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize(
    ("number", "text"),
    [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "permission denied")],
)
def test_failed_write_leaves_the_old_file_and_says_why(tmp_path, monkeypatch, number, text):
    path = tmp_path / "report.json"
    write_text(path, "old")
    monkeypatch.setattr(files.os, "fsync", fail_with(number))
    with pytest.raises(UserError, match=r"cannot write .*report.json: .*" + text):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(str(tmp_path)) == ["report.json"]


def test_writing_onto_a_folder_says_so(tmp_path):
    with pytest.raises(UserError, match="there is a folder of that name"):
        write_bytes(tmp_path, b"x")


def test_writing_to_a_device_does_not_replace_it():
    write_text("/dev/null", "x")
    assert not os.path.isfile("/dev/null")


def test_sha256_of_known_bytes(tmp_path):
    write_bytes(tmp_path / "abc", b"abc")
    # FIPS 180-2, appendix B.1
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(UserError, match="there is no such file"):
        sha256_file(tmp_path / "no")


def test_read_json_names_what_is_wrong(tmp_path):
    path = tmp_path / "m.json"
    with pytest.raises(UserError, match=r"m.json: there is no such bundle manifest"):
        read_json(path, "bundle manifest")
    write_text(path, '{"a": 1,\n "b" 2}')
    with pytest.raises(UserError, match=r"this bundle manifest is not JSON: .*line 2"):
        read_json(path, "bundle manifest")
    write_bytes(path, b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        read_json(path, "bundle manifest")


def test_read_json_lines_numbers_lines(tmp_path):
    path = tmp_path / "m.jsonl"
    write_text(path, '{"a": "x\u2028y"}\n\n{"a": 2}\n')
    assert read_json_lines(path, "manifest") == [(1, {"a": "x\u2028y"}), (3, {"a": 2})]
    write_text(path, '{"a": 1}\n[1]\n')
    with pytest.raises(UserError, match=r"line 2: a manifest row is a JSON object, this is list"):
        read_json_lines(path, "manifest")
    write_text(path, '{"a": 1}\n{"a"\n')
    with pytest.raises(UserError, match="line 2: not JSON"):
        read_json_lines(path, "manifest")


def test_atomic_folder_appears_at_the_end(tmp_path):
    target = tmp_path / "deep" / "adapter"
    with atomic_folder(target) as folder:
        write_text(os.path.join(folder, "card.json"), "{}")
        assert not target.exists()
    assert os.listdir(str(target)) == ["card.json"]
    assert os.listdir(str(tmp_path / "deep")) == ["adapter"]


def test_atomic_folder_refuses_a_full_folder_before_any_work(tmp_path):
    target = tmp_path / "adapter"
    target.mkdir()
    write_text(target / "mine.txt", "x")
    with pytest.raises(UserError, match="exists and is not empty"), atomic_folder(target):
        pytest.fail("the block must not run")
    with pytest.raises(UserError, match="this program did not write it"), atomic_folder(target, overwrite=True):
        pytest.fail("the block must not run")
    write_json(target / "card.json", {"schema": "others/1"})
    with pytest.raises(UserError, match="this program did not write it: there is no card"):
        verify_replaceable(target)
    write_json(target / "card.json", {"schema": "edgeqlora.card/1"})
    with atomic_folder(target, overwrite=True) as folder:
        write_text(os.path.join(folder, "new.txt"), "y")
    assert os.listdir(str(target)) == ["new.txt"]
    assert os.listdir(str(tmp_path)) == ["adapter"]


@pytest.mark.parametrize("output", [".", "..", "~", "/", "link", "data", "data/.."])
def test_places_that_are_never_replaced(tmp_path, monkeypatch, output):
    """The current folder, home, root, an input, and what holds one of them, also through a link, marks or not."""
    here = tmp_path / "work" / "here"
    (here / "data").mkdir(parents=True)
    write_text(here / "data" / "train.jsonl", "{}")
    (here / "link").symlink_to(str(tmp_path / "work"))
    monkeypatch.setenv("HOME", str(tmp_path / "work"))
    for folder in (here, here / "data", tmp_path / "work"):
        write_json(folder / "card.json", {"schema": "edgeqlora.card/1"})
    monkeypatch.chdir(str(here))
    path = os.path.expanduser(output)
    with pytest.raises(UserError, match="cannot be replaced: it is or holds"):
        with atomic_folder(path, overwrite=True, inputs=["hf:a/b", "", os.path.join("data", "train.jsonl")]):
            pytest.fail("the block must not run")
    assert (here / "data" / "train.jsonl").exists()


def test_atomic_folder_failure_leaves_nothing_and_keeps_the_old(tmp_path):
    target = tmp_path / "adapter"
    target.mkdir()
    write_text(target / "old.txt", "x")
    write_json(target / "card.json", {"schema": "edgeqlora.card/1"})

    def write_half(error):
        with atomic_folder(target, overwrite=True) as folder:
            write_text(os.path.join(folder, "half.txt"), "y")
            raise error

    for error in (RuntimeError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            write_half(error)
    assert sorted(os.listdir(str(target))) == ["card.json", "old.txt"]
    assert os.listdir(str(tmp_path)) == ["adapter"]


def test_atomic_folder_full_disk_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*adapter: the disk is full"), atomic_folder(
        tmp_path / "adapter"
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "adapter"):
        open(str(tmp_path / "not there")).close()
    assert os.listdir(str(tmp_path)) == []


def test_atomic_folder_removes_what_a_killed_run_left(tmp_path):
    code = "import os, sys; from edgeqlora_jetson.files import atomic_folder; "
    code += "block = atomic_folder(sys.argv[1]); block.__enter__(); os._exit(9)"
    env = dict(os.environ, PYTHONPATH=os.path.dirname(os.path.dirname(files.__file__)))
    # os._exit: no clean-up, as after kill -9.
    assert subprocess.call([sys.executable, "-c", code, str(tmp_path / "adapter")], env=env) == 9
    assert len(os.listdir(str(tmp_path))) == 1
    with atomic_folder(tmp_path / "adapter"):
        pass
    assert os.listdir(str(tmp_path)) == ["adapter"]
