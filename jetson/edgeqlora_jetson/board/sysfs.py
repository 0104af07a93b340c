"""Reading small files of /proc, /sys and /etc under a root folder, and asking the system's own programs."""

import contextlib
import glob
import os
import re
import subprocess
from typing import Callable, List, Optional, Sequence, Tuple

Run = Callable[[Sequence[str]], Tuple[Optional[int], str]]
"""Runs argv; gives (exit code, what it printed). Code None: there is no such program, or it did not end."""


def read_text(root: str, path: str) -> Optional[str]:
    """Text of a file without its trailing NULs and line ends; None where it cannot be read.

    Device tree files end in NUL; those of lists hold one NUL between items, which is kept.
    """
    try:
        with open(join(root, path), "rb") as file:
            return file.read().decode("utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return None


def read_int(root: str, path: str) -> Optional[int]:
    """The decimal number in a file; None where there is none."""
    return parse_int(read_text(root, path))


def parse_int(text: Optional[str]) -> Optional[int]:
    """A signed decimal number, or None."""
    return int(text) if text and re.match(r"^-?\d+$", text) else None


def find(root: str, pattern: str) -> List[str]:
    """Paths below root that match a glob pattern, without root; thermal_zone2 before thermal_zone10."""
    start = os.path.join(root, "")
    found = [path[len(start) :] for path in glob.glob(join(glob.escape(root), pattern))]
    return sorted(found, key=lambda path: [(len(part), part) for part in re.split(r"(\d+)", path)])


def join(root: str, path: str) -> str:
    """Path below root, whether it was written with a leading slash or not."""
    return os.path.join(root, path.lstrip("/"))


class KeptFile(object):
    """A file kept open, to be read again and again: opening costs more than reading in /proc and /sys.

    is_long: it may be longer than a page, which the kernel gives in pieces (/proc/zoneinfo zone by zone).
    """

    def __init__(self, root: str, path: str, is_long: bool = False) -> None:
        self._is_long = is_long
        self._descriptor: Optional[int] = None
        try:
            self._descriptor = os.open(join(root, path), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._descriptor = None

    def read(self) -> Optional[str]:
        """What the file says now; None where it cannot be read."""
        if self._descriptor is None:
            return None
        try:
            text = piece = os.pread(self._descriptor, 4096, 0)
            while self._is_long and piece:
                piece = os.pread(self._descriptor, 1 << 16, len(text))
                text += piece
        except OSError:
            return None
        return text.decode("utf-8", errors="replace").strip("\0 \n")

    def read_int(self) -> Optional[int]:
        """The number the file says now."""
        return parse_int(self.read())

    def close(self) -> None:
        """Close it; reading gives None from then on."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
        self._descriptor = None

    def __del__(self) -> None:
        self.close()


def run_command(argv: Sequence[str], timeout_s: float = 10.0) -> Tuple[Optional[int], str]:
    """Run a program without a shell and without a terminal: (exit code, stdout and stderr together).

    Its input is empty: nvpmodel asks whether to reboot, and no answer means no.
    """
    try:
        process = subprocess.Popen(
            list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        return None, error.strerror or str(error)
    with process:
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return None, "did not end within {:g} s".format(timeout_s)
    return process.returncode, output.decode("utf-8", errors="replace")


def runner(root: str, run: Optional[Run] = None) -> Run:
    """The given runner, else one for this root: this machine's programs know nothing of another root."""
    if run is not None:
        return run
    if os.path.abspath(root) == "/":
        return run_command
    return lambda argv: (None, "{} is not asked for another root".format(argv[0]))
