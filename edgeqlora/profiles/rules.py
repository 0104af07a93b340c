"""What is allowed in each field of a hardware profile, and a TOML document checked against that."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeqlora.errors import UserError
from edgeqlora.profiles.fields import ENERGY_SCOPES, KINDS, PRECISIONS, VARIANTS, JetpackRelease, PowerMode, Profile


@dataclass(frozen=True)
class _Rule:
    types: tuple[type, ...]
    allowed: str
    lowest: float = 0
    highest: float = 0
    optional: bool = False
    good: Callable[[Any], bool] = lambda value: True
    """What else must hold, once the type is right and the value in range."""


def _text(allowed: str = "a text", pattern: str = r"(?s).*\S.*", optional: bool = False) -> _Rule:
    return _Rule((str,), allowed, optional=optional, good=lambda value: bool(re.fullmatch(pattern, value)))


def _choice(choices: tuple[str, ...]) -> _Rule:
    return _Rule(
        (str,), "one of " + ", ".join(repr(c) for c in choices), optional=True, good=lambda value: value in choices
    )


def _texts(allowed: str, pattern: str = r".*\S.*") -> _Rule:
    def good(value: list[Any]) -> bool:
        matching = all(isinstance(item, str) and re.fullmatch(pattern, item) for item in value)
        return bool(value) and matching and len(set(value)) == len(value)

    return _Rule((list,), f"a list of {allowed}, without repeats", optional=True, good=good)


_VERSION = r"\d+(\.\d+)+"
_PART_NUMBER = r"p\d{4}-\d{4}"
_RAIL = r"[A-Z][A-Z0-9_]*"
_TABLES = _Rule((list,), "a list of tables", optional=True, good=lambda value: all(isinstance(v, dict) for v in value))

RULES = {
    "name": _text(),
    "title": _text(),
    "opset": _Rule((int,), "13 to 20", 13, 20),
    "precisions": dataclasses.replace(
        _texts(f"precisions out of {', '.join(PRECISIONS)}", "|".join(PRECISIONS)), optional=False
    ),
    "max_window_s": _Rule((int, float), "0.02 to 30", 0.02, 30),
    "max_batch": _Rule((int,), "1 to 64", 1, 64),
    "threads": _Rule((int,), "1 to 1024", 1, 1024, optional=True),
    "memory_mib": _Rule((int,), "256 to 1048576", 256, 1048576, optional=True),
    "tensorrt": _text('a version such as "8.2"', _VERSION, optional=True),
    "python": _text('a version such as "3.6"', _VERSION),
    "workspace_mib": _Rule((int,), "16 to 65536", 16, 65536, optional=True),
    "notes": _text(),
    "kind": _choice(KINDS),
    "soc": _text('a chip such as "tegra234"', r"[a-z0-9]+", optional=True),
    "compute_capability": _text('a version such as "8.7"', r"\d+\.\d", optional=True),
    "memory_bandwidth_gbs": _Rule((int, float), "1 to 10000", 1, 10000, optional=True),
    "memory_budget_mib": _Rule((int,), "256 to 1048576", 256, 1048576, optional=True),
    "part_numbers": _texts('part numbers such as "p3767-0005"', _PART_NUMBER),
    "compatible": _texts('strings such as "nvidia,p3767-0005"', r"[^,\s]+,\S+"),
    "models": _texts("texts"),
    "power_modes": _TABLES,
    "default_power_mode": _text(optional=True),
    "default_power_mode_super": _text(optional=True),
    "total_rail": _text('a rail such as "VDD_IN"', _RAIL, optional=True),
    "sum_rails": _texts('rails such as "VDD_IN"', _RAIL),
    "optional_rails": _texts('rails such as "VDD_IN"', _RAIL),
    "rails": _texts('rails such as "VDD_IN"', _RAIL),
    "energy_scope": _choice(ENERGY_SCOPES),
    "jetpack": _text('a release such as "6.2.2"', _VERSION, optional=True),
    "jetpacks": _TABLES,
    "sources": _Rule((dict,), "a table of texts, one for each key"),
    "absent": _Rule((dict,), "a table of texts: why a key has no value", optional=True),
}
"""Every key of a profile, flat."""

_MODE_RULES = {
    "id": _Rule((int,), "0 to 63", 0, 63),
    "name": _text(),
    "watt_cap": _Rule((int, float), "1 to 1000", 1, 1000, optional=True),
    "gpu_max_mhz": _Rule((int,), "1 to 10000", 1, 10000, optional=True),
    "tpc_pg_mask": _Rule((int,), "0 to 65535", 0, 65535, optional=True),
    "variant": _choice(VARIANTS),
}
_RELEASE_RULES = {
    "jetpack": _text('a release such as "6.2.2"', _VERSION),
    "l4t": _text('a version such as "36.5.0"', _VERSION),
    "tensorrt": _text('a version such as "10.3.0.30"', _VERSION),
    "python": _text('a version such as "3.10"', _VERSION),
    "cuda": _text('a version such as "12.6"', _VERSION),
    "opset": _Rule((int,), "13 to 20", 13, 20),
}
_GROUPS = {
    "identification": (
        "soc", "compute_capability", "memory_bandwidth_gbs", "part_numbers", "compatible", "models",
    ),
    "power": (
        "default_power_mode", "default_power_mode_super", "total_rail", "sum_rails", "optional_rails", "rails",
        "energy_scope",
    ),
}  # fmt: skip
"""Tables that a profile file may keep some keys in, for the reader's eye."""

