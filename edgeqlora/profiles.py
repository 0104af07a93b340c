"""Hardware profiles: what one board takes, read from profiles/<name>.toml, with the source of every fact."""

from __future__ import annotations

import dataclasses
import difflib
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeqlora.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRECISIONS = ("fp32", "fp16", "bf16", "int8")


@dataclass(frozen=True)
class Profile:
    """One board. Absent optional keys are None: not applicable, or not known."""

    name: str
    """Name for --target: the file's name without .toml."""
    title: str
    """The board in words."""
    opset: int
    """ONNX opset of the exported graphs, 13 to 20."""
    precisions: tuple[str, ...]
    """Precisions the board is asked for, best first; out of fp32, fp16, bf16, int8."""
    max_window_s: float
    """Longest audio window, s, that the board is asked to encode, in (0, 30]."""
    max_batch: int
    """Largest batch, 1 to 64."""
    threads: int | None
    """CPU threads of the runner, 1 to 1024; None: one per core."""
    memory_mib: int | None
    """Memory of the board, shared by CPU and GPU, MiB."""
    tensorrt: str | None
    """TensorRT version, such as "8.2"; None: no TensorRT."""
    python: str
    """Python version of the board's system, such as "3.6"."""
    workspace_mib: int | None
    """Cap on TensorRT's workspace, MiB, when engines are built."""
    notes: str
    """What a user should know."""
    sources: Mapping[str, str]
    """Where each value comes from, by key; the word "unsourced" marks what no public document confirms."""

    def to_plain(self) -> dict[str, Any]:
        """Plain values for the bundle's manifest; sources stay on the workstation."""
        plain = dataclasses.asdict(self)
        del plain["sources"]
        return {**plain, "precisions": list(self.precisions)}


@dataclass(frozen=True)
class _Rule:
    types: tuple[type, ...]
    allowed: str
    lowest: float = 0
    highest: float = 0
    optional: bool = False


_RULES = {
    "name": _Rule((str,), "a text"),
    "title": _Rule((str,), "a text"),
    "opset": _Rule((int,), "13 to 20", 13, 20),
    "precisions": _Rule((list,), f"a list out of {', '.join(PRECISIONS)}, without repeats"),
    "max_window_s": _Rule((int, float), "0.02 to 30", 0.02, 30),
    "max_batch": _Rule((int,), "1 to 64", 1, 64),
    "threads": _Rule((int,), "1 to 1024", 1, 1024, optional=True),
    "memory_mib": _Rule((int,), "256 to 1048576", 256, 1048576, optional=True),
    "tensorrt": _Rule((str,), 'a version such as "8.2"', optional=True),
    "python": _Rule((str,), 'a version such as "3.6"'),
    "workspace_mib": _Rule((int,), "16 to 65536", 16, 65536, optional=True),
    "notes": _Rule((str,), "a text"),
    "sources": _Rule((dict,), "a table of texts, one for each key"),
}
_NEED_NO_SOURCE = {"name", "title", "notes", "sources"}


def profiles_dir(package_dir: Path | None = None) -> Path:
    """Folder of the shipped profiles: of the checkout if this is one, else the copy inside the installed package."""
    package_dir = package_dir or Path(__file__).resolve().parent
    for folder in (package_dir.parent / "profiles", package_dir / "_profiles"):
        # A folder called "profiles" beside an installed package may be anybody's: ours holds cpu.toml.
        if (folder / "cpu.toml").is_file():
            return folder
    raise UserError(f"no profiles beside {package_dir}: the installation is incomplete; install edgeqlora again")


def list_profiles() -> list[str]:
    """Names of the shipped profiles, sorted."""
    return sorted(path.stem for path in profiles_dir().glob("*.toml"))


def load_profile(name_or_path: str | Path) -> Profile:
    """Load a shipped profile by name, or any profile by the path of its .toml file.

    Raises UserError for an unknown name (lists the known ones and suggests the nearest), an unreadable file,
    an unknown or missing key, a wrong type, a value out of range, or a value without a source.
    """
    text = str(name_or_path)
    if text.endswith(".toml") or "/" in text or "\\" in text:
        path = Path(text)
    else:
        known = list_profiles()
        if text not in known:
            near = difflib.get_close_matches(text.lower(), known, n=1, cutoff=0.4)
            guess = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"profile {text!r} is not known; the known ones are {', '.join(known)}{guess}")
        path = profiles_dir() / f"{text}.toml"
    return parse_profile(_read_toml(path), path)


def parse_profile(values: Mapping[str, Any], path: Path) -> Profile:
    """Check the values of a profile file and make a Profile. `path` names the file in errors and gives its name."""
    unknown = sorted(set(values) - set(_RULES))
    if unknown:
        near = difflib.get_close_matches(unknown[0], _RULES, n=1)
        guess = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{path}: key {unknown[0]!r} is not known; allowed are {', '.join(_RULES)}{guess}")
    for key, rule in _RULES.items():
        if key in values:
            _check(path, key, values[key], rule)
        elif not rule.optional:
            raise UserError(f"{path}: key {key!r} is missing; allowed: {rule.allowed}")
    if values["name"] != path.stem:
        raise UserError(f"{path}: name = {values['name']!r}; allowed: the file's own name, {path.stem!r}")
    _check_sources(path, values)
    full: dict[str, Any] = {key: values.get(key) for key in _RULES}
    full["precisions"] = tuple(values["precisions"])
    full["max_window_s"] = float(values["max_window_s"])
    return Profile(**full)


def format_profile(profile: Profile) -> str:
    """All values of a profile as text, each with its source below it."""
    lines = [f"{profile.name}: {profile.title}", ""]
    for key, value in profile.to_plain().items():
        if key in ("name", "title", "notes"):
            continue
        shown = ", ".join(value) if isinstance(value, list) else "-" if value is None else f"{value}"
        lines.append(f"  {key:<15}{shown}")
        if key in profile.sources:
            lines.append(textwrap.fill(profile.sources[key], 100, initial_indent=" " * 19, subsequent_indent=" " * 19))
    return "\n".join([*lines, "", textwrap.fill(profile.notes, 100)])


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UserError(f"{path}: this profile cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: this profile is not TOML: {error}") from error


def _check(path: Path, key: str, value: Any, rule: _Rule) -> None:
    good = isinstance(value, rule.types) and not isinstance(value, bool)
    if good and rule.highest:
        good = rule.lowest <= value <= rule.highest
    elif good and isinstance(value, str):
        good = bool(value.strip())
        if key in ("tensorrt", "python"):
            good = all(part.isdecimal() for part in value.split(".")) and "." in value
    elif good and key == "precisions":
        good = bool(value) and all(item in PRECISIONS for item in value) and len(set(value)) == len(value)
    if not good:
        raise UserError(f"{path}: {key} = {value!r}; allowed: {rule.allowed}")


def _check_sources(path: Path, values: Mapping[str, Any]) -> None:
    sources = values["sources"]
    needed = set(values) - _NEED_NO_SOURCE
    for key in sorted(set(sources) - needed):
        raise UserError(f"{path}: sources.{key} names no key of this profile; allowed: {', '.join(sorted(needed))}")
    for key in sorted(needed):
        if not isinstance(sources.get(key), str) or not sources[key].strip():
            raise UserError(
                f"{path}: sources.{key} = {sources.get(key)!r}; allowed: a text that says where {key} comes from, "
                'or "unsourced"'
            )
