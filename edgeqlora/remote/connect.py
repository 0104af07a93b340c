"""The SSH connection: host keys always checked, keys or agent, and every failure in words that help."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh

from edgeqlora.errors import UserError
from edgeqlora.remote.hosts import Host

KEEPALIVE_S = 15
"""A dead link is noticed after four of these."""
# After those of the known keys: a machine that lost a key of the known type shall show the one it has, to be named in
# the message, instead of ending the connection for want of a common algorithm.
_HOST_KEY_ALGORITHMS = (
    "+ssh-ed25519,ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521,rsa-sha2-512,rsa-sha2-256"
)
_SYSTEM_KNOWN_HOSTS = "/etc/ssh/ssh_known_hosts"


@dataclass(frozen=True)
class SshSettings:
    """How to reach hosts; what is None comes from ~/.ssh/config and the defaults of ssh."""

    identity: Path | None = None
    """Private key file; None: those of ~/.ssh and the agent."""
    known_hosts: Path | None = None
    """File of host keys; None: UserKnownHostsFile of the configuration, or ~/.ssh/known_hosts."""
    config: Path | None = None
    """ssh configuration file; None: ~/.ssh/config; "none": no configuration, as with ssh -F none."""
    connect_timeout_s: float = 15
    """For the TCP connection, the key exchange and the login together."""


@contextlib.asynccontextmanager
async def connect(host: Host, settings: SshSettings) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """A connection to `host`, closed at the end. Raises UserError where it cannot be had, with the next step."""
    keys = _HostKeys(host, settings)
    try:
        options = _options(host, settings)
        # What the configuration says of this host; the connection below reads it again, for itself and for jump hosts.
        configured = await asyncssh.SSHClientConnectionOptions.construct(**options)
        keys.load(configured.known_hosts)
        if configured.config.get("HostKeyAlgorithms") is None:
            options["server_host_key_algs"] = _HOST_KEY_ALGORITHMS
        connection = await asyncssh.connect(**options, known_hosts=keys.trusted, client_factory=lambda: _Client(keys))
    except UserError:
        raise
    except (asyncssh.Error, OSError, ValueError, asyncio.TimeoutError) as error:
        raise UserError(_explain(error, host, settings, keys)) from error
    try:
        yield connection
    finally:
        connection.close()
        # Waiting is a courtesy to the far side; a dead link must not hold up the others.
        with contextlib.suppress(Exception):
            await asyncio.wait_for(connection.wait_closed(), 5)


def _options(host: Host, settings: SshSettings) -> dict[str, Any]:
    options: dict[str, Any] = {
        "host": host.host,
        "connect_timeout": settings.connect_timeout_s,
        "keepalive_interval": KEEPALIVE_S,
        "keepalive_count_max": 4,
        # Never ask in the middle of a run with several hosts: keys and agent only.
        "password_auth": False,
        "kbdint_auth": False,
    }
    if host.port is not None:
        options["port"] = host.port
    if host.user is not None:
        options["username"] = host.user
    if settings.identity is not None:
        if not settings.identity.expanduser().is_file():
            raise UserError(f"identity {settings.identity}: there is no such key file")
        options["client_keys"] = [str(settings.identity.expanduser())]
    if settings.config is not None:
        config = settings.config.expanduser()
        if str(settings.config) != "none" and not config.is_file():
            raise UserError(f"ssh configuration {settings.config}: there is no such file")
        options["config"] = [] if str(settings.config) == "none" else [str(config)]
    return options


class _Client(asyncssh.SSHClient):
    """Sees the host key that was refused, for the message."""

    def __init__(self, keys: _HostKeys):
        self._keys = keys

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self._keys.refused = key
        return False


class _HostKeys:
    """The host keys that are trusted for one host, and the one that was refused.

    asyncssh turns checking off where the configuration says `UserKnownHostsFile none`; here that means that no key is
    known. `StrictHostKeyChecking no` is not heeded: figures from a machine that is not the one named are worth nothing.
    """

    def __init__(self, host: Host, settings: SshSettings):
        self.host, self.settings = host, settings
        self.refused: asyncssh.SSHKey | None = None
        self.known: list[asyncssh.SSHKey] = []
        self._files: list[str] = []
        self._name = host.host  # as known_hosts writes it
        self._entries = asyncssh.import_known_hosts("")

    def load(self, configured: Any) -> None:
        """Read the files. configured: what asyncssh made of the ssh configuration: file names or None."""
        if self.settings.known_hosts is not None:
            path = self.settings.known_hosts.expanduser()
            if not path.is_file():
                raise UserError(f"known hosts {self.settings.known_hosts}: there is no such file")
            names = [str(path)]
        elif configured is None:
            names = []
        else:
            names = [str(name) for name in configured] or [
                "~/.ssh/known_hosts",
                "~/.ssh/known_hosts2",
                _SYSTEM_KNOWN_HOSTS,
            ]
        self._files = [str(Path(name).expanduser()) for name in names]
        present = [name for name in self._files if Path(name).is_file()]
        try:
            self._entries = asyncssh.read_known_hosts(present)
        except (OSError, ValueError) as error:
            raise UserError(f"known hosts {', '.join(present)} cannot be read: {error}") from error

    def trusted(self, host: str, addr: str, port: int | None) -> Any:
        """For asyncssh: keys, authorities and revoked keys for a host."""
        found = self._entries.match(host, addr, port)
        self.known = list(found[0])
        self._name = f"[{host}]:{port}" if port else host
        return found

    def explain(self, error: Exception) -> str:
        """Why the host key was not accepted, and what to do."""
        written = self.host.written
        if "revoked" in str(error):
            return f"{written}: its host key is marked as revoked in {self._file}: do not connect to this machine"
        key = self.refused
        offered = f"{key.get_algorithm()} {key.get_fingerprint()}" if key is not None else "of another type"
        if self.known:
            trusted = ", ".join(sorted(f"{k.get_algorithm()} {k.get_fingerprint()}" for k in self.known))
            return (
                f"{written}: the host key has CHANGED: known is {trusted}, this machine has {offered}. "
                "A board that was flashed again has a new key; so has somebody else's machine at that address. "
                f"If you know that it was flashed: {shlex.join(['ssh-keygen', '-R', self._name, '-f', self._file])} "
                f"and then {self._ssh()}"
            )
        return (
            f"{written}: the host key is not known ({offered}; looked in {', '.join(self._files) or 'no file'}). "
            f"Add it, after comparing the fingerprint with the board's, by connecting once: {self._ssh()}"
        )

    @property
    def _file(self) -> str:
        return self._files[0] if self._files else "~/.ssh/known_hosts"

    def _ssh(self) -> str:
        if self.settings.known_hosts is None:
            return self.host.ssh_command()
        # This option is a list of files: one with a space in its name is quoted for ssh as well as for the shell.
        file = f'"{self._file}"' if " " in self._file else self._file
        return self.host.ssh_command("-o", f"UserKnownHostsFile={file}")


def _explain(error: Exception, host: Host, settings: SshSettings, keys: _HostKeys) -> str:
    """What went wrong while connecting, and the next step."""
    written = host.written
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return keys.explain(error)
    if isinstance(error, asyncssh.KeyExchangeFailed):
        if keys.known and "host key" in str(error).lower():
            return keys.explain(error)
        return f"{written}: no common SSH algorithms ({error}): update the SSH server of that machine"
    if isinstance(error, asyncssh.PermissionDenied):
        key = f"-i {shlex.quote(str(settings.identity))} " if settings.identity else ""
        port = f"-p {host.port} " if host.port else ""
        target = f"{host.user}@{host.host}" if host.user else host.host
        return (
            f"{written}: login refused ({error.reason}): the machine accepts none of your keys. "
            f"Put yours there once with: ssh-copy-id {key}{port}{shlex.quote(target)} "
            "(a key with a passphrase goes into the agent first: ssh-add)"
        )
    if isinstance(error, asyncssh.KeyEncryptionError) or "assphrase" in str(error):
        return f"{written}: the key {settings.identity} has a passphrase: put it into the agent first with ssh-add"
    if isinstance(error, asyncssh.KeyImportError):
        return f"{written}: the key {settings.identity or 'of ~/.ssh'} cannot be read: {error}"
    if isinstance(error, asyncio.TimeoutError | TimeoutError):
        return (
            f"{written}: no answer within {settings.connect_timeout_s:g} s: is the machine on, and the address right?"
        )
    if isinstance(error, socket.gaierror):
        return f"{written}: there is no machine of that name ({error.strerror}): check the spelling, or give an address"
    if isinstance(error, ConnectionRefusedError):
        return (
            f"{written}: no SSH server answers there ({error.strerror or error}). "
            "On that machine: sudo systemctl start ssh; for a port other than 22: host:port"
        )
    if isinstance(error, FileNotFoundError):
        return (
            f"{written}: the ssh configuration names the file {error.filename}, which is not there: correct that line"
        )
    if isinstance(error, ValueError) and not isinstance(error, asyncssh.Error):
        return f"{written}: the ssh configuration cannot be used: {error}"
    return f"{written}: no connection: {error}"


def is_connection_lost(error: BaseException) -> bool:
    """Whether the link to the far side broke, rather than something on the far side."""
    kinds: Sequence[type[BaseException]] = (
        asyncssh.DisconnectError,
        asyncssh.SFTPConnectionLost,
        asyncssh.SFTPNoConnection,
        asyncssh.ChannelOpenError,
        ConnectionError,
        asyncio.IncompleteReadError,
    )
    return isinstance(error, tuple(kinds))
