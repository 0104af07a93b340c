"""How a user writes a host: [user@]host[:port], where host may be an alias of ~/.ssh/config."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import NamedTuple

from edgeqlora.errors import UserError

_HOST = re.compile(r"(?:(?P<user>[^@\s]+)@)?(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^@\s\[\]]+)")
_FOLDER_UNSAFE = re.compile(r"[^A-Za-z0-9._@-]")


class Host(NamedTuple):
    """One host to bench on."""

    written: str
    """As the user wrote it: its name in messages and results."""
    user: str | None
    """None: as ~/.ssh/config says, or the local user."""
    host: str
    """Name, address or alias of ~/.ssh/config; IPv6 without brackets."""
    port: int | None
    """None: as ~/.ssh/config says, or 22."""

    @property
    def folder(self) -> str:
        """Folder name for what comes back from this host."""
        return _FOLDER_UNSAFE.sub("_", self.written)

    def command(self, program: str, *options: str) -> str:
        """A command line for this host, of ssh or ssh-copy-id, that can be pasted."""
        port = ["-p", str(self.port)] if self.port else []
        return shlex.join([program, *options, *port, f"{self.user}@{self.host}" if self.user else self.host])


def parse_host(text: str) -> Host:
    """Read [user@]host[:port]; IPv6 addresses with a port go into brackets.

    Raises UserError for anything else, a port outside 1 to 65535, a name that ssh would take for an option.
    """
    wrong = f"host {text!r} is not [user@]host[:port], for example jetson@192.168.1.20 or nano:2222"
    rest, port = text, None
    # More than one colon without brackets is an IPv6 address, never host:port.
    address = text.rsplit("@", 1)[-1]
    if address.count(":") == 1 or "]:" in address:
        rest, _, digits = text.rpartition(":")
        if not digits.isascii() or not digits.isdigit() or not 1 <= int(digits) <= 65535:
            raise UserError(f"host {text!r}: port {digits!r}, allowed: 1 to 65535")
        port = int(digits)
    match = _HOST.fullmatch(rest)
    if match is None or match["host"].startswith("-") or (match["user"] or "").startswith("-"):
        raise UserError(wrong)
    host = match["host"].strip("[]")
    if host in (".", "..") or not host.isprintable():
        raise UserError(wrong)
    return Host(text, match["user"], host, port)


def parse_hosts(texts: Sequence[str]) -> list[Host]:
    """Read all hosts. Raises UserError where there is none, or where two would write the same folder."""
    if not texts:
        raise UserError("no host given: name at least one, for example --host jetson@192.168.1.20")
    hosts: dict[str, Host] = {}
    for text in texts:
        host = parse_host(text)
        other = hosts.setdefault(host.folder, host)
        if other is not host:
            raise UserError(
                f"hosts {other.written!r} and {host.written!r} would both write the folder {host.folder!r}: "
                "name each host once (two benches at a time on one machine would disturb each other)"
            )
    return list(hosts.values())
