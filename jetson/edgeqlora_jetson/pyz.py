"""The runner as one file: edgeqlora-jetson.pyz, a zip archive that Python executes."""

import io
import os
import zipfile
from typing import Any, List, Optional, Tuple

from .files import write_bytes
from .screen import command_line

PYZ_NAME = "edgeqlora-jetson.pyz"
_SHEBANG = b"#!/usr/bin/env python3\n"
_MAIN = b"import sys\n\nfrom edgeqlora_jetson.__main__ import main\n\nsys.exit(main())\n"
_SHIPPED = (".py", ".json")  # the package's code, and the board table it reads with pkgutil
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest a zip archive can hold


def build_pyz(out_path: Any) -> None:
    """Write this package as an executable zip archive; the same source gives the same bytes on every machine.

    Names sorted, times fixed, nothing compressed (zlib's output differs between versions). Raises UserError when it
    cannot be written.
    """
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for name, data in _sources():
            entry = zipfile.ZipInfo(name, date_time=_EPOCH)
            entry.create_system = 3  # Unix, wherever it is made
            entry.external_attr = 0o100644 << 16
            file.writestr(entry, data)
    write_bytes(out_path, _SHEBANG + archive.getvalue())
    os.chmod(os.fspath(out_path), 0o755)


def find_pyz() -> Optional[str]:
    """Path of the .pyz this package runs from; None when it runs from a folder."""
    path = os.path.dirname(os.path.abspath(__file__))
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path if os.path.isfile(path) else None


def command_name() -> str:
    """How this program is called, for hints that can be pasted: a .pyz below the current folder by its relative path."""
    pyz = find_pyz()
    if pyz is None:
        return "python3 -m edgeqlora_jetson"
    relative = os.path.relpath(pyz)
    return command_line("python3", pyz if relative.startswith(os.pardir + os.sep) else relative)


def _sources() -> List[Tuple[str, bytes]]:
    """Names inside the archive and contents, sorted by name."""
    package = os.path.dirname(os.path.abspath(__file__))
    sources = [("__main__.py", _MAIN)]
    for folder, folders, names in os.walk(package):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in names:
            if name.endswith(_SHIPPED):
                path = os.path.join(folder, name)
                inside = os.path.relpath(path, os.path.dirname(package)).replace(os.sep, "/")
                with open(path, "rb") as file:
                    sources.append((inside, file.read()))
    return sorted(sources)
