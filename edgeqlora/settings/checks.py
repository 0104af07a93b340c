"""Settings checked before any work starts: types, ranges, and what does not go together."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Mapping
from typing import Any

from edgeqlora.errors import UserError
from edgeqlora.settings.fields import FIELDS, NORMALISERS, TrainSettings


def make_settings(given: dict[str, Any]) -> TrainSettings:
    """Check types and ranges of `given` and fill in defaults. Raises UserError naming value and allowed range."""
    settings = TrainSettings(**{name: _checked(name, value) for name, value in given.items()})
    for name, described in FIELDS.items():
        _verify_range(name, getattr(settings, name), described.metadata)
    if settings.normaliser != "auto":
        check_normaliser(settings.normaliser)
    for name in ("base_model", "train", "output"):
        if not getattr(settings, name):
            raise UserError(f"{name} is not given: pass --{name.replace('_', '-')}, or set {name} in the config file")
    for name in settings.report_to:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"report_to={name!r}: the package is not installed; pip install {name}")
    _verify_method(settings)
    if settings.entropy_weight and (settings.method == "full" or settings.ranks.startswith("adalora:")):
        raise UserError(
            f"entropy_weight={settings.entropy_weight:g} is of LoRA adapters: allowed with method qlora or lora, and ranks "
            "that are fixed"
        )
    if settings.reallocate and (settings.method == "full" or settings.ranks.startswith(("adalora:", "flex:"))):
        raise UserError(
            f"reallocate=True with method={settings.method!r} and ranks={settings.ranks!r}: allowed is it with method qlora or "
            "lora, and ranks uniform:R or a ranks.json"
        )
    if settings.moves_ranks() and settings.optimizer == "paged-adamw-8bit":
        raise UserError(
            "optimizer='paged-adamw-8bit' with ranks that move: its packed state cannot follow them; allowed are auto, adamw"
        )
    if 0 < settings.entropy_clips < 4:
        raise UserError(f"entropy_clips={settings.entropy_clips}: allowed is 0 (none) or 4 and more, two for each half")
    is_fixed = settings.method in ("qlora", "lora") and not settings.ranks.startswith("adalora:")
    if settings.temporal_gate != "off" and (settings.moves_ranks() or not is_fixed):
        raise UserError(
            f"temporal_gate={settings.temporal_gate!r} is of LoRA adapters: allowed with method qlora or lora, and ranks "
            "that are fixed"
        )
    if settings.fold_scale and (settings.method == "full" or settings.temporal_gate != "off"):
        raise UserError(
            f"fold_scale=True with method={settings.method!r} and temporal_gate={settings.temporal_gate!r}: allowed with method "
            "qlora or lora, and temporal_gate off; leave one of them out"
        )
    if settings.patience and not settings.dev:
        raise UserError(f"patience={settings.patience} needs dev data to be patient about: pass --dev")
    if settings.steps is not None and settings.epochs is not None:
        raise UserError(f"steps={settings.steps} and epochs={settings.epochs} are both given: give one of them")
    if len(settings.noise_snr_db) != 2 or not -100 <= settings.noise_snr_db[0] <= settings.noise_snr_db[1] <= 100:
        raise UserError(
            f"noise_snr_db={settings.noise_snr_db}: give the lowest and the highest value from -100 to 100, e.g. [5, 20]"
        )
    for factor in settings.speed_perturb:
        if not 0.5 <= factor <= 2.0:
            raise UserError(f"speed_perturb has {factor}: allowed is 0.5 to 2.0, e.g. [0.9, 1.0, 1.1]")
    parse_windows(settings.window_s)
    return settings


def _verify_method(settings: TrainSettings) -> None:
    """Raise UserError for a setting that the method does not have."""
    method, bits = settings.method, settings.bits
    if bits not in (None, 4, 8):
        raise UserError(
            f"bits={bits}: allowed are 4 (NF4) and 8 (int8); for 16 or 32 bits leave it out, with method lora"
        )
    if bits and method in ("lora", "full"):
        raise UserError(
            f"bits={bits} with method={method!r}, whose base is in 16 or 32 bits: allowed with qlora, ia3, prefix"
        )
    is_lora, unlike = method in ("qlora", "lora"), TrainSettings()
    if not is_lora and method != "full":
        for name in ("ranks", "reallocate", "lora_alpha", "fold_scale", "lora_dropout", "entropy_weight"):
            if (value := getattr(settings, name)) != getattr(unlike, name):
                raise UserError(
                    f"{name}={value!r} is of LoRA, and method={method!r} has none: allowed with qlora, lora"
                )
    if settings.prefix_tokens != unlike.prefix_tokens and method != "prefix":
        raise UserError(
            f"prefix_tokens={settings.prefix_tokens} is of method prefix, and method={method!r}: leave it out"
        )
    if method == "prefix" and settings.gradient_checkpointing:
        raise UserError(
            "gradient_checkpointing with method='prefix', which needs the cache that it drops: leave it out"
        )
    if settings.adapt != unlike.adapt and method in ("prefix", "full"):
        raise UserError(f"adapt={settings.adapt!r} with method={method!r}: allowed with qlora, lora, ia3")
    if settings.adapt != unlike.adapt and not settings.ranks.startswith(("uniform:", "adalora:", "flex:")):
        raise UserError(
            f"adapt={settings.adapt!r} with ranks={settings.ranks!r}, a file that names its linears itself: leave adapt out"
        )


def check_normaliser(name: str) -> None:
    """Raise UserError for a normaliser that is not known; for `basic`, which two of them could be."""
    if name == "basic":
        raise UserError(
            "normaliser='basic' can mean two: give basic-unicode (EdgeQLoRA's own, the same on every machine), "
            "or whisper-basic (OpenAI's BasicTextNormalizer)"
        )
    _one_of("normaliser", name, NORMALISERS)


def parse_windows(text: str) -> list[float] | None:
    """`auto` -> None; `2` or `2,5,10` -> sorted windows in s. Allowed: multiples of 0.02 s from 0.5 to 30."""
    if text == "auto":
        return None
    windows = []
    for part in str(text).split(","):
        try:
            window = float(part)
        except ValueError:
            raise UserError(f"window_s={text!r} is not a number: give auto, seconds (2), or several (2,5,10)") from None
        if not 0.5 <= window <= 30.0 or abs(window * 50 - round(window * 50)) > 1e-6:
            raise UserError(f"window_s={window}: allowed is 0.5 to 30 s in steps of 0.02 s (one encoder position)")
        windows.append(round(window, 2))
    return sorted(set(windows))


def _checked(name: str, value: Any) -> Any:
    wanted = str(FIELDS[name].type)
    if value is None and "None" in wanted:
        return None
    if wanted.startswith("list[float]"):
        if not isinstance(value, list) or not all(_is_number(item) for item in value):
            raise UserError(f"{name}={value!r}: expected a list of numbers")
        return [float(item) for item in value]
    if wanted.startswith("list[str]"):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise UserError(f"{name}={value!r}: expected a list of strings")
        return value
    if wanted.startswith("bool"):
        ok = isinstance(value, bool)
    elif wanted.startswith("int"):
        ok = isinstance(value, int) and not isinstance(value, bool)
    elif wanted.startswith("float"):
        ok = _is_number(value)
        value = float(value) if ok else value
    elif name == "window_s" and _is_number(value):
        return str(value)
    else:
        ok = isinstance(value, str)
    if not ok:
        raise UserError(f"{name}={value!r}: expected {wanted}")
    return value


def _verify_range(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    low, high = metadata.get("low"), metadata.get("high")
    if value is not None and low is not None and not low <= value <= high:
        raise UserError(f"{name}={value} is out of range: allowed is {low} to {high}")
    if allowed := metadata.get("allowed"):
        for one in value if isinstance(value, list) else [value]:
            _one_of(name, one, allowed)


def _is_number(value: Any) -> bool:
    """A number that fits into a float."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(value, allowed, n=1)
        raise UserError(
            f"{name}={value!r}: allowed are {', '.join(allowed)}" + (f" (did you mean {near[0]}?)" if near else "")
        )
