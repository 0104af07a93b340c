"""Files that are whole or absent: atomic writes, hashes, JSON."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import stat
from typing import Any, Iterable, Iterator, List, Optional, Tuple

from .errors import UserError

_HALF_A_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")
_NEXT_STEP = {
    errno.ENOSPC: "the disk is full: free some space, or write to another disk",
    errno.EDQUOT: "the disk quota is used up: free some space, or write to another disk",
    errno.EACCES: "permission denied: choose a folder you may write to",
    errno.EPERM: "not permitted: choose a folder you may write to",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EISDIR: "there is a folder of that name: choose another name",
    errno.ENOTDIR: "a part of the path is a file, not a folder: choose another path",
    errno.EEXIST: "there is a file where a folder is needed: choose another path",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
}
# These mean "writing failed" whichever file they name; EACCES and the like may come from a file being read.
_ALWAYS_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


MARKS = {
    "card.json": "edgeqlora.card/",
    "manifest.json": "edgeqlora.bundle/",
    "summary.json": "edgeqlora.demo/",
    "edgeqlora.json": "edgeqlora.also/",
}
"""Files by which a folder is known as one that we wrote, and how the schema in them begins."""


def write_bytes(path: Any, data: bytes) -> None:
    """Write a file so that it is either the old one or the whole new one, whatever happens in between.

    Missing parent folders are made. Raises UserError on a full disk, a read-only place, a forbidden path.
    """
    path = os.fspath(path)
    try:
        if _is_device(path):
            # Renaming over /dev/null or /dev/stdout would replace the device itself.
            with open(path, "wb") as device:
                device.write(data)
            return
        folder = os.path.dirname(os.path.abspath(path))
        os.makedirs(folder, exist_ok=True)
        temporary = _temporary_name(path)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _sync_folder(folder)
    except OSError as error:
        raise _write_error(path, error) from error


def check_writable(path: Any) -> None:
    """Raise UserError if a file could not be written at `path`; before hours of work, whose result goes there."""
    path = os.path.abspath(os.fspath(path))
    folder = os.path.dirname(path)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    if os.path.isdir(path):
        raise _write_error(path, OSError(errno.EISDIR, "is a folder"))
    if not os.path.isdir(folder):
        raise _write_error(path, OSError(errno.ENOTDIR, "not a folder"))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _write_error(path, OSError(errno.EACCES, "not writable"))


def write_text(path: Any, text: str) -> None:
    """Write text as UTF-8, atomically (see write_bytes)."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Any, obj: Any) -> None:
    """Write an object as indented JSON, atomically; numpy scalars become plain numbers.

    NaN and infinity raise ValueError: they are not JSON, and a missing figure is null with a reason.
    """
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False, default=_plain_number)
    write_text(path, text + "\n")


