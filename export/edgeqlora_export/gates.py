"""Gates in time: adapters whose addition is weighed, at each frame, by what is heard there.

A gated linear is y = W x + B (g(t) * A x), with g(t) = 2 sigmoid(w z(t) + b) between 0 and 2, and z the features of the
frame t of the encoder. At w = b = 0 the gate is exactly 1. Training, scoring and graphs all take it from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.files import read_json, sha256_file, write_json

SCHEMA = "edgeqlora.lora.temporal_gate/1"
WEIGHTS, RECORD = "temporal_gate.safetensors", "temporal_gate.json"
KINDS = ("layer", "rank")
"""layer: one gate for all ranks of an adapter; rank: one for each."""
N_FEATURES = 4
"""Energy, flux, contrast and change of each frame."""
MOST = 4.0
"""Largest magnitude of w z + b: g stays between 0.036 and 1.964, where its gradient does not vanish."""


def gate(z: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """z (batch, n_frames, 4), weight (n_gates, 4), bias (n_gates,) -> g (batch, n_frames, n_gates)."""
    return 2 * torch.sigmoid(nn.functional.linear(z, weight, bias).clamp(-MOST, MOST))


class Frames:
    """Features of the frames in the batch that the encoder heard last; shared by all gates of a model."""

    def __init__(self, features: nn.Module):
        self.features = features
        self._z: torch.Tensor | None = None
        self._handle: Any = None

    @property
    def z(self) -> torch.Tensor:
        """(batch, n_frames, 4); the frames are the encoder's positions."""
        assert self._z is not None, "the encoder has heard nothing yet"
        return self._z

    def hear(self, heard: torch.Tensor) -> None:
        """heard: the encoder's input, float32."""
        self._z = self.features(heard)

    def listen(self, encoder: Any) -> None:
        """Hear the input of `encoder` (of transformers) at each of its forward passes."""

        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            heard = args[0] if args else kwargs[module.main_input_name]
            with torch.no_grad(), torch.autocast(heard.device.type, enabled=False):
                self.hear(heard.float())

        self._handle = encoder.register_forward_pre_hook(hook, with_kwargs=True)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.remove()


