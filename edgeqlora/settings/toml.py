"""Settings as TOML: read (unknown names are errors), and written by --save-config."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

from edgeqlora.errors import UserError
from edgeqlora.settings.fields import FIELDS, TrainSettings
from edgeqlora_jetson.files import write_text

_PATHS = ("base_model", "train", "dev", "output", "noise", "room", "canary", "replay", "ranks", "cache")


def read_settings(path: Path) -> dict[str, Any]:
    """Fields given in a TOML file; unknown names are an error that suggests the nearest known one.

    A relative path means the file's own folder, also where nothing is there yet.
    """
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        given = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no config file {path}: write one with --save-config {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as TOML: {error}") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    for name in given:
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(FIELDS)}"
            raise UserError(f"{path}: unknown setting {name!r}; {hint}")
    folder = Path(path).resolve().parent
    return {name: in_folder(name, value, folder) for name, value in given.items()}


def in_folder(name: str, value: Any, folder: Path) -> Any:
    """A setting with the path in it, if it is one, taken from `folder`."""
    if name not in _PATHS or not isinstance(value, str) or not value or value.startswith("hf:"):
        return value
    if (name == "ranks" and value.startswith(("uniform:", "adalora:", "flex:"))) or (
        name == "cache" and value in ("auto", "none")
    ):
        return value
    path = os.path.normpath(folder / os.path.expanduser(value))
    if name == "base_model" and not os.path.exists(path) and value[0] not in "./~":
        return value  # a name on the hub
    return path


def write_settings(settings: TrainSettings, path: Path) -> None:
    """Write the settings as TOML, None and empty values left out, in order of the fields; paths are absolute."""
    import tomli_w

    given = {
        name: in_folder(name, value, Path.cwd())
        for name in FIELDS
        if (value := getattr(settings, name)) is not None and value != "" and value != []
    }
    write_text(path, tomli_w.dumps(given))