_NEED_NO_SOURCE = {"name", "title", "notes", "kind", "sources", "absent"}


def parse_profile(values: Mapping[str, Any], path: Path) -> Profile:
    """Check the values of a profile file and make a Profile. `path` names the file in errors and gives its name.

    Raises UserError for an unknown or missing key, a wrong type, a value out of range, or a value without a source.
    """
    flat = _flatten(values, path)
    _check_table(path, "", flat, RULES)
    if flat["name"] != path.stem:
        raise UserError(f"{path}: name = {flat['name']!r}; allowed: the file's own name, {path.stem!r}")
    for key, rules in (("power_modes", _MODE_RULES), ("jetpacks", _RELEASE_RULES)):
        for i, entry in enumerate(flat.get(key, [])):
            _check_table(path, f"{key}[{i}].", entry, rules)
    _check_sources(path, flat)
    full: dict[str, Any] = {key: flat.get(key) for key in RULES}
    for key, rule in RULES.items():
        if list in rule.types:
            full[key] = tuple(flat.get(key, ()))
    full["max_window_s"] = float(flat["max_window_s"])
    full["kind"] = flat.get("kind") or ("jetson" if flat.get("tensorrt") else "cpu")
    full["energy_scope"] = flat.get("energy_scope") or "none"
    full["power_modes"] = tuple(PowerMode(**mode) for mode in full["power_modes"])
    full["jetpacks"] = tuple(JetpackRelease(**release) for release in full["jetpacks"])
    full["absent"] = flat.get("absent") or {}
    return Profile(**full)


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


def _check_table(path: Path, prefix: str, values: Mapping[str, Any], rules: Mapping[str, _Rule]) -> None:
    for key in sorted(set(values) - set(rules)):
        near = difflib.get_close_matches(key, rules, n=1)
        guess = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{path}: key {prefix + key!r} is not known; allowed are {', '.join(rules)}{guess}")
    for key, rule in rules.items():
        if key in values:
            _check(path, prefix + key, values[key], rule)
        elif not rule.optional:
            raise UserError(f"{path}: key {prefix + key!r} is missing; allowed: {rule.allowed}")


def _check(path: Path, key: str, value: Any, rule: _Rule) -> None:
    good = isinstance(value, rule.types) and not isinstance(value, bool)
    if good and rule.highest:
        good = rule.lowest <= value <= rule.highest
    if not good or not rule.good(value):
        raise UserError(f"{path}: {key} = {value!r}; allowed: {rule.allowed}")


def _check_sources(path: Path, flat: Mapping[str, Any]) -> None:
    sources, absent = flat["sources"], flat.get("absent", {})
    needed = set(flat) - _NEED_NO_SOURCE
    for key in sorted(sources):
        whole, _, part = key.partition(".")
        if whole not in needed:
            raise UserError(f"{path}: sources.{key} names no key of this profile; allowed: {', '.join(sorted(needed))}")
        if part and part not in _parts(flat[whole]):
            raise UserError(
                f"{path}: sources.{key!r} names no part of {whole}; allowed: {', '.join(_parts(flat[whole])) or 'none'}"
            )
    for key in sorted(needed | set(sources)):
        if not isinstance(sources.get(key), str) or not sources[key].strip():
            raise UserError(
                f"{path}: sources.{key} = {sources.get(key)!r}; allowed: a text that says where {key} comes from, "
                'or "unsourced"'
            )
    for key, why in absent.items():
        if key not in RULES or key in flat:
            raise UserError(f"{path}: absent.{key}: allowed: a key of profiles that this one does not give")
        if not isinstance(why, str) or not why.strip():
            raise UserError(f"{path}: absent.{key} = {why!r}; allowed: a text that says why {key} is not given")


def _parts(value: Any) -> list[str]:
    """What a source may name inside a value: items of a list; fields, and mode or release names, of a list of tables."""
    if not isinstance(value, list):
        return []
    tables = [item for item in value if isinstance(item, dict)]
    fields = sorted({field for table in tables for field in table})
    names = [str(table.get("jetpack") or table.get("name")) for table in tables]
    return [item for item in value if isinstance(item, str)] + fields + list(dict.fromkeys(names))
