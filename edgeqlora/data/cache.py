"""Features kept on disk under the hash of what they were computed from."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from edgeqlora.data.audio import load_audio, probe
from edgeqlora.data.row import Row
from edgeqlora.errors import UserError
from edgeqlora_jetson.files import sha256_file, user_cache_folder

# Raise it whenever the same audio would give other features: decoding, resampling, padding or file format.
CACHE_SCHEMA = "edgeqlora.mel/2"
CHECKSUM_BYTES = 4
_FILE_OVERHEAD_BYTES = 128 + CHECKSUM_BYTES  # numpy's header before the features
_OURS = re.compile(r"[0-9a-f]{64}\.npy|\.tmp-\w+")

log = logging.getLogger(__name__)


def default_cache_folder() -> Path:
    """`$XDG_CACHE_HOME/edgeqlora/features`, or the same below `~/.cache`."""
    return Path(user_cache_folder("features"))


class Entry(NamedTuple):
    """A file of features in a cache."""

    path: Path
    n_bytes: int
    used_ns: int
    """When it was written or last read."""


def entries_of(folder: Path) -> Iterator[Entry]:
    """The features in a cache folder, and what interrupted writes left there; other files are not ours."""
    for path in folder.glob("[0-9a-f][0-9a-f]/*"):
        if _OURS.fullmatch(path.name):
            with suppress(OSError):  # another process may have removed it
                status = path.stat()
                yield Entry(path, status.st_size, status.st_mtime_ns)


def remove_entries(entries: Iterable[Entry]) -> None:
    """Remove files of features; those that are gone already do no harm."""
    for entry in entries:
        with suppress(OSError):
            entry.path.unlink()


class FeatureExtractor(Protocol):
    """What the cache needs of a model's processor (see models/family.py)."""

    sample_rate_hz: int

    @property
    def settings(self) -> str: ...
    def feature_shape(self, window_s: float) -> tuple[int, ...]: ...
    def n_valid_frames(self, n_samples: int, window_s: float) -> int: ...
    def features(self, audio: npt.NDArray[np.float32], window_s: float) -> npt.NDArray[np.float32]: ...


class FeatureCache:
    """Features of rows, computed once and then read from `folder`; `folder=None` computes every time.

    The key is the sha256 of the audio bytes, the cut, what is kept of it, the extractor's settings, the window and the cache
    schema, so that a changed file is never served old features. A damaged cache file is computed again; a
    folder that cannot be written (disk full, no permission) is given up with one warning.

    Beyond `max_bytes` the features not used for longest go first. Each data loader process counts what it
    writes itself and looks at the whole folder after every twentieth part of `max_bytes`.
    """

    def __init__(
        self, extractor: FeatureExtractor, folder: str | Path | None = None, max_bytes: int = 20 << 30
    ) -> None:
        self.extractor = extractor
        self.folder = None if folder is None else Path(folder)
        self.max_bytes = max_bytes
        self._room_bytes = 0
        """What may be written before the folder is looked at again."""
        self.n_read = 0
        """Features served from disk."""
        self.n_computed = 0
        """Features computed."""
        self._hashes: dict[tuple[str, int, int], str] = {}
        self._n_samples: dict[str, int] = {}

    def features(self, row: Row, window_s: float) -> npt.NDArray[np.float32]:
        """Features of a row's audio, padded or cut to the window: float32 of the extractor's `feature_shape`.

        Raises UserError naming the file when it cannot be decoded.
        """
        shape = self.extractor.feature_shape(window_s)
        if self.folder is None:
            return self._compute(row, window_s)
        key = self.key(row, window_s)
        path = self.folder / key[:2] / f"{key}.npy"
        features = read_cached(path, shape)
        if features is not None:
            self.n_read += 1
            with suppress(OSError):  # a cache that others may only read
                os.utime(path)
            return features
        features = self._compute(row, window_s)
        if features.nbytes > self.max_bytes:
            return features
        try:
            self._make_room(self.folder, features.nbytes + _FILE_OVERHEAD_BYTES)
            write_cached(path, features)
        except OSError as error:
            log.warning(
                "cannot cache features in %s (%s): going on without the cache",
                self.folder,
                error.strerror or error,
            )
            self.folder = None
        return features

    def n_valid_frames(self, row: Row, window_s: float) -> int:
        """Frames of the window that hold the clip, from the file's header; the rest is padding."""
        name = f"{row.audio}\0{row.start}\0{row.end}\0{row.kept}"
        if name not in self._n_samples:
            self._n_samples[name] = round(probe(row)[1] * self.extractor.sample_rate_hz)
        return self.extractor.n_valid_frames(self._n_samples[name], window_s)

    def key(self, row: Row, window_s: float) -> str:
        """Name of a row's features in the cache: 64 hexadecimal digits."""
        n_frames = self.extractor.feature_shape(window_s)[-1]
        parts = (
            CACHE_SCHEMA,
            self.extractor.settings,
            str(n_frames),
            repr(row.start),
            repr(row.end),
            *([] if row.kept is None else [repr(row.kept)]),
            self._hash(row),
        )
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _hash(self, row: Row) -> str:
        """sha256 of the encoded audio; a file is hashed again only when its time or size changes."""
        if row.read_bytes is not None:
            return hashlib.sha256(row.read_bytes()).hexdigest()
        try:
            status = os.stat(row.audio)
        except OSError as error:
            raise UserError(f"audio file {row.name} cannot be read: {error.strerror}: check the path") from None
        stamp = (row.audio, status.st_mtime_ns, status.st_size)
        if stamp not in self._hashes:
            self._hashes[stamp] = sha256_file(row.audio)
        return self._hashes[stamp]

    def _make_room(self, folder: Path, n_bytes: int) -> None:
        if n_bytes > self._room_bytes:
            oldest = sorted(entries_of(folder), key=lambda entry: entry.used_ns)
            step = max(self.max_bytes // 20, n_bytes)
            excess = sum(entry.n_bytes for entry in oldest) + step - self.max_bytes
            sums = accumulate((entry.n_bytes for entry in oldest), initial=0)
            remove_entries(entry for entry, before in zip(oldest, sums, strict=False) if before < excess)
            self._room_bytes = step
        self._room_bytes -= n_bytes

    def _compute(self, row: Row, window_s: float) -> npt.NDArray[np.float32]:
        self.n_computed += 1
        return self.extractor.features(load_audio(row, self.extractor.sample_rate_hz), window_s)


def write_cached(path: Path, features: npt.NDArray[np.float32]) -> None:
    """Write an array as .npy with a CRC-32 behind it, in one rename; OSError when the disk refuses."""
    buffer = io.BytesIO()
    np.save(buffer, features, allow_pickle=False)
    payload = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(payload)
            stream.write(zlib.crc32(payload).to_bytes(CHECKSUM_BYTES, "little"))
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_cached(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.float32] | None:
    """Read what `write_cached` wrote; None when it is absent, damaged or of another shape."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    payload, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    if zlib.crc32(payload).to_bytes(CHECKSUM_BYTES, "little") != checksum:
        return None
    try:
        features = np.load(io.BytesIO(payload), allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return None
    return features if features.dtype == np.float32 and features.shape == shape else None