@contextlib.contextmanager
def atomic_folder(path: Any, overwrite: bool = False, inputs: Iterable[Any] = ()) -> Iterator[str]:
    """Give a temporary folder beside `path`; rename it onto `path` when the block ends well, else remove it.

    Raises UserError when `path` is there already (not empty) and `overwrite` is False, or it may not be replaced (see
    verify_replaceable), before any work is done, and when the disk is full or read-only. What an earlier killed run left
    of its temporary folder is removed.
    """
    path, inputs = os.path.realpath(os.fspath(path)), list(inputs)
    check_output_folder(path, overwrite, inputs)
    temporary = _temporary_name(path)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _remove_leftovers(path)
        os.mkdir(temporary)
    except OSError as error:
        raise _write_error(path, error) from error
    try:
        yield temporary
        _sync_tree(temporary)
        check_output_folder(path, overwrite, inputs)
        _move_onto(temporary, path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        inside = str(error.filename or "").startswith(temporary)
        if error.errno in _ALWAYS_WRITING or (inside and error.errno in (errno.EACCES, errno.EPERM)):
            raise _write_error(path, error) from error
        raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def check_output_folder(path: Any, overwrite: bool = False, inputs: Iterable[Any] = ()) -> None:
    """Raise UserError if a folder may not be written at `path`; inputs: paths that the command reads (verify_replaceable)."""
    if not os.path.lexists(path):
        return
    if not os.path.isdir(path):
        raise UserError("cannot write the folder {}: there is a file of that name".format(path))
    if not overwrite and os.listdir(path):
        raise UserError("{} exists and is not empty: choose another folder, or pass --overwrite".format(path))
    verify_replaceable(path, inputs)


def verify_replaceable(path: Any, inputs: Iterable[Any] = ()) -> None:
    """Raise UserError unless the folder `path`, with all that is in it, may be removed for a new one.

    It may where it is empty or carries a mark of ours (MARKS), and holds neither one of `inputs` (paths that the command
    reads; names that are no path are passed over) nor the current folder, the home folder or the root.
    """
    folder = os.path.realpath(os.fspath(path))
    places = [("the current folder", os.curdir), ("the home folder", os.path.expanduser("~")), ("the root", os.sep)]
    places += [("what this command reads,", os.fspath(item)) for item in inputs if item]
    for what, place in places:
        if not os.path.exists(place):
            continue
        parent, name = os.path.split(os.path.abspath(place))
        for real in (
            os.path.realpath(place),
            os.path.join(os.path.realpath(parent), name),
        ):  # a link, and what it means
            if (real + os.sep).startswith(folder.rstrip(os.sep) + os.sep):
                raise UserError(
                    "{} cannot be replaced: it is or holds {} {}. Choose another output folder".format(path, what, real)
                )
    if os.path.isdir(folder) and os.listdir(folder) and not is_ours(folder):
        raise UserError(
            "{} is not replaced, since this program did not write it: there is no {} of ours in it. Choose another output "
            "folder, or remove this one yourself".format(path, " or ".join(sorted(MARKS)))
        )


def is_ours(folder: str) -> bool:
    """Whether a folder carries a mark of ours (MARKS)."""
    for name, schema in MARKS.items():
        try:
            mark = read_json(os.path.join(folder, name), "mark")
        except UserError:
            continue
        if isinstance(mark, dict) and str(mark.get("schema", "")).startswith(schema):
            return True
    return False


def user_cache_folder(name: str) -> str:
    """Folder for what can be made again: $XDG_CACHE_HOME/edgeqlora/NAME, else ~/.cache/edgeqlora/NAME; not made here."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification says to ignore a relative path here
        base = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "edgeqlora", name)


def sha256_file(path: Any) -> str:
    """SHA-256 of a file's bytes, 64 hex digits. Raises UserError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(os.fspath(path), "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    except OSError as error:
        raise _read_error(path, "file", error) from error
    return digest.hexdigest()


def read_json(path: Any, what: str) -> Any:
    """Read a JSON file; `what` names it in errors, for example "bundle manifest".

    Raises UserError when it is missing, not UTF-8 or not JSON, with line and column.
    """
    text = _read_text(path, what)
    try:
        return parse_json(text)
    except ValueError as error:
        raise UserError("{}: this {} is not JSON: {}".format(path, what, error)) from error


def parse_json(text: str, **options: Any) -> Any:
    """json.loads (with its options), whose ValueError also stands for what is nested too deep, and for half a character
    (an escape such as \\ud800 alone), which can be neither shown nor written again."""
    try:
        value = json.loads(text, **options)
        if _HALF_A_CHARACTER.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except UnicodeEncodeError as error:
        raise ValueError("it holds half a character ({!r})".format(error.object[error.start])) from None


def read_json_lines(path: Any, what: str) -> List[Tuple[int, dict]]:
    """Read a file of one JSON object a line: list of (line number from 1, object); blank lines are skipped.

    Raises UserError naming the line that is not a JSON object.
    """
    rows = []
    # Not splitlines(): it also cuts at U+2028 and the like, which JSON text may hold unescaped.
    for number, line in enumerate(_read_text(path, what).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise UserError("{}, line {}: not JSON: {}".format(path, number, error)) from error
        if not isinstance(row, dict):
            raise UserError(
                "{}, line {}: a {} row is a JSON object, this is {}".format(path, number, what, type(row).__name__)
            )
        rows.append((number, row))
    return rows


def _read_text(path: Any, what: str) -> str:
    try:
        with open(os.fspath(path), "rb") as file:
            return file.read().decode("utf-8-sig")
    except OSError as error:
        raise _read_error(path, what, error) from error
    except UnicodeDecodeError as error:
        raise UserError("{}: this {} is not UTF-8 text (byte {})".format(path, what, error.start)) from error


def _read_error(path: Any, what: str, error: OSError) -> UserError:
    if error.errno == errno.ENOENT:
        return UserError("{}: there is no such {}".format(path, what))
    return UserError("{}: this {} cannot be read: {}".format(path, what, error.strerror or error))


def _write_error(path: str, error: OSError) -> UserError:
    next_step = _NEXT_STEP.get(error.errno or 0, error.strerror or str(error))
    return UserError("cannot write {}: {}".format(path, next_step))


def _plain_number(value: Any) -> Any:
    item = getattr(value, "item", None)
    if item is None or getattr(value, "shape", None) != ():
        raise TypeError("{!r} is not JSON".format(value))
    return item()


def _temporary_name(path: str) -> str:
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(folder, ".{}.{}.{}.partial".format(name, socket.gethostname(), os.getpid()))


def _remove_leftovers(path: str) -> None:
    """Remove temporary folders for `path` whose process on this host is gone (killed, power cut)."""
    folder, name = os.path.split(path)
    prefix, suffix = ".{}.{}.".format(name, socket.gethostname()), ".partial"
    for entry in os.listdir(folder):
        pid = entry[len(prefix) : -len(suffix)]
        if not (entry.startswith(prefix) and entry.endswith(suffix) and pid.isdigit()):
            continue
        if int(pid) == os.getpid() or not _is_process(int(pid)):
            shutil.rmtree(os.path.join(folder, entry), ignore_errors=True)


def _is_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _is_device(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _move_onto(temporary: str, path: str) -> None:
    old: Optional[str] = None
    if os.path.isdir(path) and os.listdir(path):
        old = temporary + ".old"
        os.rename(path, old)
    try:
        os.rename(temporary, path)
    except OSError:
        if old is not None:
            os.rename(old, path)
        raise
    _sync_folder(os.path.dirname(path))
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _sync_tree(folder: str) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            if os.path.isfile(path):
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        _sync_folder(root)


def _sync_folder(folder: str) -> None:
    # Some file systems (network, FUSE) refuse fsync on folders: the rename is still atomic there.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
