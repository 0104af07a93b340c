"""Hardware profiles: what one board takes, read from profiles/<name>.toml, with the source of every fact."""

from __future__ import annotations

import difflib
import re
import sys
from pathlib import Path
from typing import Any

from edgeqlora.errors import UserError
from edgeqlora.profiles.fields import Profile
from edgeqlora.profiles.parse import parse_profile

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXPORT_USES = (
    "opset",
    "precisions",
    "max_window_s",
    "max_batch",
    "threads",
    "memory_mib",
    "memory_budget_mib",
    "tensorrt",
    "python",
    "workspace_mib",
    "jetpack",
)
"""Keys that decide what an export makes; the others only travel with the bundle."""

ENERGY_USES = ("energy_scope", "total_rail", "sum_rails", "optional_rails", "rails")
"""Keys that decide on the board what its energy figures cover."""

_IF_ASKED = ("bf16", "int8")
"""Precisions of a board that no graph has unless it was asked for."""

_BF16_SINCE = 9
"""Major version of TensorRT whose parser first knew bf16 (onnx-tensorrt docs/Changelog.md)."""


def profiles_dir(package_dir: Path | None = None) -> Path:
    """Folder of the shipped profiles: of the checkout if this is one, else the copy inside the installed package."""
    package_dir = package_dir or Path(__file__).resolve().parents[1]
    for folder in (package_dir.parent / "profiles", package_dir / "_profiles"):
        # A folder called "profiles" beside an installed package may be anybody's: ours holds cpu.toml.
        if (folder / "cpu.toml").is_file():
            return folder
    raise UserError(f"no profiles beside {package_dir}: the installation is incomplete; install edgeqlora again")


def list_profiles() -> list[str]:
    """Names of the shipped profiles, sorted."""
    return sorted(path.stem for path in profiles_dir().glob("*.toml"))


def load_profile(name_or_path: str | Path, jetpack: str | None = None) -> Profile:
    """Load a shipped profile by name, or any profile by the path of its .toml file.

    jetpack: a JetPack release of the board other than the profile's own, such as "5.1.6" or, for the newest of its
    releases that starts so, "5.1": its TensorRT, Python and opset replace the profile's.

    Raises UserError for an unknown name (lists the known ones and suggests the nearest), an unreadable file,
    an unknown or missing key, a wrong type, a value out of range, a value without a source, or an unknown release.
    """
    path = profile_path(name_or_path)
    profile = parse_profile(_read_toml(path), path)
    return profile if jetpack is None else choose_jetpack(profile, jetpack)


def profile_path(name_or_path: str | Path) -> Path:
    """File of a shipped profile by name, or the path itself. Raises UserError for an unknown name."""
    text = str(name_or_path)
    if text.endswith(".toml") or "/" in text or "\\" in text:
        return Path(text)
    known = list_profiles()
    if text not in known:
        near = difflib.get_close_matches(text.lower(), known, n=1, cutoff=0.4)
        guess = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"profile {text!r} is not known; the known ones are {', '.join(known)}{guess}")
    return profiles_dir() / f"{text}.toml"


def profile_toml(name_or_path: str | Path, new_name: str | None = None) -> str:
    """The file of a profile under another name, to start one's own from: comments, sources and order stay.

    new_name: name of the file it will be written to, without .toml, which a profile must have; None: it keeps its own.
    Raises UserError as load_profile does, and for a new name that cannot be a file's.
    """
    path = profile_path(name_or_path)
    old_name = load_profile(path).name
    if new_name is None:
        new_name = old_name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", new_name) or new_name.endswith(".toml"):
        raise UserError(
            f"name={new_name!r}; allowed: letters, digits, '.', '_' and '-', as the file is called, without .toml"
        )
    text = path.read_text(encoding="utf-8")
    return re.sub(r"(?m)^name\s*=.*$", f'name = "{new_name}"', text, count=1)


def choose_jetpack(profile: Profile, jetpack: str) -> Profile:
    """The profile with another of its JetPack releases; precisions that its TensorRT does not know are dropped.

    Raises UserError, with the board's releases, for one it has not.
    """
    wanted = jetpack.strip().split(".")
    fitting = [release for release in profile.jetpacks if release.jetpack.split(".")[: len(wanted)] == wanted]
    if not fitting:
        known = ", ".join(release.jetpack for release in profile.jetpacks)
        raise UserError(
            f"jetpack={jetpack!r} is not known for {profile.name}; its releases are {known}"
            if known
            else f"jetpack={jetpack!r}: {profile.name} has no JetPack releases; leave it out"
        )
    release = max(fitting, key=lambda release: [int(part) for part in release.jetpack.split(".")])
    source = profile.sources.get(f"jetpacks.{release.jetpack}", profile.sources["jetpacks"])
    knows_bf16 = int(release.tensorrt.split(".")[0]) >= _BF16_SINCE
    sources = {key: text for key, text in profile.sources.items() if knows_bf16 or key != "precisions.bf16"}
    return profile.model_copy(
        update={
            "jetpack": release.jetpack,
            "tensorrt": release.tensorrt_major_minor,
            "python": release.python,
            "opset": release.opset,
            "precisions": tuple(p for p in profile.precisions if knows_bf16 or p != "bf16"),
            "sources": {
                **sources,
                "jetpack": "chosen by the user",
                **dict.fromkeys(("tensorrt", "python", "opset"), source),
            },
        }
    )


def unsourced_of(profile: Profile, keys: tuple[str, ...] = EXPORT_USES, precision: str = "auto") -> list[str]:
    """Unsourced values among `keys` that are really used, each as "key = value" or "key: part".

    bf16 and int8 are only where they are asked for: they are offered, and not taken without asking.
    """
    used = []
    for name in profile.unsourced:
        key, _, part = name.partition(".")
        if key in keys and not (key == "precisions" and part in _IF_ASKED and part != precision):
            value = getattr(profile, key)
            shown = ", ".join(value) if isinstance(value, tuple) else value
            used.append(f"{key}: {part}" if part else f"{key} = {shown}")
    return used


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UserError(f"{path}: this profile cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: this profile is not TOML: {error}") from error
