"""Remembers that a bundle's files were hashed: gigabytes are read once, and not again at every start.

The record lies in the user's cache folder, so that a bundle on a read-only disk works as well. Without a place for it
every start hashes all files.
"""

import contextlib
import hashlib
import os
from typing import Any, Dict, List, Optional

from ..errors import UserError
from ..files import read_json, user_cache_folder, write_json


def stamps_of(folder: str, names: List[str]) -> Optional[Dict[str, List[int]]]:
    """Size, time of modification and of the last change of the entry, in ns, of each file; None where one is missing."""
    stamps = {}
    for name in names:
        try:
            status = os.stat(os.path.join(folder, *name.split("/")))
        except OSError:
            return None
        stamps[name] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    return stamps


def was_verified(folder: str, manifest_sha256: str, stamps: Optional[Dict[str, List[int]]]) -> bool:
    """Whether these files, with these stamps, were found to be those of this manifest before."""
    if stamps is None:
        return False
    try:
        record = read_json(_record_path(folder), "record of verified files")
    except UserError:
        return False
    return bool(record == _record(folder, manifest_sha256, stamps))


def remember(folder: str, manifest_sha256: str, stamps: Dict[str, List[int]]) -> None:
    """Record that the files with these stamps, taken before they were read, are those of the manifest."""
    with contextlib.suppress(UserError):
        write_json(_record_path(folder), _record(folder, manifest_sha256, stamps))


def _record(folder: str, manifest_sha256: str, stamps: Dict[str, List[int]]) -> Dict[str, Any]:
    return {"folder": os.path.realpath(folder), "manifest_sha256": manifest_sha256, "files": stamps}


def _record_path(folder: str) -> str:
    name = hashlib.sha256(os.path.realpath(folder).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return os.path.join(user_cache_folder("verified"), name + ".json")
