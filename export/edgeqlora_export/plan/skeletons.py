"""Skeletons of a model: graphs of its sizes with random weights. A large one has few layers, from which the whole is extended:
time, work and memory grow by the same with each layer."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoConfig

from edgeqlora_export.family import families
from edgeqlora_export.plan.work import Work, count_work
from edgeqlora_export.precision.cpu.mixes import Vocabulary, bytes_of, parts_of, write_mix
from edgeqlora_export.precision.cpu.vocabulary import LEAST_TOKENS, turn
from edgeqlora_jetson.audio.features import feature_shape
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.errors import UserError

WHOLE_PARAMETERS = 60e6
"""A model of at most so many is made whole."""
LEAD_SHARE = 160 / 384
"""Of the vocabulary's columns: what leads in whisper-tiny.en. Of another model, export finds it."""


class Found(NamedTuple):
    """Of one skeleton, or of the whole model."""

    weight_bytes: float
    work: dict[str, Work]
    encoder_ms: float | None
    step_ms: float | None
    peak_mib: float | None


class Sizes(NamedTuple):
    """What config.json says of a model."""

    model_type: str
    config: Any
    encoder_layers: int
    decoder_layers: int
    parameters: int
    longest_window_s: float


def read_sizes(folder: Path) -> Sizes:
    """Sizes of the model in a folder with a config.json; weights are not read. UserError for a family without graphs."""
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{folder}: config.json cannot be read: {reason}: give a model's folder or its hub name"
        ) from error
    if config.model_type not in families():
        raise UserError(
            f"{folder} holds a {config.model_type!r} model: export has graphs of {' and '.join(families())} models"
        )
    module = importlib.import_module(f"edgeqlora_export.{config.model_type}.skeleton")
    with torch.device("meta"):
        parameters = sum(p.numel() for p in module.empty_model(config).parameters())
    encoder_layers, decoder_layers = module.depth(config)
    longest_s = module.longest_window_s(config)
    return Sizes(config.model_type, config, encoder_layers, decoder_layers, parameters, longest_s)


def look_at(
    sizes: Sizes, folder: Path, *, opset: int, for_cpu: bool, int8: bool, windows_s: list[float], threads: int | None,
    say: Callable[[str], None], whole_parameters: float = WHOLE_PARAMETERS,
) -> dict[float, Found]:  # fmt: skip
    """What the model takes in each window: counted, and of graphs for a CPU measured here."""
    points = [(sizes.encoder_layers, sizes.decoder_layers)]
    if sizes.parameters > whole_parameters:
        points = [(1, 1), (3, 1), (1, 3)] if sizes.decoder_layers else [(1, 0), (3, 0)]
    module = importlib.import_module(f"edgeqlora_export.{sizes.model_type}.skeleton")
    found: dict[tuple[int, int], dict[float, Found]] = {}
    for encoder_layers, decoder_layers in points:
        layers = f"{encoder_layers} + {decoder_layers}" if decoder_layers else f"{encoder_layers}"
        say(f"graphs of {layers} layers with random weights: counting{' and measuring' if for_cpu else ''}")
        place = folder / f"{encoder_layers}-{decoder_layers}"
        place.mkdir()
        bundle = module.skeleton(sizes.config, encoder_layers, decoder_layers, place, opset, for_cpu)
        if int8:
            bundle = _in_int8(bundle)
        found[encoder_layers, decoder_layers] = {
            w: _look(bundle, w, threads if for_cpu else None, for_cpu) for w in windows_s
        }
    if len(points) == 1:
        return found[points[0]]
    return {w: _extended({at: of[w] for at, of in found.items()}, sizes) for w in windows_s}


def _in_int8(bundle: Bundle) -> Bundle:
    graphs = {graph: Path(bundle.graph_path(graph)) for graph in bundle.graphs}
    vocabulary = None
    model = bundle.manifest["model"]
    if "n_heads" in model and model["vocab_size"] >= LEAST_TOKENS:
        d = model["n_heads"] * model["head_dim"]
        weight = np.random.default_rng(0).normal(0, 1, (model["vocab_size"], d)).astype(np.float32)
        if d > 32:
            vocabulary = Vocabulary(turn(weight, np.eye(d)), max(32, round(LEAD_SHARE * d / 32) * 32), 192)
    parts = [part for part in parts_of(graphs) if vocabulary is not None or not part.endswith("/vocabulary")]
    return write_mix(bundle, graphs, parts, vocabulary, "int8")


def _look(bundle: Bundle, window_s: float, threads: int | None, for_cpu: bool) -> Found:
    features = np.zeros((1, *feature_shape(bundle.manifest, window_s)), dtype=np.float32)
    work = count_work(bundle, features)
    times: dict[str, float] = {}
    if for_cpu:
        asked = {
            "folder": bundle.folder, "manifest": bundle.manifest, "threads": threads, "window_s": window_s, "n_steps": 24, "repeats": 5,
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "edgeqlora_export.plan.probe"],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise UserError(f"the graphs of this model do not run here: {reason}: plan for a smaller model or window")
        times = json.loads(done.stdout)
    return Found(bytes_of(bundle), work, times.get("encoder_ms"), times.get("step_ms"), times.get("peak_mib"))


def _extended(found: dict[tuple[int, int], Found], sizes: Sizes) -> Found:
    """From skeletons of one layer, and of three of one kind, to all layers."""
    smallest = min(found)
    steps = [(at, (sizes.encoder_layers if at[0] == 3 else sizes.decoder_layers) - 1) for at in found if at != smallest]

    def extend(value: Callable[[Found], float]) -> float:
        first = value(found[smallest])
        return first + sum(more * (value(found[at]) - first) / 2 for at, more in steps)

    def of_times(name: str) -> float | None:
        is_measured = getattr(found[smallest], name) is not None
        return extend(lambda one: getattr(one, name)) if is_measured else None

    work = {
        graph: Work(
            extend(lambda one, graph=graph: one.work[graph].flop),  # type: ignore[misc]
            extend(lambda one, graph=graph: one.work[graph].moved_bytes),  # type: ignore[misc]
            found[smallest].work[graph].largest_bytes,
        )
        for graph in found[smallest].work
    }
    return Found(extend(lambda one: one.weight_bytes), work, *map(of_times, ("encoder_ms", "step_ms", "peak_mib")))
