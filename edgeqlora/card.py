"""card.json: what every folder we write says about itself (parents, versions, settings, figures)."""

import math
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict, cast

from edgeqlora import __version__
from edgeqlora.errors import UserError
from edgeqlora_jetson.board.machine import read_machine
from edgeqlora_jetson.files import read_json, sha256_file, write_json
from edgeqlora_jetson.schema import Figure

SCHEMA = "edgeqlora.card/1"
_LIBRARIES = (
    "torch",
    "torchaudio",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "onnx",
    "onnxruntime",
    "numpy",
)


class Card(TypedDict, total=False):
    """card.json; which keys it has depends on kind: adapter, model, merged."""

    schema: str
    kind: str
    created_utc: str
    command: list[str]
    versions: dict[str, str]
    machine: dict[str, Any]
    method: str
    base_model: str
    base_dtype: str
    parents: dict[str, Any] | None
    settings: dict[str, Any] | None
    computed_with: dict[str, str]
    windows_s: list[float] | None
    tokens_per_s: float | None
    language: str | None
    task: str | None
    skip_silence: bool
    silence: dict[str, Any] | None
    data: dict[str, Any]
    steps: int
    best_step: int | None
    dev: str | None
    dev_split: str | None
    dev_wer: Figure
    dev_cer: Figure
    dev_loss: Figure
    choose_by: str
    dropped_layers: dict[str, list[int]]
    canary: dict[str, Any]
    replay: dict[str, Any]
    temporal_gate: dict[str, Any]
    figures: dict[str, Figure]
    chosen: str
    candidates: dict[str, Any]
    n_dev_clips: int
    weights: dict[str, str]


def missing(reason: str, **how: Any) -> Figure:
    """A figure that could not be measured: null, with the reason (never 0)."""
    return cast(Figure, {"value": None, "reason": reason, **how})


def measured(value: float | int, unit: str, **how: Any) -> Figure:
    """A measured figure with its unit and, where it needs saying, how it was taken; null if it is not finite."""
    if not math.isfinite(value):
        return missing(f"not finite ({value}): the run diverged", **how)
    return cast(Figure, {"value": value, "unit": unit, **how})


def installed_version(distribution: str) -> str | None:
    """Version of an installed package, which is not imported; None where it is missing."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def library_versions() -> dict[str, str]:
    """Versions of the libraries that can change a result; an absent one is left out."""
    found = {name: version for name in _LIBRARIES if (version := installed_version(name)) is not None}
    return {"python": platform.python_version(), "edgeqlora": __version__, **found}


def folder_sha256(folder: Path) -> dict[str, str]:
    """sha256 of every file directly in `folder` that carries weights or settings (not logs)."""
    wanted = (".safetensors", ".json", ".bin", ".txt", ".model")
    return {
        path.name: sha256_file(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix in wanted and path.name != "card.json"
    }


def write_card(folder: Path, kind: str, **fields: Any) -> Card:
    """Write `folder/card.json` (schema edgeqlora.card/1) and return it."""
    card: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": kind,
        "created_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": library_versions(),
        "machine": read_machine(),
        **fields,
    }
    write_json(folder / "card.json", card)
    return cast(Card, card)


def read_card(folder: Path) -> Card | None:
    """card.json of a folder, or None if it has none (a folder that we did not make)."""
    path = folder / "card.json"
    if not path.is_file():
        return None
    card = read_json(path, "card.json")
    if not isinstance(card, dict) or not str(card.get("schema", "")).startswith("edgeqlora.card/"):
        return None
    if card["schema"] != SCHEMA:
        raise UserError(
            f"{path}: schema={card.get('schema')!r}, this version reads {SCHEMA!r}: "
            "make the folder again, or use the version of edgeqlora that wrote it"
        )
    return cast(Card, card)


def tuned_windows(card: Card) -> list[float]:
    """Windows that a folder's model was tuned in, those of replayed clips included; empty where it says none."""
    return sorted({*(card.get("windows_s") or ()), *((card.get("replay") or {}).get("windows_s") or ())})


def dev_data(card: Card) -> tuple[str, str]:
    """(source, splits) of the dev data that a folder's model was chosen by; empty where it says none."""
    settings = card.get("settings") or {}
    return (
        card.get("dev") or settings.get("dev") or "",
        card.get("dev_split") or settings.get("dev_split") or "",
    )
