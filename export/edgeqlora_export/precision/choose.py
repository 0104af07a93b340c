"""The precision of a bundle: searched for on real clips, recorded, drawn."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import onnx
import torch

from edgeqlora_export.margin import LEAST_WORDS, count_words
from edgeqlora_export.onnx_graph import save_graph
from edgeqlora_export.precision.board.form import HalfForm, Int8Form
from edgeqlora_export.precision.cpu.form import CpuForm
from edgeqlora_export.precision.judge import Clip, Heard, cost, hear
from edgeqlora_export.precision.picture import FILE, draw_front
from edgeqlora_export.precision.search import Search
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.runtimes import open_runtime
from edgeqlora_jetson.schema import Manifest, Precision, TriedMix
from edgeqlora_jetson.transcribe import Transcriber

MAX_INCREASE = 0.5
"""Points of the error rate that int8 may cost."""

N_SHIPPED = 4
"""Clips that the graphs of a board are run on as they ship."""
N_CALIBRATION = 4
"""One clip of so many shows the ranges of what int8 layers multiply, the others what it costs."""


class PrecisionSettings(NamedTuple):
    """What was asked for. asked: auto (int8 on a CPU, fp16 on a board, as far as it costs no more than max_increase points), int8 (on a
    CPU all of it, or an error; on a board as far as it is allowed, fp16 beside it), fp16, bf16, fp32."""

    asked: str = "auto"
    max_increase: float = MAX_INCREASE


def choose_for_cpu(
    bundle: Bundle,
    graphs: Mapping[str, Path],
    clips: Sequence[Clip],
    precision: PrecisionSettings,
    progress: Callable[[str], None],
) -> Manifest:
    """Put the graphs of the best mix of int8 and fp32 in place of the fp32 ones, draw what was tried; returns the manifest with `precision`.

    clips: (audio float32 (n_samples,) at 16 kHz, reference). Raises UserError where int8 was asked for and cannot be.
    """
    manifest = bundle.manifest
    n_words = count_words(manifest["decoder"], [reference for _, reference in clips])
    threads = torch.get_num_threads()
    form = CpuForm(bundle, graphs, threads, progress)
    reason = None
    if not n_words:
        reason = f"the {len(clips)} clips of --data have no words to count errors of: give clips with texts"
    elif precision.asked == "auto" and n_words < LEAST_WORDS:
        reason = (
            f"{len(clips)} clips with {n_words} words are too few to see what int8 costs, {LEAST_WORDS} are needed: give more "
            "clips with --data, or pass --precision int8"
        )
    elif not form.parts:
        reason = "the graphs have no linear layer of at least 32 by 32: they run in fp32"
    if reason is not None and precision.asked == "int8":
        raise UserError(f"precision int8 was asked for, and {reason}, or pass --precision fp32")
    if reason is not None:
        progress(f"the graphs stay in fp32: {reason}")
        manifest["precision"] = {"int8": [], "reason": reason}
        return manifest
    search = Search(form, clips, precision.max_increase, threads, progress)
    low, row = search.run(only_low=precision.asked == "int8")
    return _finish(bundle, graphs, search, low, row)


def choose_for_board(
    bundle: Bundle,
    graphs: Mapping[str, Path],
    clips: Sequence[Clip],
    precision: PrecisionSettings,
    progress: Callable[[str], None],
    io: Mapping[str, Collection[str]],
    tensorrt: str,
) -> Manifest:
    """The same for TensorRT: fp16 with fp32 where that is needed, and int8 in it where that was asked for.

    io: inputs and outputs of each graph that stay on the device: they have the type of the graph. tensorrt: version of the board's.
    With fewer words than an error rate can be told from, only collapse refuses a mix, and int8 is refused with a UserError. Where no
    part can be int8, fp16 ships.
    """
    threads = torch.get_num_threads()
    allowed: float | None = precision.max_increase
    calibration: Sequence[Clip] = []
    if precision.asked == "int8":
        calibration, clips = clips[::N_CALIBRATION], [clip for i, clip in enumerate(clips) if i % N_CALIBRATION]
    n_words = count_words(bundle.manifest["decoder"], [reference for _, reference in clips])
    form: Any = HalfForm(bundle, graphs, threads, progress, io, "bf16" if precision.asked == "bf16" else "fp16")
    reason = None
    if precision.asked == "int8":
        if n_words < LEAST_WORDS:
            raise UserError(
                f"precision int8 was asked for, and beside {len(calibration)} clips for its ranges there are {len(clips)} clips with "
                f"{n_words} words, too few to see what it costs, {LEAST_WORDS} are needed: give more clips with --data, or pass "
                "--precision fp16"
            )
    elif n_words < LEAST_WORDS:
        reason = f"{len(clips)} clips with {n_words} words tell no error rate, so only texts that collapse would have refused {form.low}"
        allowed = None
    search = Search(form, clips, allowed, threads, progress)
    low, row = search.run(only_low=False)
    if precision.asked == "int8":
        form = Int8Form(form, low, from_fp32=int(tensorrt.split(".")[0]) < 10)
        progress(f"ranges of {len(form.parts)} parts on {len(calibration)} clips")
        form.calibrate(calibration)
        search = Search(form, clips, allowed, threads, progress, known=(search.plain, search.rows, row))
        low, row = search.run(only_low=False)
        if not low:
            progress("no part can be int8 at this limit: what follows is the bundle in fp16")
    manifest = _finish(bundle, graphs, search, low, row, reason)
    if form.half != "bf16":  # which onnxruntime does not compute on a CPU
        _try_as_shipped(form, clips[:N_SHIPPED], search.plain, threads, manifest)
    return manifest


def _try_as_shipped(form: HalfForm, clips: Sequence[Clip], plain: Heard, threads: int, manifest: Manifest) -> None:
    """The graphs themselves, not those with roundings, in onnxruntime. Raises UserError where a clip collapses in them."""
    ships = Bundle(form.bundle.folder, {**manifest, "audio": form.bundle.manifest["audio"]})
    n = len(clips)
    first = Heard(plain.errors[:n], plain.words[:n], plain.texts[:n], plain.incomplete[:n], plain.ms_per_clip)
    heard = hear(Transcriber(ships, open_runtime(ships, "onnxruntime", threads=threads)), clips)
    found = cost(first, heard, None)
    if found["n_collapsed"] or found["n_silent"]:
        raise UserError(
            f"the {form.low} graphs as they would ship do not answer as those with the same roundings: {found['refused']}. No bundle was written; "
            "please report this with the model's config.json, or pass --precision fp32"
        )


def _finish(
    bundle: Bundle,
    graphs: Mapping[str, Path],
    search: Search,
    low: Sequence[str],
    row: TriedMix,
    reason: str | None = None,
) -> Manifest:
    """Put the graphs of a mix in place of those of fp32; returns the manifest, which says what was tried."""
    form, manifest = search.form, bundle.manifest
    mix = form.names(low)
    record: dict[str, Any] = {
        **mix,
        "fp32": [part for part in form.all_parts if not any(part in parts for parts in mix.values())],
        "max_increase": search.allowed,
        "n_clips": len(search.plain.words),
        "n_words": int(search.plain.words.sum()),
        "tried": search.rows,
        **form.record(),
        **({"sensitivity": search.sensitivity} if search.sensitivity else {}),
        **({"reason": reason} if reason else {}),
    }
    draw_front(search.rows, search.rows.index(row), Path(bundle.folder) / FILE)
    said = ", ".join(f"{len(parts)} {name}" for name, parts in [*mix.items(), ("fp32", record["fp32"])] if parts)
    search.progress(f"parts: {said}; {row['bytes'] / 1e6:.1f} of {search.rows[0]['bytes'] / 1e6:.1f} MB")
    if any(mix.values()):
        ships = form.ship(low)
        for name, entry in ships.manifest["graphs"].items():
            save_graph(
                onnx.load(ships.graph_path(name)), graphs[name]
            )  # not renamed: a graph names the file of its weights
            manifest["graphs"][name] = {**entry, "file": graphs[name].name}
        manifest["decoder"] = ships.manifest["decoder"]
        for gate in manifest["gates"]:
            gate["detail"] += (
                f"; of the fp32 graphs that those in {next(name for name in mix if mix[name])} were made of"
            )
    for ending in ("mix*", "part", "plain"):
        for leftover in Path(bundle.folder).glob(f"*-{ending}.onnx*"):
            leftover.unlink()
    manifest["precision"] = cast(Precision, record)
    return manifest
