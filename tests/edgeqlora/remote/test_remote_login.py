"""Who is at either end of the connection, and machines that cannot run a bundle: real OpenSSH servers on loopback."""

import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sshd
from remote_bundles import bench, far_folder

from edgeqlora.errors import UserError
from edgeqlora.remote import HostResult, transfer

pytest_plugins = ["remote_fixtures"]


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
    expected = ["ssh", "-F", "none", "-i", str(server.identity), "-o", f'UserKnownHostsFile="{known_hosts}"']
    assert command == [*expected, "-p", str(server.port), "127.0.0.1"]
    assert not far_folder(server).exists()
    # As the user would, answering yes.
    options = ["-o", "StrictHostKeyChecking=accept-new", "-o", "BatchMode=yes"]
    subprocess.run([*command[:-1], *options, command[-1], "true"], check=True, capture_output=True)
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
    assert "the host key is not known (ssh-ed25519 SHA256:" in result.error
    assert "the ssh configuration keeps none (UserKnownHostsFile)" in result.error
    assert "name a file of known hosts with --known-hosts" in result.error


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
    assert f"ssh-copy-id -F none -i {tmp_path / 'stranger'} -o " in result.error
    assert f" -p {server.port} 127.0.0.1 (a key with a passphrase goes into the agent first" in result.error


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
        assert bench(bundle, server, tmp_path, identity=locked)[0].ok
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


def test_a_jump_host_of_the_configuration_is_used_and_its_key_checked(
    bundle: Path, server: sshd.Server, tmp_path: Path
):
    with sshd.serve(tmp_path / "jump") as jump:
        config = tmp_path / "config"

        def bench_board(jump_hosts: Path) -> HostResult:
            config.write_text(
                f"Host board\n  HostName 127.0.0.1\n  Port {server.port}\n  IdentityFile {server.identity}\n"
                f"  UserKnownHostsFile {server.known_hosts}\n  ProxyJump jump\n"
                f"Host jump\n  HostName 127.0.0.1\n  Port {jump.port}\n  IdentityFile {jump.identity}\n"
                f"  UserKnownHostsFile {jump_hosts}\n"
            )
            settings = {"hosts": ["board"], "config": config, "known_hosts": None, "identity": None}
            return bench(bundle, server, tmp_path, **settings)[0]

        assert "Accepted publickey" not in jump.log()
        result = bench_board(jump.known_hosts)
        assert result.ok, result.error
        assert "Accepted publickey" in jump.log()
        assert not bench_board(server.known_hosts).ok


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"identity": Path("/no/key")}, "identity /no/key: there is no such file"),
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


def test_nothing_there(bundle: Path, server: sshd.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        result, _ = bench(bundle, server, tmp_path, hosts=[f"127.0.0.1:{port}"])
        assert f"no SSH server answers at 127.0.0.1:{port} (connection refused)" in result.error
        silent.listen()
        monkeypatch.setattr("edgeqlora.remote.connect._CONNECT_TIMEOUT_S", 0.3)
        result, _ = bench(bundle, server, tmp_path, hosts=[f"127.0.0.1:{port}"])
        assert (
            f"no answer from 127.0.0.1:{port} within 0.3 s: is the machine on, and the address right?" in result.error
        )


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


def test_a_server_without_sftp(bundle: Path, tmp_path: Path, no_agent: None):
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
