"""The precision of a bundle for a CPU: searched for on real clips, recorded, drawn; fp32 where nothing can be known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import onnx
import torch

from edgeqlora_export.margin import LEAST_WORDS, count_words
from edgeqlora_export.onnx_graph import save_graph
from edgeqlora_export.precision.judge import Clip
from edgeqlora_export.precision.mixes import parts_of
from edgeqlora_export.precision.picture import FILE, draw_front
from edgeqlora_export.precision.search import Search
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.schema import Manifest

ASKED = ("auto", "int8", "fp32")
MAX_INCREASE = 0.5
"""Points of the error rate that int8 may cost."""


class PrecisionSettings(NamedTuple):
    """What was asked for. asked: auto (int8 as far as it costs no more than max_increase points), int8 (all of it, or an error), fp32."""

    asked: str = "auto"
    max_increase: float = MAX_INCREASE


def choose_precision(
    bundle: Bundle,
    graphs: Mapping[str, Path],
    clips: Sequence[Clip],
    precision: PrecisionSettings,
    progress: Callable[[str], None],
) -> Manifest:
    """Put the graphs of the best mix in place of the fp32 ones, draw what was tried; returns the manifest with `precision`.

    clips: (audio float32 (n_samples,) at 16 kHz, reference). Raises UserError where int8 was asked for and cannot be.
    """
    manifest = bundle.manifest
    n_words = count_words(manifest["decoder"], [reference for _, reference in clips])
    reason = None
    if not n_words:
        reason = f"the {len(clips)} clips of --data have no words to count errors of: give clips with texts"
    elif precision.asked == "auto" and n_words < LEAST_WORDS:
        reason = (
            f"{len(clips)} clips with {n_words} words are too few to see what int8 costs, {LEAST_WORDS} are needed: give more "
            "clips with --data, or pass --precision int8"
        )
    elif not parts_of(graphs):
        reason = "the graphs have no linear layer of at least 32 by 32: they run in fp32"
    if reason is not None and precision.asked == "int8":
        raise UserError(f"precision int8 was asked for, and {reason}, or pass --precision fp32")
    if reason is not None:
        progress(f"the graphs stay in fp32: {reason}")
        manifest["precision"] = {"int8": [], "reason": reason}
        return manifest
    search = Search(bundle, graphs, clips, precision.max_increase, torch.get_num_threads(), progress)
    chosen, record = search.run(only_int8=precision.asked == "int8")
    number = next(i for i, row in enumerate(record["tried"]) if row["int8"] == record["int8"])
    draw_front(record["tried"], number, len(search.parts), Path(bundle.folder) / FILE)
    progress(
        f"{len(record['int8'])} of {len(search.parts)} parts are int8: {record['tried'][number]['bytes'] / 1e6:.1f} of "
        f"{record['tried'][0]['bytes'] / 1e6:.1f} MB"
    )
    manifest = {**chosen.manifest, "precision": record}
    if record["int8"]:
        n_all = len(record["int8"]) + len(record["fp32"])
        note = f"{len(record['int8'])} of {n_all} parts of the graphs are int8"
        manifest["profile"] = {
            **manifest["profile"],
            "note": manifest["profile"]["note"].replace("the graphs are fp32", note),
        }
        for gate in manifest["gates"]:
            gate["detail"] += "; of the fp32 graphs that those in int8 were made of"
    for graph, path in graphs.items():
        made = Path(chosen.graph_path(graph))
        if made != path:
            save_graph(onnx.load(str(made)), path)  # not renamed: a graph names the file of its weights
            manifest["graphs"][graph]["file"] = path.name
    for leftover in [*Path(bundle.folder).glob("*-mix*.onnx*"), *Path(bundle.folder).glob("*-part.onnx*")]:
        leftover.unlink()
    return manifest
