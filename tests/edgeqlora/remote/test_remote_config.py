"""The user's ssh configuration decides how a board is reached: asyncssh reads it, a real OpenSSH server answers."""

import asyncio
import getpass
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import sshd

from edgeqlora.errors import UserError
from edgeqlora.remote.connect import SshSettings, connect
from edgeqlora.remote.hosts import parse_host

pytest_plugins = ["remote_fixtures"]


def login(config: Path | None, host: str = "board") -> str:
    """Log in and return the name there, in capital letters, so that only the other end can have made it."""

    async def run() -> str:
        async with connect(parse_host(host), SshSettings(config=config)) as connection:
            done = await connection.run("id -un | tr a-z A-Z", check=True)
            return str(done.stdout).strip()

    return asyncio.run(run())


def refusal(config: Path | None, host: str = "board") -> str:
    with pytest.raises(UserError) as error:
        login(config, host)
    return str(error.value)


def block(name: str, server: sshd.Server, *lines: str) -> str:
    """A host of the configuration; of two lines with the same keyword ssh takes the first, so `lines` win."""
    lines = (
        *lines,
        "HostName 127.0.0.1",
        f"Port {server.port}",
        f"User {getpass.getuser()}",
        f"IdentityFile {server.identity}",
        f"UserKnownHostsFile {server.known_hosts}",
    )
    return "\n  ".join([f"Host {name}", *lines]) + "\n"


def written(folder: Path, *blocks: str) -> Path:
    config = folder / "config"
    config.write_text("".join(blocks))
    return config


def n_logins(server: sshd.Server) -> int:
    return server.log().count("Accepted publickey")


def test_an_alias_with_address_port_user_and_key(server: sshd.Server, tmp_path: Path):
    assert login(written(tmp_path, block("board", server))) == getpass.getuser().upper()
    # What is written with the host comes before the configuration.
    other = written(tmp_path, block("board", server, "Port 1", "User nobody"))
    assert login(other, f"{getpass.getuser()}@board:{server.port}") == getpass.getuser().upper()


def test_the_file_of_the_home_folder_is_read(server: sshd.Server, tmp_path: Path):
    ssh = tmp_path / "home" / ".ssh"
    ssh.mkdir(parents=True)
    (ssh / "config").write_text("Include boards\n")
    (ssh / "boards").write_text(f"Host board\n  HostName 127.0.0.1\n  Port {server.port}\n")
    shutil.copy(server.identity, ssh / "id_ed25519")
    shutil.copy(server.known_hosts, ssh / "known_hosts")
    assert login(None) == getpass.getuser().upper()
    with pytest.raises(UserError, match="board: there is no machine of the name board"):
        login(Path("none"))


def test_a_match_block(server: sshd.Server, tmp_path: Path):
    lines = block("board", server).replace("Host board", "Match originalhost board user *")
    assert login(written(tmp_path, lines)) == getpass.getuser().upper()


@pytest.mark.parametrize("way", ["ProxyJump jump", "ProxyJump jump,jump", "ProxyCommand ssh -F {config} -W %h:%p jump"])
def test_a_board_behind_another_machine(server: sshd.Server, tmp_path: Path, way: str):
    before = n_logins(server)
    way = way.format(config=tmp_path / "config")
    config = written(tmp_path, block("board", server, way), block("jump", server))
    assert login(config) == getpass.getuser().upper()
    assert n_logins(server) - before == 2 + way.count(",")


@pytest.mark.parametrize(
    ("board", "jump", "reason"),
    [
        ("ProxyCommand ssh -F {config} -W %h:%p other", "", ""),
        (
            "ProxyCommand ssh -F {config} -W %h:%p other\n  UserKnownHostsFile /dev/null",
            "",
            "the host key is not known",
        ),
        ("ProxyJump jump", "ProxyCommand ssh -F {config} -W %h:%p other", ""),
        (
            "ProxyJump jump",
            "ProxyCommand ssh -F {config} -W %h:%p other\n  UserKnownHostsFile /dev/null",
            "the jump host refuses",
        ),
    ],
)
def test_the_process_of_proxy_command_has_ended(
    server: sshd.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, board: str, jump: str, reason: str
):
    """After a login, and after a refusal: CI found one that still ran when the loop was closed."""
    started: list[subprocess.Popen] = []

    class Kept(subprocess.Popen):
        def __init__(self, *arguments, **options):
            started.append(self)
            super().__init__(*arguments, **options)

    lines = [line.format(config=tmp_path / "config") for line in (board, jump)]
    blocks = [block(name, server, *filter(None, [line])) for name, line in zip(("board", "jump"), lines, strict=True)]
    config = written(tmp_path, *blocks, block("other", server))
    monkeypatch.setattr(subprocess, "Popen", Kept)
    for _ in range(6):
        if reason:
            assert reason in refusal(config)
        else:
            login(config)
    assert len(started) == 6
    assert all(process.returncode is not None for process in started)


