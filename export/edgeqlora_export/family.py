"""The seam between model families on the way to a bundle: what `run` asks of each, whichever it is.

`edgeqlora_export/<model_type>/` has `load_exporter(folder)`; everything else here is the same for all families.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError

from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.schema import Gate, Manifest

Progress = Callable[[str], None]


class Exporter(Protocol):
    """A merged model of one family."""

    base_model: Any
    """The torch model in fp32 and eval mode."""
    others: Mapping[str, Any]
    """Formats of other runtimes that the family has, by name: modules (see whisper/also)."""

    def check_windows(self, windows_s: Sequence[float]) -> list[float]:
        """Windows ascending and without repeats. UserError for one that the model cannot take, or none."""

    def describe(
        self,
        windows_s: Sequence[float],
        language: str | None,
        task: str | None,
        tokens_per_s: float | None = None,
        for_cpu: bool = False,
    ) -> dict[str, Any]:
        """The manifest's parts `model`, `features` and `decoder`. UserError for a language or task that cannot be.

        tokens_per_s: most label tokens in a second of the data that the model was trained on; None: not known.
        """

    def export_graphs(self, folder: Path, opset: int, for_cpu: bool = False) -> dict[str, Path]:
        """Write the ONNX graphs into `folder`; returns name -> path. for_cpu: for onnxruntime alone, no TensorRT will read them."""

    def engine_graphs(self, manifest: Manifest, max_batch: int) -> dict[str, Any]:
        """The engine request's `graphs`: optimization profiles, largest outputs, what stays on the device."""

    def write_tables(self, folder: Path, manifest: Manifest) -> None:
        """Write the files that the manifest's features and decoder name, and normalizer.json where there is one."""

    def prove(
        self, bundle: Any, runtime: Any, audios: Sequence[np.ndarray], progress: Progress = lambda message: None
    ) -> list[Gate]:
        """Compare features, graphs, tokens and texts with torch on real clips, in every window of the bundle.

        The bundle's folder holds graphs and tables.
        """


def families() -> list[str]:
    """Names of the families that can be exported, sorted: folders with an exporter."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/exporter.py"))


def load_exporter(folder: Path | str) -> Exporter:
    """The exporter of a merged folder, chosen by config.json's model_type. UserError where it is none, or damaged."""
    folder = Path(folder)
    missing = [file for file in ("config.json", "preprocessor_config.json") if not (folder / file).is_file()]
    if missing:
        raise UserError(
            f"{folder} is not a merged folder: it has no {' and no '.join(missing)}; run edgeqlora merge first"
        )
    try:
        model_type = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}/config.json names no model_type ({error}): merge again") from error
    if model_type not in families():
        raise UserError(
            f"{folder} holds a {model_type!r} model: export has graphs of {' and '.join(families())} models"
        )
    exporter: Exporter = importlib.import_module(f"edgeqlora_export.{model_type}").load_exporter(folder)
    return exporter


def read_part(folder: Path, what: str, read: Callable[[], Any]) -> Any:
    """What `read` gives; a library's error becomes a UserError naming folder and part."""
    try:
        return read()
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{folder}: the {what} cannot be read: {reason}") from error


def verify_gates(gates: Sequence[Gate]) -> None:
    """Raises UserError naming the first gate that failed, its figure, its limit and the case."""
    for gate in gates:
        if not gate["passed"]:
            raise UserError(
                f"gate failed: {gate['name']}: {gate['measured']:.3g}, allowed at most {gate['limit']:.3g} "
                f"({gate['detail']}). No bundle was written; please report this with the model's config.json"
            )


def token_gate(window_s: float, expected: Sequence[list[int]], found: Sequence[list[int]]) -> Gate:
    """Share of clips whose greedy tokens differ from torch's: 0 is the limit."""
    differing: list[str] = []
    for row, (wanted, got) in enumerate(zip(expected, found, strict=True)):
        if wanted != got:
            at = next((i for i, (a, b) in enumerate(zip(wanted, got, strict=False)) if a != b), None)
            at = min(len(wanted), len(got)) if at is None else at
            differing.append(f"clip {row} from token {at}: torch {wanted[at : at + 5]}, exported {got[at : at + 5]}")
    what = f"{len(expected)} clips, {sum(map(len, expected))} tokens, greedy"
    return equality_gate(f"greedy tokens at {window_s:g} s", what, len(expected), differing)


def text_gate(window_s: float, expected: Sequence[str], found: Sequence[str]) -> Gate:
    """Share of clips whose text on the board differs from what the workstation reads of torch's tokens: 0 is the limit."""
    pairs = enumerate(zip(expected, found, strict=True))
    differing = [f"clip {row}: torch {wanted!r}, exported {got!r}" for row, (wanted, got) in pairs if wanted != got]
    what = f"{len(expected)} clips, {sum(map(len, expected))} characters"
    return equality_gate(f"texts at {window_s:g} s", what, len(expected), differing)


def equality_gate(name: str, what: str, n: int, differing: Sequence[str]) -> Gate:
    """A gate that passes where none of n cases differs."""
    return {
        "name": name,
        "passed": not differing,
        "measured": len(differing) / max(n, 1),
        "limit": 0.0,
        "detail": f"{what}; differing: {differing[0]}" if differing else f"{what}, all equal",
    }


def difference_gate(name: str, difference: float, limit: float, detail: str) -> Gate:
    """A largest difference against its limit; a NaN or infinity fails."""
    finite = bool(np.isfinite(difference))
    return {
        "name": name,
        "passed": finite and difference <= limit,
        # The manifest is JSON, which knows no infinity.
        "measured": difference if finite else float(np.finfo(np.float32).max),
        "limit": limit,
        "detail": detail,
    }
