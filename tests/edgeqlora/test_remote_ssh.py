"""Benches over SSH against real OpenSSH servers on loopback, with the real runner."""

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sshd

from edgeqlora.errors import UserError
from edgeqlora.remote import HostResult, bench_hosts, format_comparison, transfer
from edgeqlora_jetson.pyz import PYZ_NAME, build_pyz

FIXTURE = Path(__file__).resolve().parents[1] / "jetson" / "fixture_bundle"
BENCH = ["bench", "--repeats", "1", "--warmup", "1", "--power", "none"]
BIG = 24 << 20


def seal(folder: Path) -> Path:
    """Write the hashes of all files of a bundle into its manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {
        str(path.relative_to(folder)): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with the real runner in it."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    shutil.copytree(FIXTURE, folder)
    build_pyz(folder / PYZ_NAME)
    return seal(folder)


@pytest.fixture(scope="module")
def big_bundle(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with 24 MiB of weights, so that a copy can be stopped half-way."""
    folder = tmp_path_factory.mktemp("big") / "tiny"
    shutil.copytree(bundle, folder)
    (folder / "weights.bin").write_bytes(os.urandom(BIG))
    return seal(folder)


def with_runner(bundle: Path, folder: Path, code: str) -> Path:
    """A copy of the bundle whose runner is a program of the test's: Python runs a text as well as an archive."""
    shutil.copytree(bundle, folder)
    (folder / PYZ_NAME).write_text(code)
    return seal(folder)


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Server]:
    with sshd.serve(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def server(shared_server: sshd.Server) -> sshd.Server:
    """A running server whose home folder is empty."""
    shutil.rmtree(shared_server.home)
    shared_server.home.mkdir()
    return shared_server


@pytest.fixture(autouse=True)
def no_agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the agent nor the keys and hosts of whoever runs the tests."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def bench(bundle: Path, server: sshd.Server, output: Path, **settings: Any) -> tuple[HostResult, list[str]]:
    """Bench one host: its result and what was said."""
    said: list[str] = []
    settings = {
        "hosts": [server.host],
        "runner_args": BENCH,
        "python": sys.executable,
        "identity": server.identity,
        "known_hosts": server.known_hosts,
        "config": Path("none"),
        "say": said.append,
    } | settings
    (result,) = bench_hosts(bundle, settings.pop("hosts"), settings.pop("runner_args"), output, **settings)
    return result, said


def far_folder(server: sshd.Server) -> Path:
    return server.home / "edgeqlora-bundles" / "tiny-fixture"


def n_bytes(bundle: Path) -> int:
    return sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_dead(pid: int, seconds: float = 15) -> bool:
    deadline_s = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return not is_alive(pid)


# ---- the whole way


def test_a_bench_brings_its_report_home_and_the_next_copies_nothing(bundle: Path, server: sshd.Server, tmp_path: Path):
    expected = json.loads((FIXTURE.parent / "fixture_expected.json").read_text())
    result, said = bench(bundle, server, tmp_path)
    assert (result.ok, result.error) == (True, None)
    assert (result.copied_bytes, result.skipped_bytes) == (n_bytes(bundle), 0)
    assert result.report_path == tmp_path / server.host.replace(":", "_") / "report.json"
    assert json.loads(result.report_path.read_text()) == result.report
    assert [row["hypothesis"] for row in result.report["utterances"]] == expected["texts"]
    assert (far_folder(server) / "eval" / "0001.wav").read_bytes() == (bundle / "eval" / "0001.wav").read_bytes()
    assert not list(server.home.rglob("*.part"))
    assert all(line.startswith(server.host + ": ") for line in said)
    assert any(line.startswith(f"{server.host}: WER (basic)") for line in said)
    assert "WER, %              14.29\n" in format_comparison([result])

    again, said = bench(bundle, server, tmp_path)
    assert again.ok
    assert (again.copied_bytes, again.skipped_bytes) == (0, n_bytes(bundle))


def test_of_two_hosts_one_dies_mid_copy_and_the_rerun_goes_on(big_bundle: Path, tmp_path: Path):
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

        def bench_both(progress: Any) -> list[HostResult]:
            return bench_hosts(
                big_bundle,
                ["a", "b"],
                BENCH,
                tmp_path / "out",
                python=sys.executable,
                config=config,
                say=lambda line: None,
                progress=progress,
            )

        first = bench_both(kill_b)
        assert killed
        assert (first[0].host, first[0].ok, first[0].copied_bytes) == ("a", True, n_bytes(big_bundle))
        assert (first[1].host, first[1].ok, first[1].report) == ("b", False, None)
        assert re.search(r"b: the connection was lost while copying; \d+\.\d MB of 25\.7 MB had", first[1].error)
        assert "run the same command again, it goes on there" in first[1].error
        assert not (far_folder(b) / "weights.bin").exists()
        assert (far_folder(b) / "weights.bin.part").stat().st_size < BIG
        # Half a copy must not be taken for a bundle.
        assert not (far_folder(b) / "manifest.json").exists()
        verdicts = next(line for line in format_comparison(first).splitlines() if line.startswith("Verdict"))
        assert "valid" in verdicts
        assert "FAILED" in verdicts

        second = bench_both(lambda host, done, total: None)
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


def test_a_file_that_changes_here_during_the_copy_is_noticed(big_bundle: Path, server: sshd.Server, tmp_path: Path):
    folder = tmp_path / "changing"
    shutil.copytree(big_bundle, folder)

    def change(host: str, done: int, total: int) -> None:
        if done > 4 << 20:
            with (folder / "weights.bin").open("r+b") as file:
                file.seek(-1000, os.SEEK_END)
                file.write(b"changed")

    result, _ = bench(folder, server, tmp_path, progress=change)
    assert "weights.bin arrived with sha256" in result.error
    assert "it changed here during the copy" in result.error
    assert not (far_folder(server) / "manifest.json").exists()


# ---- who is at the other end


def test_an_unknown_host_key_is_refused_and_the_command_in_the_message_adds_it(
    bundle: Path, server: sshd.Server, tmp_path: Path
):
    known_hosts = tmp_path / "known hosts"
    known_hosts.write_text("")
    result, _ = bench(bundle, server, tmp_path, known_hosts=known_hosts)
    assert not result.ok
    fingerprint = subprocess.check_output(
        ["ssh-keygen", "-lf", str(server.folder / "host_key.pub")], text=True
    ).split()[1]
    assert f"the host key is not known (ssh-ed25519 {fingerprint}; looked in {known_hosts})" in result.error
    command = shlex.split(result.error.partition("by connecting once: ")[2])
    assert command == ["ssh", "-p", str(server.port), "-o", f'UserKnownHostsFile="{known_hosts}"', "127.0.0.1"]
    assert not far_folder(server).exists()
    # As the user would, answering yes.
    target = command[-1]
    options = [
        "-F",
        "none",
        "-i",
        str(server.identity),
        "-o",
        "StrictHostKeyChecking=accept-new",
        "-o",
        "BatchMode=yes",
    ]
    subprocess.run([*command[:-1], *options, target, "true"], check=True, capture_output=True)
    assert bench(bundle, server, tmp_path, known_hosts=known_hosts)[0].ok


def test_a_changed_host_key_is_refused_in_other_words(bundle: Path, server: sshd.Server, tmp_path: Path):
    other = sshd.make_key(tmp_path / "other")
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{server.port} {other}")
    result, _ = bench(bundle, server, tmp_path, known_hosts=known_hosts)
    assert "the host key has CHANGED: known is ssh-ed25519 SHA256:" in result.error
    assert f"ssh-keygen -R '[127.0.0.1]:{server.port}' -f {known_hosts}" in result.error
    assert not far_folder(server).exists()


def test_a_known_key_of_another_type_is_a_changed_key(bundle: Path, server: sshd.Server, tmp_path: Path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", str(tmp_path / "ecdsa")], check=True)
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{server.port} {(tmp_path / 'ecdsa.pub').read_text()}")
    result, _ = bench(bundle, server, tmp_path, known_hosts=known_hosts)
    assert "the host key has CHANGED: known is ecdsa-sha2-nistp256 SHA256:" in result.error


@pytest.mark.parametrize("line", ["UserKnownHostsFile none", "UserKnownHostsFile /dev/null"])
def test_no_configuration_turns_checking_off(bundle: Path, server: sshd.Server, tmp_path: Path, line: str):
    config = tmp_path / "config"
    config.write_text(f"Host *\n  StrictHostKeyChecking no\n  {line}\n")
    result, _ = bench(bundle, server, tmp_path, known_hosts=None, config=config)
    assert "the host key is not known" in result.error


def test_hashed_and_revoked_entries(bundle: Path, server: sshd.Server, tmp_path: Path):
    hashed = tmp_path / "hashed"
    shutil.copy(server.known_hosts, hashed)
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(hashed)], check=True, capture_output=True)
    assert "127.0.0.1" not in hashed.read_text()
    assert bench(bundle, server, tmp_path, known_hosts=hashed)[0].ok
    revoked = tmp_path / "revoked"
    revoked.write_text(server.known_hosts.read_text() + "@revoked " + server.known_hosts.read_text())
    result, _ = bench(bundle, server, tmp_path, known_hosts=revoked)
    assert "its host key is marked as revoked" in result.error