@pytest.mark.parametrize(
    ("board", "jump", "reason"),
    [
        ("Port 1", "Port {port}", "Connection refused"),
        ("Port {port}", "UserKnownHostsFile /dev/null", "Host key is not trusted for host 127.0.0.1"),
        ("Port {port}", "IdentityFile {stranger}", "Permission denied for user "),
        ("Port {port}", "HostName no-such-name.invalid", "Name or service not known"),
    ],
)
def test_a_jump_host_that_does_not_let_through(server: sshd.Server, tmp_path: Path, board: str, jump: str, reason: str):
    sshd.make_key(tmp_path / "stranger")
    board, jump = (line.format(port=server.port, stranger=tmp_path / "stranger") for line in (board, jump))
    jump_block = block("jump", server, jump)
    if "stranger" in jump:  # IdentityFile adds to a list
        jump_block = jump_block.replace(f"  IdentityFile {server.identity}\n", "")
    config = written(tmp_path, block("board", server, board, "ProxyJump jump"), jump_block)
    message = refusal(config)
    assert message.startswith("board: no connection to 127.0.0.1:")
    assert "through the jump host jump: the jump host refuses, or does not reach the machine (" in message
    assert reason in message
    assert message.endswith(
        f"This goes the same way, and asks about host keys that are not known: ssh -F {config} board"
    )


def test_a_jump_host_of_itself(server: sshd.Server, tmp_path: Path):
    config = written(tmp_path, block("jump", server), "Host *\n  ProxyJump jump\n")
    assert "makes a jump host its own jump host: leave it out" in refusal(config, "jump")


def test_keys_of_the_board_behind_a_jump_host_are_checked(server: sshd.Server, tmp_path: Path):
    unknown = block("board", server, f"UserKnownHostsFile {tmp_path / 'absent'}", "ProxyJump jump")
    assert "board: the host key is not known (ssh-ed25519 " in refusal(
        written(tmp_path, unknown, block("jump", server))
    )


def test_files_of_host_keys_that_are_not_there_hold_no_key(server: sshd.Server, tmp_path: Path):
    absent = tmp_path / "absent"
    known = block("board", server, f"UserKnownHostsFile {absent} {server.known_hosts}")
    assert login(written(tmp_path, known)) == getpass.getuser().upper()
    message = refusal(written(tmp_path, block("board", server, f"UserKnownHostsFile {absent}")))
    assert f"looked in {absent})" in message


def test_the_key_of_another_port_is_not_a_changed_key(server: sshd.Server, tmp_path: Path):
    (tmp_path / "hosts").write_text(f"127.0.0.1 {sshd.make_key(tmp_path / 'other')}")
    config = written(tmp_path, block("board", server, f"UserKnownHostsFile {tmp_path / 'hosts'}"))
    assert "the host key is not known" in refusal(config)


def test_an_alias_for_the_host_key(server: sshd.Server, tmp_path: Path):
    hosts = tmp_path / "hosts"
    hosts.write_text("lab " + server.known_hosts.read_text().partition(" ")[2])
    lines = ("HostKeyAlias lab", f"UserKnownHostsFile {hosts}")
    assert login(written(tmp_path, block("board", server, *lines))) == getpass.getuser().upper()
    hosts.write_text(f"lab {sshd.make_key(tmp_path / 'other')}")
    assert f"ssh-keygen -R lab -f {hosts} and then ssh" in refusal(written(tmp_path, block("board", server, *lines)))


def test_a_refused_login_says_which_methods_and_keys_were_tried(server: sshd.Server, tmp_path: Path):
    sshd.make_key(tmp_path / "stranger")
    lines = block("board", server).replace(str(server.identity), str(tmp_path / "stranger"))
    message = refusal(written(tmp_path, lines))
    user = getpass.getuser()
    assert f"board: login refused (Permission denied for user {user} on host 127.0.0.1)" in message
    assert (
        f"the machine offers publickey; tried was publickey with {tmp_path / 'stranger'}, and it accepts none"
        in message
    )
    assert f"ssh-copy-id -F {tmp_path / 'config'} board" in message


def test_a_machine_that_wants_a_password(tmp_path: Path, no_agent: None):
    with sshd.serve(tmp_path / "s", settings="PubkeyAuthentication no\nPasswordAuthentication yes") as server:
        message = refusal(written(tmp_path, block("board", server)))
    assert "the machine offers password, and keys are all that is tried here: allow PubkeyAuthentication" in message


def test_a_locked_key_of_the_configuration(server: sshd.Server, tmp_path: Path):
    shutil.copy(server.identity, tmp_path / "locked")
    (tmp_path / "locked").chmod(0o600)
    command = ["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", str(tmp_path / "locked")]
    subprocess.run(command, check=True, capture_output=True)
    lines = block("board", server).replace(str(server.identity), str(tmp_path / "locked"))
    assert "a key with a passphrase goes into the agent first: ssh-add" in refusal(written(tmp_path, lines))


def test_the_time_to_connect_is_that_of_the_configuration(server: sshd.Server, tmp_path: Path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        config = written(tmp_path, block("board", server, f"Port {port}", "ConnectTimeout 1"))
        assert f"board: no answer from 127.0.0.1:{port} within 1 s: is the machine on" in refusal(config)


def test_a_proxy_command_that_ends(server: sshd.Server, tmp_path: Path):
    config = written(tmp_path, block("board", server, "ProxyCommand false"))
    assert "no connection to 127.0.0.1:" in refusal(config)
    assert "through ProxyCommand false: " in refusal(config)
    config = written(tmp_path, block("board", server, "ProxyCommand no-such-program %h"))
    assert "the ssh configuration names the file no-such-program, which is not there" in refusal(config)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("IdentityFile /no/such/key", "names the file /no/such/key, which is not there: correct that line"),
        ("Port many", "config line 2: Invalid Port integer value: many"),
        ("Port 99999", "cannot be used: connect(): port must be 0-65535"),
    ],
)
def test_a_configuration_that_cannot_be_used(server: sshd.Server, tmp_path: Path, line: str, message: str):
    assert message in refusal(written(tmp_path, block("board", server, line)))
