"""Copying a bundle so that it can stop anywhere and go on: compared by SHA-256, sent in parts, manifest last."""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import asyncssh

from edgeqlora.errors import UserError
from edgeqlora.remote.far import hash_of
from edgeqlora.remote.farcall import Helper
from edgeqlora_jetson.bundle import MANIFEST

BLOCK = 1 << 20
"""Bytes sent and waited for at a time; what was sent before the last block is there in one piece."""
_REQUEST_BYTES = 16 << 10
"""Of one write request: what every SFTP server takes."""
SPARE_BYTES = 64 << 20
"""Room left on the far disk for the report and for what the runner writes."""


class Piece(NamedTuple):
    """A file to send."""

    name: str
    """Path inside the bundle, with slashes."""
    n_bytes: int
    sha256: str
    offset: int
    """Bytes from the start that are there already, checked: sending begins here."""


@dataclass
class Tally:
    """What is being done with a host, and what its copy has done so far; right after an interruption too."""

    stage: str = "looking at the machine"
    total_bytes: int = 0
    skipped_bytes: int = 0
    copied_bytes: int = 0


def plan_copy(
    files: Mapping[str, Mapping[str, Any]], survey: Mapping[str, Mapping[str, Any]], prefix_hashes: Mapping[str, str]
) -> list[Piece]:
    """The files to send, smallest first and the manifest last.

    files: name -> {"bytes", "sha256"} as here. survey: the helper's answer (far.op_survey). prefix_hashes: name ->
    SHA-256 of the local file's first part_bytes bytes, for names with a part there.
    """
    pieces = []
    for name, entry in files.items():
        row = survey[name]
        if row["state"] == "same":
            continue
        part_bytes = row["part_bytes"]
        is_prefix = part_bytes > 0 and row["part_sha256"] == prefix_hashes[name]
        pieces.append(Piece(name, entry["bytes"], entry["sha256"], part_bytes if is_prefix else 0))
    if pieces and survey[MANIFEST]["state"] == "same":
        # It is taken away before the first file is sent.
        pieces.append(Piece(MANIFEST, files[MANIFEST]["bytes"], files[MANIFEST]["sha256"], 0))
    return sorted(pieces, key=lambda piece: (piece.name == MANIFEST, piece.n_bytes, piece.name))


async def copy_bundle(
    far: Helper,
    connection: asyncssh.SSHClientConnection,
    folder: Path,
    files: Mapping[str, Mapping[str, Any]],
    far_folder: str,
    free_bytes: int,
    tally: Tally,
    progress: Callable[[int, int], None],
) -> None:
    """Bring the far folder to hold `files` of the local `folder`; what is there and right is not sent.

    tally is kept up to date; progress(bytes that are there, all bytes) is called after each block. Raises UserError
    for a full or read-only far disk, a file that changed here meanwhile; connection errors as they come.
    """
    survey = await far.ask("survey", folder=far_folder, files=files, block=BLOCK)
    prefixes = {
        name: await asyncio.to_thread(hash_of, folder / name, row["part_bytes"])
        for name, row in survey.items()
        if row["state"] != "same" and row["part_bytes"]
    }
    pieces = plan_copy(files, survey, prefixes)
    tally.total_bytes = sum(entry["bytes"] for entry in files.values())
    missing_bytes = sum(piece.n_bytes - piece.offset for piece in pieces)
    tally.skipped_bytes = tally.total_bytes - missing_bytes
    if not pieces:
        return
    if missing_bytes + SPARE_BYTES > free_bytes:
        raise UserError(
            f"{far.host.written}: {far_folder} has {free_bytes / 2**20:,.0f} MiB free, needed: "
            f"{(missing_bytes + SPARE_BYTES) / 2**20:,.0f} MiB. Free some space there, or choose another place with "
            "--remote-dir"
        )
    await far.ask("prepare", folder=far_folder, names=[piece.name for piece in pieces], manifest=MANIFEST)
    async with await _start_sftp(far, connection) as sftp:
        for piece in pieces:
            await _send(far, sftp, folder, far_folder, piece, tally, progress)


async def _start_sftp(far: Helper, connection: asyncssh.SSHClientConnection) -> asyncssh.SFTPClient:
    try:
        return await connection.start_sftp_client()
    except (asyncssh.ChannelOpenError, asyncssh.SFTPError) as error:
        if connection.is_closed():
            raise
        raise UserError(
            f"{far.host.written}: its SSH server offers no SFTP ({error}): on that machine, /etc/ssh/sshd_config needs "
            "the line 'Subsystem sftp internal-sftp', then sudo systemctl restart ssh"
        ) from error


async def _send(
    far: Helper,
    sftp: asyncssh.SFTPClient,
    folder: Path,
    far_folder: str,
    piece: Piece,
    tally: Tally,
    progress: Callable[[int, int], None],
) -> None:
    """Send one file from its offset on, have it checked there, and give it its name."""
    part = posixpath.join(far_folder, piece.name) + ".part"
    with (folder / piece.name).open("rb") as source:
        source.seek(piece.offset)
        # "r+" keeps what is there; a part that is not continued is cut to nothing by "w".
        async with sftp.open(part, "r+b" if piece.offset else "wb") as target:
            offset = piece.offset
            while data := await asyncio.to_thread(source.read, BLOCK):
                await _write_block(target, data, offset)
                offset += len(data)
                tally.copied_bytes += len(data)
                progress(tally.skipped_bytes + tally.copied_bytes, tally.total_bytes)
            await target.truncate(offset)
    reply = await far.ask("commit", folder=far_folder, name=piece.name, sha256=piece.sha256)
    if not reply["done"]:
        raise UserError(
            f"{far.host.written}: {piece.name} arrived with sha256 {reply['found']}, expected {piece.sha256}: it changed "
            "here during the copy, or that disk is failing. Check the bundle (edgeqlora-jetson.pyz info) and run again"
        )


async def _write_block(target: asyncssh.SFTPClientFile, data: bytes, offset: int) -> None:
    """Write a block with all its requests under way at once.

    asyncssh would split a long write itself, but leaves the failures of all parts but one to be found by the garbage
    collector, which prints them.
    """
    outcomes = await asyncio.gather(
        *(target.write(data[i : i + _REQUEST_BYTES], offset + i) for i in range(0, len(data), _REQUEST_BYTES)),
        return_exceptions=True,
    )
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