# ---- who is at this end


def test_another_key_is_refused(bundle: Path, server: sshd.Server, tmp_path: Path):
    sshd.make_key(tmp_path / "stranger")
    result, _ = bench(bundle, server, tmp_path, identity=tmp_path / "stranger")
    assert f"{server.host}: login refused" in result.error
    assert f"ssh-copy-id -i {tmp_path / 'stranger'} -p {server.port} 127.0.0.1" in result.error


def test_the_agent_holds_keys_with_a_passphrase(
    bundle: Path, server: sshd.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    locked = tmp_path / "locked"
    shutil.copy(server.identity, locked)
    locked.chmod(0o600)
    subprocess.run(
        ["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", str(locked)], check=True, capture_output=True
    )
    result, _ = bench(bundle, server, tmp_path, identity=locked)
    assert f"the key {locked} has a passphrase: put it into the agent first with ssh-add" in result.error
    socket_path = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket_path)], stdout=subprocess.DEVNULL)
    try:
        while not socket_path.exists():
            time.sleep(0.01)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket_path))
        subprocess.run(["ssh-add", "-q", str(server.identity)], check=True, capture_output=True)
        assert bench(bundle, server, tmp_path, identity=None)[0].ok
    finally:
        agent.terminate()
        agent.wait(5)


