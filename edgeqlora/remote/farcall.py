"""Talking with the helper on the other machine (far.py): start it, ask it, hear the runner's lines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pkgutil
import shlex
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncssh

from edgeqlora.errors import UserError
from edgeqlora.remote.far import READY
from edgeqlora.remote.hosts import Host

HEARTBEAT_S = 10.0
"""How often the helper hears from here; it gives up after far.SILENCE_S without."""
_START_S = 60.0
_MAX_NOISE_LINES = 200

# Runs under any Python since 2.6, one line, no quotes of the shell inside: login shells may be csh or fish.
# sys.path begins with the home folder, where a queue.py or json.py of the user's may lie.
_BOOTSTRAP = (
    'import sys; sys.path[:1] = []; v = sys.version_info; v < (3, 6) and sys.exit("edgeqlora: too old %d.%d.%d" % v[:3]); '
    'exec(compile(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())).decode(), "edgeqlora-far", "exec"))'
)


class Helper:
    """A running helper. Requests go one after another."""

    def __init__(self, host: Host, process: asyncssh.SSHClientProcess[bytes]):
        self.host, self._process = host, process

    async def ask(self, op: str, on_line: Callable[[str, str], None] | None = None, **arguments: Any) -> Any:
        """Make a request and return its reply; on_line(text, "out" or "err") is called for lines of a program.

        Raises UserError with the helper's words, ConnectionError when the link breaks.
        """
        self._process.stdin.write(json.dumps({"op": op, **arguments}).encode() + b"\n")
        while True:
            message = await self._read()
            if "line" in message:
                if on_line is not None:
                    on_line(message["line"], message["stream"])
            elif "error" in message:
                raise UserError(f"{self.host.written}: {message['error']}")
            else:
                return message["reply"]

    async def _read(self) -> dict[str, Any]:
        line = await self._process.stdout.readline()
        if not line.endswith(b"\n"):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._process.wait_closed(), 1)
            signal = (self._process.exit_signal or ("",))[0]
            if signal == "KILL":
                raise UserError(
                    f"{self.host.written}: the helper there was killed, most likely for lack of memory: "
                    "close other programs on that machine, or add swap, and run again"
                )
            raise ConnectionResetError("the connection was lost")
        message: dict[str, Any] = _printable_texts(json.loads(line))
        return message

    async def beat(self) -> None:
        """Tell the helper, for ever, that this end is alive."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            self._process.stdin.write(b"\n")

    async def end(self) -> None:
        """Close the helper's input, upon which it ends what it started, and wait for that a while."""
        with contextlib.suppress(OSError, asyncssh.Error):
            self._process.stdin.write_eof()
        with contextlib.suppress(OSError, asyncssh.Error, asyncio.TimeoutError):
            await asyncio.wait_for(self._process.wait_closed(), 12)


@contextlib.asynccontextmanager
async def open_far(connection: asyncssh.SSHClientConnection, host: Host, python: str) -> AsyncIterator[Helper]:
    """The helper, running on the other machine with its `python`; ended at the end, with all that it started.

    Raises UserError when that Python is missing, older than 3.6, or does not start.
    """
    command = f"{_far_word(python)} -c {shlex.quote(_BOOTSTRAP)}"
    process = await connection.create_process(command, encoding=None, request_pty=False)
    far = Helper(host, process)
    source = pkgutil.get_data("edgeqlora.remote", "far.py")
    assert source is not None
    try:
        # Named so that the file's last lines run: exec() inherits __name__ == "__main__" from the -c program.
        process.stdin.write(b"%d\n" % len(source) + source)
        await asyncio.wait_for(_wait_until_ready(process), _START_S)
    except (OSError, asyncssh.Error, asyncio.TimeoutError, ConnectionError) as error:
        raise UserError(await _why_not_started(process, host, python, error)) from error
    heart = asyncio.create_task(far.beat())
    try:
        yield far
    finally:
        heart.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await heart
        await far.end()


async def _wait_until_ready(process: asyncssh.SSHClientProcess[bytes]) -> None:
    """Skip what the start-up files of the login shell print."""
    for _ in range(_MAX_NOISE_LINES):
        line = await process.stdout.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError("it ended at once")
        if READY.encode() in line:
            return
    raise ConnectionResetError(f"its shell prints more than {_MAX_NOISE_LINES} lines at login")


async def _why_not_started(
    process: asyncssh.SSHClientProcess[bytes], host: Host, python: str, error: BaseException
) -> str:
    said = b""
    with contextlib.suppress(Exception):
        said = await asyncio.wait_for(process.stderr.read(4000), 3)
        await asyncio.wait_for(process.wait_closed(), 3)
    process.close()
    text = printable(said.decode("utf-8", "replace").strip().replace("\n", " / "))
    if "edgeqlora: too old" in text:
        version = text.rpartition(" ")[2]
        return (
            f"{host.written}: {python} is Python {version}, the runner needs 3.6 or newer. "
            "Name another one with --remote-python, for example --remote-python python3.8"
        )
    if process.exit_status in (126, 127):
        return (
            f"{host.written}: there is no {python} that can be run there ({text or 'not found'}). "
            "Install it (sudo apt-get install python3), or name one with --remote-python /path/to/python3"
        )
    reason = text or str(error) or f"no answer within {_START_S:g} s"
    return f"{host.written}: {python} does not start there: {reason}"


def _far_word(text: str) -> str:
    """One word for the login shell there; a leading ~/ stays the home folder of that machine."""
    if text.startswith("~/"):
        return "~/" + shlex.quote(text[2:])
    return shlex.quote(text)


def _printable_texts(value: Any) -> Any:
    """A message of the other machine with every text in it made printable."""
    if isinstance(value, str):
        return "\n".join(printable(line) for line in value.split("\n"))
    if isinstance(value, list):
        return [_printable_texts(item) for item in value]
    if isinstance(value, dict):
        return {key: _printable_texts(item) for key, item in value.items()}
    return value


def printable(text: str) -> str:
    """Text of another machine without control characters: they could rewrite this terminal."""
    return "".join(char if char.isprintable() or char == "\t" else "\N{REPLACEMENT CHARACTER}" for char in text)
