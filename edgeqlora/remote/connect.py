"""SSH connections: asyncssh reads the ssh configuration, host keys are always checked, errors name the next step."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import os
import shlex
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh

from edgeqlora.errors import UserError
from edgeqlora.remote.hosts import Host

_CONNECT_TIMEOUT_S = 15.0
"""Where the configuration has no ConnectTimeout: for jump hosts, TCP connection, key exchange and login together."""
_CLOSING_S = 5.0
_KEEPALIVE_S = 20.0
"""A dead link is noticed after three of these."""
# Come after the types of the known keys. Without them, a machine whose key is of another type than the known one ends
# the connection, instead of showing the key that the message names.
_HOST_KEY_ALGORITHMS = (
    "+ssh-ed25519,ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521,rsa-sha2-512,rsa-sha2-256"
)
_KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2", "/etc/ssh/ssh_known_hosts")


@dataclass(frozen=True)
class SshSettings:
    """How to reach hosts; what is None comes from the ssh configuration and the defaults of ssh."""

    identity: Path | None = None
    """Private key file; None: IdentityFile of the configuration, or those of ~/.ssh. Those of the agent come first."""
    known_hosts: Path | None = None
    """File of host keys; None: UserKnownHostsFile of the configuration, or ~/.ssh/known_hosts."""
    config: Path | None = None
    """ssh configuration file; None: ~/.ssh/config; "none": no configuration, as with ssh -F none."""

    def arguments(self) -> dict[str, Any]:
        """The same for asyncssh, () where the configuration decides. Raises UserError for a file that is not there."""
        return {
            "client_keys": _named(self.identity, "identity"),
            # A key with a passphrase is left out: the agent may have it.
            "ignore_encrypted": True,
            "known_hosts": _named(self.known_hosts, "known hosts"),
            "config": [] if str(self.config) == "none" else _named(self.config, "ssh configuration"),
        }

    def ssh_options(self) -> list[str]:
        """The same for ssh and ssh-copy-id."""
        options = ["-F", str(self.config)] if self.config is not None else []
        if self.identity is not None:
            options += ["-i", str(self.identity)]
        if self.known_hosts is not None:
            # The quotes are for ssh: this option is a list of files.
            options += ["-o", f'UserKnownHostsFile="{self.known_hosts}"']
        return options


def _named(path: Path | None, what: str) -> Sequence[str]:
    if path is None:
        return ()
    if not path.expanduser().is_file():
        raise UserError(f"{what} {path}: there is no such file")
    return [str(path.expanduser())]


@contextlib.asynccontextmanager
async def connect(host: Host, settings: SshSettings) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """A connection to `host`, closed at the end. Raises UserError where there can be none, with the next step."""
    arguments = {"host": host.host, "port": host.port or (), "username": host.user or (), **settings.arguments()}
    try:
        # For the messages and the host keys; asyncssh.connect reads it again, for the host and for jump hosts.
        options = await asyncssh.SSHClientConnectionOptions.construct(**arguments)
    except (OSError, ValueError, asyncssh.Error) as error:
        raise UserError(f"{host.written}: {_explain_configuration(error)}") from error
    client = _Client(host, settings, options)
    arguments["known_hosts"] = client.known_hosts
    arguments["connect_timeout"] = client.connect_timeout_s
    arguments["keepalive_interval"] = options.keepalive_interval or _KEEPALIVE_S
    if options.config.get("HostKeyAlgorithms") is None:
        arguments["server_host_key_algs"] = _HOST_KEY_ALGORITHMS
    async with _ended_proxies():
        try:
            connection = await asyncssh.connect(**arguments, client_factory=lambda: client)
        except (asyncssh.Error, OSError, ValueError, OverflowError, RecursionError, asyncio.TimeoutError) as error:
            raise UserError(f"{host.written}: {client.explain(error)}") from error
        try:
            yield connection
        finally:
            connection.close()
            # Waiting is a courtesy to the far side; a dead link must not hold up the others.
            with contextlib.suppress(Exception):
                await asyncio.wait_for(connection.wait_closed(), _CLOSING_S)


_started: contextvars.ContextVar[list[asyncio.SubprocessTransport]] = contextvars.ContextVar("_started")


@contextlib.asynccontextmanager
async def _ended_proxies() -> AsyncIterator[None]:
    """At the end, wait for the processes of ProxyCommand, of the host or of a jump host: asyncssh kills them and goes on."""
    loop, started = asyncio.get_running_loop(), list[asyncio.SubprocessTransport]()
    _started.set(started)
    if not hasattr(loop, "edgeqlora_subprocess_exec"):
        own = loop.subprocess_exec

        async def kept(*arguments: Any, **options: Any) -> Any:
            transport, protocol = await own(*arguments, **options)
            _started.get([]).append(transport)
            return transport, protocol

        vars(loop).update(subprocess_exec=kept, edgeqlora_subprocess_exec=own)
    try:
        yield
    finally:
        for _ in range(int(_CLOSING_S / 0.01)):
            if all(transport.get_returncode() is not None for transport in started):
                break
            await asyncio.sleep(0.01)


class _Client(asyncssh.SSHClient):
    """One attempt to connect: the host keys that it trusts, what the machine showed, and the message if it fails.

    Host keys are always checked, whatever the configuration says (StrictHostKeyChecking no, UserKnownHostsFile none):
    figures from a machine that is not the one named are worth nothing.
    """

    def __init__(self, host: Host, settings: SshSettings, options: asyncssh.SSHClientConnectionOptions):
        self.host, self.options, self.identity = host, options, settings.identity
        self.connect_timeout_s = options.connect_timeout or _CONNECT_TIMEOUT_S
        self._ssh_options = settings.ssh_options()
        self._connection: asyncssh.SSHClientConnection | None = None
        self._refused_key: asyncssh.SSHKey | None = None
        self._methods: Sequence[str] = ()
        # asyncssh has None for "no checking" and an empty list for "the usual files".
        configured: Any = options.known_hosts
        names = [] if configured is None else configured or _KNOWN_HOSTS
        self._files = [str(Path(name).expanduser()) for name in names]
        present = [name for name in self._files if Path(name).is_file()]
        try:
            self.known_hosts = asyncssh.read_known_hosts(present)
        except (OSError, ValueError) as error:
            raise UserError(f"known hosts {', '.join(present)} cannot be read: {error}") from error

    # ---- asked by asyncssh

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self._connection = conn

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self._refused_key = key
        return False

    def _no_more(self) -> None:
        """The keys of files and agent are refused: there is no other, and nobody is asked in the middle of a run."""
        if self._connection is not None and not self._methods:
            self._methods = self._connection.get_server_auth_methods()

    public_key_auth_requested = password_auth_requested = kbdint_auth_requested = _no_more

    # ---- messages

    def explain(self, error: Exception) -> str:
        """What went wrong, what it means, and the next step."""
        address = f"{self.options.host}:{self.options.port}"
        if self.options.tunnel:
            address += f" through the jump host {self.options.tunnel}"
        elif self.options.proxy_command:
            address += f" through ProxyCommand {' '.join(self.options.proxy_command)}"
        if isinstance(error, asyncio.TimeoutError | TimeoutError):
            return (
                f"no answer from {address} within {self.connect_timeout_s:g} s: is the machine on, and the address "
                "right? A slow link needs a larger ConnectTimeout in the ssh configuration"
            )
        if isinstance(error, ValueError | OverflowError | RecursionError | FileNotFoundError):
            return _explain_configuration(error)
        if self.options.tunnel and self._connection is None:
            return (
                f"no connection to {address}: the jump host refuses, or does not reach the machine ({error}). "
                f"This goes the same way, and asks about host keys that are not known: {self._ssh()}"
            )
        if isinstance(error, asyncssh.HostKeyNotVerifiable):
            return self._explain_host_key(error)
        if isinstance(error, asyncssh.KeyExchangeFailed):
            return f"no common SSH algorithms ({error.reason}): update the SSH server of that machine"
        if isinstance(error, asyncssh.PermissionDenied):
            return self._explain_login(error)
        if isinstance(error, socket.gaierror):
            return (
                f"there is no machine of the name {self.options.host} ({error.strerror}): check the spelling, give an "
                "address, or add the address as HostName to the ssh configuration"
            )
        # Where a name has several addresses, asyncio makes one error whose text names them all.
        if f"[Errno {errno.ECONNREFUSED}]" in str(error):
            return (
                f"no SSH server answers at {address} (connection refused): the machine is on, but its SSH server is "
                "not, or uses another port. On that machine: sudo systemctl start ssh; for a port other than 22: "
                "host:port"
            )
        return f"no connection to {address}: {error}. See what ssh says: {self._ssh('-v')}"

    def _explain_host_key(self, error: Exception) -> str:
        key = self._refused_key
        offered = f"{key.get_algorithm()} {key.get_fingerprint()}" if key is not None else str(error)
        if "revoked" in str(error):
            return f"its host key is marked as revoked in {', '.join(self._files)}: do not connect to this machine"
        host, port = self.options.host, self.options.port
        # As ssh writes it to the file.
        name = self.options.host_key_alias or (host if port == 22 else f"[{host}]:{port}")
        known = [f"{key.get_algorithm()} {key.get_fingerprint()}" for key in self.known_hosts.match(name, "", None)[0]]
        if known:
            return (
                f"the host key has CHANGED: known is {', '.join(sorted(known))}, this machine has {offered}. "
                "A board that was flashed again has a new key; so has somebody else's machine at that address. "
                f"If you know that it was flashed: {shlex.join(['ssh-keygen', '-R', name, '-f', self._files[0]])} "
                f"and then {self._ssh()}"
            )
        if not self._files or self._files[0] == os.devnull:
            return (
                f"the host key is not known ({offered}), and the ssh configuration keeps none (UserKnownHostsFile). "
                "A host key is always checked here: name a file of known hosts with --known-hosts"
            )
        return (
            f"the host key is not known ({offered}; looked in {', '.join(self._files)}). "
            f"Add it, after comparing the fingerprint with the board's, by connecting once: {self._ssh()}"
        )

    def _explain_login(self, error: asyncssh.PermissionDenied) -> str:
        if self.identity is not None and not self.options.client_keys:
            return f"the key {self.identity} has a passphrase: put it into the agent first with ssh-add {self.identity}"
        refused = f"login refused ({error.reason}): the machine offers {', '.join(self._methods) or 'no usual method'}"
        if "publickey" not in self._methods:
            return f"{refused}, and keys are all that is tried here: allow PubkeyAuthentication in its sshd_config"
        configured: Any = self.options.config.get("IdentityFile")
        tried = [str(self.identity)] if self.identity is not None else configured or ["the key files of ~/.ssh"]
        agent = " and of the agent" if self.options.agent_path else ""
        return (
            f"{refused}; tried was publickey with {', '.join(tried)}{agent}, and it accepts none of these keys. "
            f"Put yours there once with: {self.host.command('ssh-copy-id', *self._ssh_options)} "
            "(a key with a passphrase goes into the agent first: ssh-add)"
        )

    def _ssh(self, *options: str) -> str:
        return self.host.command("ssh", *self._ssh_options, *options)


def _explain_configuration(error: Exception) -> str:
    """A key file or an ssh configuration that cannot be used."""
    if isinstance(error, asyncssh.KeyImportError | asyncssh.KeyEncryptionError):
        return f"a key file cannot be read: {error}"
    if isinstance(error, FileNotFoundError):
        return f"the ssh configuration names the file {error.filename}, which is not there: correct that line"
    if isinstance(error, RecursionError):
        return "the ssh configuration makes a jump host its own jump host: leave it out, for example by Host * !jump"
    return f"the ssh configuration cannot be used: {error}"