def test_the_users_own_configuration_is_used(bundle: Path, server: sshd.Server, tmp_path: Path):
    ssh = tmp_path / "home" / ".ssh"
    ssh.mkdir(parents=True)
    (ssh / "config").write_text(f"Host board\n  HostName 127.0.0.1\n  Port {server.port}\n  IdentityFile ~/key\n")
    shutil.copy(server.identity, tmp_path / "home" / "key")
    shutil.copy(server.known_hosts, ssh / "known_hosts")
    result, _ = bench(bundle, server, tmp_path, hosts=["board"], config=None, known_hosts=None, identity=None)
    assert result.ok, result.error
    assert result.report_path == tmp_path / "board" / "report.json"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"identity": Path("/no/key")}, "identity /no/key: there is no such key file"),
        ({"known_hosts": Path("/no/hosts")}, "known hosts /no/hosts: there is no such file"),
        ({"config": Path("/no/config")}, "ssh configuration /no/config: there is no such file"),
        ({"remote_dir": "~other/x"}, "remote_dir='~other/x', allowed: a folder from the home folder there"),
    ],
)
def test_settings_that_name_nothing(bundle: Path, server: sshd.Server, tmp_path: Path, setting: dict, message: str):
    try:
        error = bench(bundle, server, tmp_path, **setting)[0].error
    except UserError as problem:  # what holds for all hosts is said before any connection
        error = str(problem)
    assert message in error


# ---- machines that cannot


