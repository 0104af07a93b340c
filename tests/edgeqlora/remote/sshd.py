"""A real OpenSSH server on loopback, with keys and files of its own under a temporary folder, as the current user."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin:/sbin")
_CONFIG = """
{settings}
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile {folder}/sshd.pid
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp {sftp}
SetEnv HOME={folder}/home
"""


class Server(NamedTuple):
    """A running server."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    identity: Path
    """Private key that it accepts."""
    known_hosts: Path
    """File with its host key, and no other."""

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def home(self) -> Path:
        """Home folder of whoever logs in: one server stands for one machine."""
        return self.folder / "home"

    def log(self) -> str:
        return (self.folder / "sshd.log").read_text()

    def sessions(self) -> list[int]:
        """Process ids of its sessions: everything that descends from the server."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    # The name in parentheses may hold anything; the parent's id is the second field after it.
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    children.setdefault(int(fields[1]), []).append(int(entry.name))
        found, todo = [], [self.process.pid]
        while todo:
            born = children.get(todo.pop(), [])
            found += born
            todo += born
        return found

    def kill_connections(self) -> None:
        """End the server's own session processes as a power cut would; what runs in them is left to find out."""
        for pid in self.sessions():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/exe").resolve().name.startswith("sshd"):
                    os.kill(pid, signal.SIGKILL)


def make_key(path: Path) -> str:
    """A new ed25519 key pair; returns the public line."""
    path.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True)
    return path.with_name(path.name + ".pub").read_text()


@contextlib.contextmanager
def serve(folder: Path, sftp: str = "internal-sftp", settings: str = "") -> Iterator[Server]:
    """Start a server in `folder` and end it with its sessions. Skips, saying so, where there is no OpenSSH server.

    settings: lines of sshd_config that come first, which is what counts there.
    """
    if SSHD is None or shutil.which("ssh-keygen") is None:
        pytest.skip("needs an OpenSSH server and ssh-keygen (Debian: apt-get install openssh-server)")
    if os.geteuid() == 0:
        # As the system's start script does: as root, the server wants this empty folder.
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "home").mkdir()
    host_key = make_key(folder / "host_key")
    (folder / "authorized_keys").write_text(make_key(folder / "identity"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
    (folder / "sshd_config").write_text(_CONFIG.format(port=port, folder=folder, sftp=sftp, settings=settings))
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log, stdout=log)
    server = Server(folder, port, process, folder / "identity", folder / "known_hosts")
    try:
        _wait_until_open(server)
        yield server
    finally:
        server.kill_connections()
        process.terminate()
        process.wait(10)


def _wait_until_open(server: Server) -> None:
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s:
        if server.process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"sshd does not start: {server.log()}")
