"""The helper that runs on the other machine, as a process of its own on every Python a board has."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeqlora.remote import far as far_module
from edgeqlora.remote.far import end_group, hash_of

FAR = Path(far_module.__file__)
PYTHONS = Path(__file__).resolve().parents[3] / ".venv-pythons"
BLOCK = 1 << 10


class Helper:
    """far.py running, talked to as farcall.py does."""

    def __init__(self, python: str = sys.executable, silence_s: float = 120.0):
        program = (
            f"import sys; names = dict(__name__='far'); exec(open({str(FAR)!r}).read(), names); "
            f"names['SILENCE_S'] = {silence_s}; names['Far']().serve()"
        )
        self.process = subprocess.Popen(
            [python, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self.read() == {"ready": far_module.READY}

    def read(self) -> dict:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def send(self, op: str, **arguments: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"op": op, **arguments}).encode() + b"\n")

    def ask(self, op: str, **arguments: object) -> dict:
        self.send(op, **arguments)
        return self.read()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


@pytest.fixture
def helper():
    helper = Helper()
    yield helper
    helper.close()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_dead(pid: int, seconds: float) -> bool:
    deadline_s = time.monotonic() + seconds
    while time.monotonic() < deadline_s:
        if not is_alive(pid):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("version", ["3.6", "3.8", "3.10", "3.12"])
def test_every_python_of_a_board_can_run_it(version: str, tmp_path: Path):
    python = PYTHONS / version / "bin" / "python"
    if not python.exists():
        pytest.skip(f"needs Python {version} (make test-pythons makes it)")
    helper = Helper(str(python))
    facts = helper.ask("look", folder=str(tmp_path / "not" / "yet"))["reply"]
    assert facts["python"].startswith(version + ".")
    assert facts["existing"] == str(tmp_path)
    assert facts["is_writable"]
    assert facts["free_bytes"] > 0
    assert "version" in facts["modules"]["numpy"]
    (tmp_path / "a.part").write_bytes(b"abc")
    assert helper.ask("commit", folder=str(tmp_path), name="a", sha256=sha256(b"abc"))["reply"]["done"]
    helper.send("run", argv=[str(python), "-c", "import sys; print('out'); sys.exit(5)"], folder=str(tmp_path))
    assert helper.read() == {"line": "out", "stream": "out"}
    assert helper.read() == {"reply": {"code": 5}}
    helper.close()


def test_a_relative_folder_starts_in_the_home_folder(helper: Helper):
    assert helper.ask("look", folder="~/x")["reply"]["folder"] == str(Path.home() / "x")
    assert helper.ask("look", folder="x")["reply"]["folder"] == str(Path.home() / "x")


def test_survey_tells_same_missing_changed_and_half(helper: Helper, tmp_path: Path):
    data = os.urandom(3 * BLOCK + 7)
    files = {name: {"bytes": len(data), "sha256": sha256(data)} for name in ("same", "changed", "sub/half", "none")}
    (tmp_path / "same").write_bytes(data)
    (tmp_path / "changed").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "half.part").write_bytes(data[: 2 * BLOCK + 5])
    (tmp_path / "none.part").write_bytes(data + b"more")  # longer than the whole: of another file
    answer = helper.ask("survey", folder=str(tmp_path), files=files, block=BLOCK)["reply"]
    nothing = {"state": "missing", "part_bytes": 0, "part_sha256": None}
    assert answer == {
        "same": {"state": "same"},
        "changed": nothing,
        "sub/half": {"state": "missing", "part_bytes": 2 * BLOCK, "part_sha256": sha256(data[: 2 * BLOCK])},
        "none": nothing,
    }


def test_prepare_takes_the_manifest_away_first(helper: Helper, tmp_path: Path):
    (tmp_path / "manifest.json").write_text("{}")
    helper.ask("prepare", folder=str(tmp_path), names=["a/b/c", "manifest.json"], manifest="manifest.json")
    assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "manifest.json").exists()


def test_a_part_with_the_wrong_hash_is_thrown_away(helper: Helper, tmp_path: Path):
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a.part").write_bytes(b"wrong")
    reply = helper.ask("commit", folder=str(tmp_path), name="a", sha256=sha256(b"right"))["reply"]
    assert reply == {"done": False, "found": sha256(b"wrong")}
    assert (tmp_path / "a").read_bytes() == b"old"
    assert not (tmp_path / "a.part").exists()


def test_only_one_bench_at_a_time_in_a_folder(helper: Helper, tmp_path: Path):
    folder = str(tmp_path / "bundle")
    assert helper.ask("take", folder=folder, wait_s=0) == {"reply": None}
    second = Helper()
    error = second.ask("take", folder=folder, wait_s=0.1)["error"]
    assert f"busy: another bench (helper process {helper.process.pid} there) uses {folder}" in error
    second.send("take", folder=folder, wait_s=10)
    helper.process.kill()
    assert second.read() == {"reply": None}
    second.close()


def test_errors_of_the_file_system_are_said(helper: Helper, tmp_path: Path):
    (tmp_path / "file").write_text("")
    error = helper.ask("take", folder=str(tmp_path / "file" / "x"), wait_s=0)["error"]
    assert error == f"{tmp_path / 'file' / 'x'}: Not a directory"
    assert helper.ask("run", argv=["/no/such/program"], folder=str(tmp_path))["error"].startswith("/no/such/program: ")


RUNNER = (
    "import subprocess, sys, time; c = subprocess.Popen(['sleep', '600']); "
    "print(c.pid, flush=True); print('on stderr', file=sys.stderr, flush=True); time.sleep(600)"
)


def start_runner(helper: Helper, folder: Path) -> tuple[int, int]:
    """A program with a child of its own: their process ids."""
    helper.send("run", argv=[sys.executable, "-c", RUNNER], folder=str(folder))
    lines = {message["stream"]: message["line"] for message in (helper.read(), helper.read())}
    assert lines["err"] == "on stderr"
    child = int(lines["out"])
    runner = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
    assert is_alive(runner)
    return runner, child


def test_the_runner_and_its_children_end_when_the_link_closes(helper: Helper, tmp_path: Path):
    runner, child = start_runner(helper, tmp_path)
    helper.close()
    assert not is_alive(runner)
    assert not is_alive(child)


def test_the_runner_ends_when_nothing_is_heard(tmp_path: Path):
    """A pulled cable closes nothing: only silence tells. While empty lines come, it goes on."""
    helper = Helper(silence_s=2.0)
    runner, child = start_runner(helper, tmp_path)
    for _ in range(12):
        helper.process.stdin.write(b"\n")
        time.sleep(0.2)
    assert is_alive(runner)
    assert wait_until_dead(runner, 60)
    assert wait_until_dead(child, 60)
    helper.process.wait(60)
    helper.close()


def test_a_stubborn_program_is_killed(monkeypatch: pytest.MonkeyPatch):
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    child.stdout.readline()
    monkeypatch.setattr(far_module, "ENDINGS", ((signal.SIGINT, 0.2), (signal.SIGTERM, 10.0)))
    end_group(child)
    assert child.returncode == -signal.SIGTERM
    child.stdout.close()


def test_a_child_that_outlives_the_runner_does_not_hold_things_up(helper: Helper, tmp_path: Path):
    code = "import subprocess; c = subprocess.Popen(['sleep', '600']); print(c.pid)"
    helper.send("run", argv=[sys.executable, "-c", code], folder=str(tmp_path))
    child = int(helper.read()["line"])
    assert helper.read() == {"reply": {"code": 0}}
    assert wait_until_dead(child, 60)


def test_programs_of_the_system_are_found(helper: Helper, tmp_path: Path):
    code = "import os; print(os.environ['PATH'])"
    helper.send("run", argv=[sys.executable, "-c", code], folder=str(tmp_path))
    assert "/usr/sbin" in helper.read()["line"].split(":")
    helper.read()


def test_long_and_broken_lines_pass(helper: Helper, tmp_path: Path):
    code = "import sys; sys.stdout.buffer.write(b'\\xff' + b'x' * 5000 + b'\\nlast without end')"
    helper.send("run", argv=[sys.executable, "-c", code], folder=str(tmp_path))
    assert helper.read()["line"] == "\ufffd" + "x" * (far_module.MAX_LINE - 1)
    assert helper.read() == {"line": "last without end", "stream": "out"}
    assert helper.read() == {"reply": {"code": 0}}


def test_a_defect_is_an_answer_not_a_hang(helper: Helper):
    assert "the helper failed: AttributeError" in helper.ask("no_such_thing")["error"]


def test_hash_of_a_prefix(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"abcdef")
    assert hash_of(str(tmp_path / "a"), 3) == sha256(b"abc")
    assert hash_of(str(tmp_path / "a")) == sha256(b"abcdef")