def test_nothing_there(bundle: Path, server: sshd.Server, tmp_path: Path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        result, _ = bench(bundle, server, tmp_path, hosts=[f"127.0.0.1:{port}"])
        assert "no SSH server answers there" in result.error
        silent.listen()
        result, _ = bench(bundle, server, tmp_path, hosts=[f"127.0.0.1:{port}"], connect_timeout_s=0.3)
        assert "no answer within 0.3 s: is the machine on, and the address right?" in result.error


def test_a_machine_without_python(bundle: Path, server: sshd.Server, tmp_path: Path):
    result, _ = bench(bundle, server, tmp_path, python="python3.99")
    assert f"{server.host}: there is no python3.99 that can be run there" in result.error
    assert "sudo apt-get install python3" in result.error


def test_a_python_that_is_too_old(bundle: Path, server: sshd.Server, tmp_path: Path):
    """The check is the first line that runs there; where there is no Python 2, a program that answers like one."""
    old = server.home / "python2"
    old.write_text('#!/bin/sh\necho "edgeqlora: too old 2.7.18" >&2\nexit 1\n')
    old.chmod(0o755)
    result, _ = bench(bundle, server, tmp_path, python="~/python2")
    assert "~/python2 is Python 2.7.18, the runner needs 3.6 or newer" in result.error


def test_a_python_without_numpy_is_told_before_anything_is_copied(bundle: Path, server: sshd.Server, tmp_path: Path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(server.home / "bare python")], check=True)
    result, _ = bench(bundle, server, tmp_path, python="~/bare python/bin/python")
    assert "numpy cannot be imported by ~/bare python/bin/python there (ModuleNotFoundError" in result.error
    assert result.copied_bytes == 0
    assert not far_folder(server).exists()


def test_a_full_disk_is_told_before_anything_is_copied(
    bundle: Path, server: sshd.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(transfer, "SPARE_BYTES", 1 << 60)
    result, _ = bench(bundle, server, tmp_path)
    assert "MiB free, needed: 1,099,511,627,777 MiB. Free some space there" in result.error
    assert result.copied_bytes == 0


def test_a_server_without_sftp(bundle: Path, tmp_path: Path):
    with sshd.serve(tmp_path / "s", sftp="/bin/false") as server:
        result, _ = bench(bundle, server, tmp_path)
    assert "its SSH server offers no SFTP" in result.error
    assert "Subsystem sftp internal-sftp" in result.error


def test_a_shell_that_greets_and_a_home_folder_full_of_modules(bundle: Path, server: sshd.Server, tmp_path: Path):
    (server.home / ".bashrc").write_text('echo "Welcome to your board!"\n')
    for name in ("json", "queue", "platform", "numpy"):
        (server.home / f"{name}.py").write_text("raise SystemExit('a file of the user')\n")
    result, _ = bench(bundle, server, tmp_path)
    assert result.ok, result.error


def test_two_benches_on_one_machine_would_disturb_each_other(
    bundle: Path, server: sshd.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("edgeqlora.remote.bench._TAKE_WAIT_S", 0.2)
    config = tmp_path / "config"
    config.write_text(f"Host one two\n  HostName 127.0.0.1\n  Port {server.port}\n")
    results = bench_hosts(
        with_runner(bundle, tmp_path / "slow", SLOW),
        ["one", "two"],
        BENCH,
        tmp_path,
        python=sys.executable,
        identity=server.identity,
        known_hosts=server.known_hosts,
        config=config,
        say=lambda line: None,
    )
    (busy,) = [result.error for result in results if not result.ok]
    assert "busy: another bench (helper process " in busy


# ---- runners that end otherwise than well

SLOW = "import json, sys, time; time.sleep(1.5); open(sys.argv[-1], 'w').write(json.dumps({'schema': 'test'}))"
ENDLESS = (
    "import os, subprocess, sys, time; c = subprocess.Popen(['sleep', '600']); "
    "print('started', os.getpid(), c.pid, flush=True); time.sleep(600)"
)


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
        "import sys; from pathlib import Path; from edgeqlora.remote import bench_hosts\n"
        f"try: bench_hosts(Path({str(folder)!r}), [{server.host!r}], [], Path({str(tmp_path)!r}), "
        f"python=sys.executable, identity=Path({str(server.identity)!r}), "
        f"known_hosts=Path({str(server.known_hosts)!r}), config=Path('none'), "
        "say=lambda line: print(line, flush=True))\n"
        "except KeyboardInterrupt: sys.exit(130)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        line = next(line for line in process.stdout if ": started " in line)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert all(wait_until_dead(int(pid), 1) for pid in line.split()[-2:])