class GatedLinear(nn.Module):
    """A linear with its adapter and gate beside it: what a gate that is not folded looks like in a model and its graph."""

    def __init__(
        self, linear: Any, a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, frames: Frames
    ):
        """linear: weight (out, in); a (rank, in); b (out, rank), scaled; weight, bias: of the gate."""
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        own = {"a": a, "b": b, "gate_weight": weight, "gate_bias": bias}
        for name, value in own.items():
            setattr(self, name, nn.Parameter(value.detach().to(linear.weight), requires_grad=False))
        self._frames = (frames,)  # in a tuple: no part of this module
        self.in_features, self.out_features = linear.in_features, linear.out_features

    @property
    def frames(self) -> Frames:
        return self._frames[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (batch, n_frames, in_features) -> (batch, n_frames, out_features)"""
        linear = nn.functional.linear
        weighed = linear(x, self.a) * gate(self.frames.z, self.gate_weight, self.gate_bias)
        return linear(x, self.weight, self.bias) + linear(weighed, self.b)


def scaled(linear: Any, factor: float) -> nn.Module:
    """A linear, gated or not, whose output is `factor` times as large. Its own weights; the original stays."""
    plain = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)
    with torch.no_grad():
        plain.weight.copy_(linear.weight * factor)
        if linear.bias is not None:
            plain.bias.copy_(linear.bias * factor)
    if not isinstance(linear, GatedLinear):
        return plain
    return GatedLinear(plain, linear.a, linear.b * factor, linear.gate_weight, linear.gate_bias, linear.frames)


class SavedGates(NamedTuple):
    """What the two files of a folder hold."""

    kind: str
    """One of KINDS."""
    linears: dict[str, dict[str, torch.Tensor]]
    """Full name of a linear to weight (n_gates, 4) and bias (n_gates,); in a model folder also lora_A and lora_B (scaled)."""


def write_gates(folder: Path, saved: SavedGates, beside: str) -> None:
    """Write the gates into a folder; beside: the file of weights there that they belong to."""
    from safetensors.torch import save_file

    tensors = {f"{name}.{part}": v for name, parts in saved.linears.items() for part, v in parts.items()}
    save_file({name: v.detach().float().cpu().contiguous() for name, v in tensors.items()}, folder / WEIGHTS)
    record = {
        "schema": SCHEMA,
        "kind": saved.kind,
        "parameters": sum(parts["weight"].numel() + parts["bias"].numel() for parts in saved.linears.values()),
        "linears": sorted(saved.linears),
        "sha256": {name: sha256_file(folder / name) for name in (WEIGHTS, beside)},
    }
    write_json(folder / RECORD, record)


def read_gates(folder: Path) -> SavedGates | None:
    """The gates of an adapter or model folder; None of a folder without. UserError where they are damaged or of another one."""
    there = [(folder / name).is_file() for name in (RECORD, WEIGHTS)]
    if not any(there):
        return None
    again = "copy the whole folder again, or make it again"
    if not all(there):
        raise UserError(f"{folder} has {(WEIGHTS, RECORD)[there[0]]} and not {(RECORD, WEIGHTS)[there[0]]}: {again}")
    record = read_json(folder / RECORD, "record of gates")
    hashes = record.get("sha256") if isinstance(record, dict) else None
    if not isinstance(hashes, dict) or record.get("schema") != SCHEMA or record.get("kind") not in KINDS:
        raise UserError(f"{folder / RECORD}: expected schema {SCHEMA!r} with kind, linears and sha256: {again}")
    for name, digest in hashes.items():
        path = folder / Path(name).name
        if not path.is_file() or sha256_file(path) != digest:
            raise UserError(
                f"{path} is not the file that {RECORD} beside it was written with: the gates are damaged, or belong to "
                f"another adapter: {again}"
            )
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read: {error}: {again}") from error
    linears: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        name, _, part = key.rpartition(".")
        linears.setdefault(name, {})[part] = value
    if sorted(linears) != record.get("linears") or not all(v.isfinite().all() for v in tensors.values()):
        raise UserError(f"{folder / WEIGHTS} lacks gates, or holds NaN or infinity: {again}")
    for name, parts in linears.items():
        n = 1 if record["kind"] == "layer" else len(parts.get("bias", ()))
        if "weight" not in parts or parts["weight"].shape != (n, N_FEATURES) or parts["bias"].shape != (n,):
            raise UserError(f"{folder / WEIGHTS}: the gate of {name} has no weight of {N_FEATURES} features: {again}")
    return SavedGates(record["kind"], linears)


def attach_gates(model: Any, folder: Path, encoder: Any, features: nn.Module) -> bool:
    """Put the gates and adapters that a model folder holds into its model; False where there are none.

    encoder, features: as a family's `frame_parts` gives them. Raises UserError where they do not fit the model.
    """
    saved = read_gates(folder)
    if saved is None:
        return False
    frames = Frames(features)
    modules: Mapping[str, Any] = dict(model.named_modules())
    for name, parts in saved.linears.items():
        linear = modules.get(name)
        shapes = {part: tuple(value.shape) for part, value in parts.items()}
        a, b = shapes.get("lora_A", ()), shapes.get("lora_B", ())
        fits = isinstance(linear, nn.Linear) and a[1:] == (linear.in_features,) and b == (linear.out_features, a[0])
        if not fits or shapes["bias"][0] not in (1, a[0]):
            raise UserError(
                f"{folder / WEIGHTS}: its adapter on {name} ({a} and {b}) does not fit the model: it is of another one; "
                "copy the whole folder again, or merge again with --keep-gates"
            )
        parent, _, child = name.rpartition(".")
        gated = GatedLinear(linear, parts["lora_A"], parts["lora_B"], parts["weight"], parts["bias"], frames)
        setattr(modules[parent], child, gated.eval())
    features.to(model.device)
    frames.listen(encoder)
    return True


def frames_of(model: Any) -> Frames | None:
    """What the gated linears of a model share; None where it has none."""
    return next((module.frames for module in model.modules() if isinstance(module, GatedLinear)), None)
