"""Benches over SSH against real OpenSSH servers on loopback, with the real runner: copying and running."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import sshd
from remote_bundles import BENCH, BIG, FIXTURE, bench, far_folder, n_bytes, seal, wait_until_dead, with_runner

from edgeqlora.remote import HostResult, bench_hosts, format_comparison, transfer

pytest_plugins = ["remote_fixtures"]


ENDLESS = (
    "import os, subprocess, sys, time; c = subprocess.Popen(['sleep', '600']); "
    "print('started', os.getpid(), c.pid, flush=True); time.sleep(600)"
)


def test_a_bench_brings_its_report_home_and_the_next_copies_nothing(bundle: Path, server: sshd.Server, tmp_path: Path):
    expected = json.loads((FIXTURE.parent / "expected.json").read_text())
    result, said = bench(bundle, server, tmp_path)
    assert (result.ok, result.error) == (True, None)
    assert (result.copied_bytes, result.skipped_bytes) == (n_bytes(bundle), 0)
    assert result.report_path == tmp_path / server.host.replace(":", "_") / "report.json"
    assert json.loads(result.report_path.read_text()) == result.report
    assert [row["hypothesis"] for row in result.report["utterances"]] == expected["texts"]
    assert (far_folder(server) / "eval" / "0001.wav").read_bytes() == (bundle / "eval" / "0001.wav").read_bytes()
    assert not list(server.home.rglob("*.part"))
    assert all(line.startswith(server.host + ": ") for line in said)
    assert any(line.startswith(f"{server.host}: WER (basic-unicode)") for line in said)
    wer = result.report["accuracy"]["basic-unicode"]["wer"]["value"]
    assert 0 < wer < 50
    assert f"WER, %              {wer:.2f}\n" in format_comparison([result])

    again, said = bench(bundle, server, tmp_path)
    assert again.ok
    assert (again.copied_bytes, again.skipped_bytes) == (0, n_bytes(bundle))


def on_progress(monkeypatch: pytest.MonkeyPatch, call: Callable[[str, int, int], None]) -> None:
    """Have call(host, bytes that are there, bytes in all) after every block that is copied."""
    monkeypatch.setattr("edgeqlora.remote.bench._progress", lambda job, host, start_s: partial(call, host.written))


def test_of_two_hosts_one_dies_mid_copy_and_the_rerun_goes_on(
    big_bundle: Path, tmp_path: Path, no_agent: None, monkeypatch: pytest.MonkeyPatch
):
    with sshd.serve(tmp_path / "a") as a, sshd.serve(tmp_path / "b") as b:
        config = tmp_path / "config"
        config.write_text(
            "".join(
                f"Host {name}\n  HostName 127.0.0.1\n  Port {server.port}\n  IdentityFile {server.identity}\n"
                f"  UserKnownHostsFile {server.known_hosts}\n"
                for name, server in (("a", a), ("b", b))
            )
        )
        killed: list[int] = []

        def kill_b(host: str, done: int, total: int) -> None:
            if host == "b" and done > 9 << 20 and not killed:
                killed.append(done)
                b.kill_connections()

        def bench_both() -> list[HostResult]:
            return bench_hosts(
                big_bundle,
                ["a", "b"],
                BENCH,
                tmp_path / "out",
                python=sys.executable,
                config=config,
                say=lambda line: None,
            )

        on_progress(monkeypatch, kill_b)
        first = bench_both()
        assert killed
        assert (first[0].host, first[0].ok, first[0].copied_bytes) == ("a", True, n_bytes(big_bundle))
        assert (first[1].host, first[1].ok, first[1].report) == ("b", False, None)
        assert re.search(r"b: the connection was lost while copying; \d+\.\d MB of 2\d\.\d MB had", first[1].error)
        assert "run the same command again, it goes on there" in first[1].error
        assert not (far_folder(b) / "weights.bin").exists()
        assert (far_folder(b) / "weights.bin.part").stat().st_size < BIG
        # Half a copy must not be taken for a bundle.
        assert not (far_folder(b) / "manifest.json").exists()
        verdicts = next(line for line in format_comparison(first).splitlines() if line.startswith("Verdict"))
        assert "valid" in verdicts
        assert "FAILED" in verdicts

        second = bench_both()
        assert [result.ok for result in second] == [True, True]
        assert second[0].copied_bytes == 0
        # All but what was under way when the link broke is not sent again.
        assert second[1].skipped_bytes >= killed[0] - transfer.BLOCK
        assert second[1].copied_bytes == n_bytes(big_bundle) - second[1].skipped_bytes
        assert (far_folder(b) / "weights.bin").read_bytes() == (big_bundle / "weights.bin").read_bytes()


@pytest.mark.parametrize("damage", ["flipped byte", "cut short", "part of another file"])
def test_a_far_file_that_is_not_right_is_replaced(bundle: Path, server: sshd.Server, tmp_path: Path, damage: str):
    assert bench(bundle, server, tmp_path)[0].ok
    graph = far_folder(server) / "encoder.onnx"
    data = graph.read_bytes()
    if damage == "flipped byte":
        graph.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "cut short":
        graph.write_bytes(data[:1000])
    else:
        graph.rename(far_folder(server) / "encoder.onnx.part")
        (far_folder(server) / "encoder.onnx.part").write_bytes(b"x" * len(data))
    result, _ = bench(bundle, server, tmp_path)
    assert result.ok
    # The manifest, taken away first, goes there again as the last file.
    assert result.copied_bytes == len(data) + (bundle / "manifest.json").stat().st_size
    assert graph.read_bytes() == data


def test_another_export_of_that_name_sends_only_what_changed(bundle: Path, server: sshd.Server, tmp_path: Path):
    assert bench(bundle, server, tmp_path)[0].ok
    folder = tmp_path / "next"
    shutil.copytree(bundle, folder)
    (folder / "extra.json").write_text("{}")
    seal(folder)
    result, _ = bench(folder, server, tmp_path)
    assert result.ok
    assert result.copied_bytes == 2 + (folder / "manifest.json").stat().st_size
    assert (
        result.report["bundle"]["manifest_sha256"]
        == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    )


def test_a_file_that_changes_here_during_the_copy_is_noticed(
    big_bundle: Path, server: sshd.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "changing"
    shutil.copytree(big_bundle, folder)

    def change(host: str, done: int, total: int) -> None:
        if done > 4 << 20:
            with (folder / "weights.bin").open("r+b") as file:
                file.seek(-1000, os.SEEK_END)
                file.write(b"changed")

    on_progress(monkeypatch, change)
    result, _ = bench(folder, server, tmp_path)
    assert "weights.bin arrived with sha256" in result.error
    assert "it changed here during the copy" in result.error
    assert not (far_folder(server) / "manifest.json").exists()


def test_two_benches_on_one_machine_would_disturb_each_other(
    bundle: Path, server: sshd.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("edgeqlora.remote.bench._TAKE_WAIT_S", 0.2)
    # The first one runs until the second one was refused.
    refused = tmp_path / "refused"
    slow = (
        f"import json, os, sys, time; end_s = time.monotonic() + 60\n"
        f"while not os.path.exists({str(refused)!r}) and time.monotonic() < end_s: time.sleep(0.02)\n"
        "open(sys.argv[-1], 'w').write(json.dumps({'schema': 'test'}))"
    )
    config = tmp_path / "config"
    config.write_text(f"Host one two\n  HostName 127.0.0.1\n  Port {server.port}\n")
    results = bench_hosts(
        with_runner(bundle, tmp_path / "slow", slow),
        ["one", "two"],
        BENCH,
        tmp_path,
        python=sys.executable,
        identity=server.identity,
        known_hosts=server.known_hosts,
        config=config,
        say=lambda line: refused.touch() if "busy" in line else None,
    )
    (busy,) = [result.error for result in results if not result.ok]
    assert "busy: another bench (helper process " in busy


def test_a_runner_that_fails_shows_its_last_lines(bundle: Path, server: sshd.Server, tmp_path: Path):
    result, said = bench(bundle, server, tmp_path, runner_args=["bench", "--repeats", "0"])
    assert not result.ok
    assert "the runner ended with exit code 2. Its last lines:\n" in result.error
    assert "repeats=0, allowed 1 to" in result.error
    assert any(line.startswith(f"{server.host}: error: repeats=0") for line in said)
    assert result.report is None


def test_an_old_report_is_not_taken_for_a_new_one(bundle: Path, server: sshd.Server, tmp_path: Path):
    assert bench(bundle, server, tmp_path)[0].ok
    mute = with_runner(bundle, tmp_path / "mute", "pass")
    result, _ = bench(mute, server, tmp_path)
    assert "the runner ended well but wrote no " in result.error
    assert result.report is None


def test_a_run_that_is_not_valid_brings_its_report_all_the_same(bundle: Path, server: sshd.Server, tmp_path: Path):
    report = {"validity": {"is_valid": False, "problems": ["swap grew by 120 MiB"], "warnings": []}}
    code = f"import sys; open(sys.argv[-1], 'w').write({json.dumps(report)!r}); sys.exit(3)"
    result, _ = bench(with_runner(bundle, tmp_path / "invalid", code), server, tmp_path)
    assert not result.ok
    assert "the runner says that this measurement is not valid" in result.error
    assert result.report == report
    assert "swap grew by 120 MiB" in format_comparison([result])


def test_a_runner_killed_for_memory(bundle: Path, server: sshd.Server, tmp_path: Path):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    result, _ = bench(with_runner(bundle, tmp_path / "killed", code), server, tmp_path)
    assert "was killed there, most likely for lack of memory: add swap" in result.error


def test_arguments_reach_the_runner_as_they_are(bundle: Path, server: sshd.Server, tmp_path: Path):
    """No shell in between: quotes, spaces, dollars and semicolons are only text."""
    code = "import json, sys; json.dump(sys.argv[1:], open('args', 'w')); json.dump({}, open(sys.argv[-1], 'w'))"
    args = ["bench", "--power-mode", "a b'\"$HOME;`touch x`\\ \u00e4"]
    result, _ = bench(with_runner(bundle, tmp_path / "args", code), server, tmp_path, runner_args=args)
    assert result.ok, result.error
    assert json.loads((far_folder(server) / "args").read_text()) == [*args, "--output", "report.json"]


def test_commands_that_come_first(bundle: Path, server: sshd.Server, tmp_path: Path):
    code = (
        "import json, sys; print('did', *sys.argv[1:]); "
        "sys.exit(4) if sys.argv[1] == 'fail' else None; json.dump({}, open('report.json', 'w'))"
    )
    folder = with_runner(bundle, tmp_path / "before", code)
    result, said = bench(folder, server, tmp_path, before=[["build", "--precision", "fp16"]])
    assert result.ok
    ran = [line.partition(": did ")[2] for line in said if ": did " in line]
    assert ran == ["build --precision fp16", " ".join([*BENCH, "--output", "report.json"])]
    result, said = bench(folder, server, tmp_path, before=[["fail"]])
    assert "ended with exit code 4" in result.error
    assert not any("bench" in line.partition(": did ")[2] for line in said)


def test_a_connection_that_breaks_mid_run_ends_the_runner(bundle: Path, server: sshd.Server, tmp_path: Path):
    pids: list[int] = []

    def cut(line: str) -> None:
        if ": started " in line:
            pids.extend(int(word) for word in line.split()[-2:])
            server.kill_connections()

    result, _ = bench(with_runner(bundle, tmp_path / "endless", ENDLESS), server, tmp_path, say=cut)
    assert "the connection was lost while running; the runner there ends by itself within 2 minutes" in result.error
    assert len(pids) == 2
    assert all(wait_until_dead(pid) for pid in pids)


def test_ctrl_c_ends_the_far_runner(bundle: Path, server: sshd.Server, tmp_path: Path):
    folder = with_runner(bundle, tmp_path / "endless", ENDLESS)
    code = (
        "import signal, sys; from pathlib import Path; from edgeqlora.remote import bench_hosts\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where the tests run in the background
        f"try: bench_hosts(Path({str(folder)!r}), [{server.host!r}], [], Path({str(tmp_path)!r}), "
        f"python=sys.executable, identity=Path({str(server.identity)!r}), "
        f"known_hosts=Path({str(server.known_hosts)!r}), config=Path('none'), "
        "say=lambda line: print(line, flush=True))\n"
        "except KeyboardInterrupt: sys.exit(130)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        line = next(line for line in process.stdout if ": started " in line)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(60) == 130
        finally:
            process.kill()
    assert all(wait_until_dead(int(pid)) for pid in line.split()[-2:])
