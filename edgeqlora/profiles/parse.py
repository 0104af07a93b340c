"""The values of a profile file made into a Profile, or into an error with one line for each thing that is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from edgeqlora.errors import UserError
from edgeqlora.profiles.fields import JetpackRelease, Profile, ProfilePowerMode

_GROUPS = {
    "identification": ("soc", "compute_capability", "gpu_cores", "memory_bandwidth_gbs", "part_numbers", "compatible", "models"),
    "power": (
        "default_power_mode", "default_power_mode_super", "total_rail", "sum_rails", "optional_rails", "rails",
        "energy_scope",
    ),
}  # fmt: skip
"""Tables that a profile file may keep some keys in, for the reader's eye."""

_TABLES: dict[str, type[BaseModel]] = {"power_modes": ProfilePowerMode, "jetpacks": JetpackRelease}


def parse_profile(values: Mapping[str, Any], path: Path) -> Profile:
    """Check the values of a profile file and make a Profile. `path` names the file in errors and gives its name.

    Raises UserError, with one line each, for unknown and missing keys, wrong types, values out of range or without a
    source, and values that contradict each other.
    """
    flat = _flatten(values, path)
    flat.setdefault("kind", "jetson" if flat.get("tensorrt") else "cpu")
    try:
        profile = Profile.model_validate(flat)
    except ValidationError as error:
        lines = [f"{path}: {line}" for entry in error.errors(include_url=False) for line in _explain(entry)]
        raise UserError("\n".join(dict.fromkeys(lines))) from error
    if profile.name != path.stem:
        raise UserError(f"{path}: name = {profile.name!r}; allowed: the file's own name, {path.stem!r}")
    return profile


def _flatten(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    flat = {key: value for key, value in values.items() if key not in _GROUPS}
    for group, keys in _GROUPS.items():
        table = values.get(group, {})
        if not isinstance(table, dict):
            raise UserError(f"{path}: {group} = {table!r}; allowed: a table of {', '.join(keys)}")
        for key, value in table.items():
            if key not in keys:
                raise UserError(f"{path}: key {group}.{key!r} is not known; allowed there are {', '.join(keys)}")
            if key in flat:
                raise UserError(f"{path}: key {key!r} stands twice, once in [{group}]; allowed: once")
            flat[key] = value
    return flat


def _explain(error: Mapping[str, Any]) -> list[str]:
    """One entry of a ValidationError in plain words: key, value and what is allowed."""
    # Of a number that may be whole or not, pydantic reports each of the two types that it tried.
    place = [part for part in error["loc"] if part not in ("int", "float")]
    if not place:  # of the whole profile: its contradictions
        return list(error["ctx"]["error"].args)
    fields = Profile.model_fields if len(place) < 3 else _TABLES[place[0]].model_fields
    field = fields.get(place[0] if len(place) < 3 else place[2])
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)[1:]
    if field is None:
        near = difflib.get_close_matches(place[-1], fields, n=1)
        guess = f"; did you mean {near[0]!r}?" if near else ""
        return [f"key {key!r} is not known; allowed are {', '.join(fields)}{guess}"]
    meaning = " ".join((field.description or "").split()).rstrip(".")
    if error["type"] == "missing":
        return [f"key {key!r} is missing; add it: {meaning}"]
    allowed = error["ctx"]["error"] if error["type"] == "value_error" else meaning
    return [f"{key} = {error['input']!r}; allowed: {allowed}"]
