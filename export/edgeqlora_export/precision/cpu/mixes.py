"""Mixes of int8 and fp32: which parts of the graphs can be int8, and the graphs of a mix."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import onnx

from edgeqlora_export.onnx_graph import save_graph
from edgeqlora_export.precision.cpu.linears import halve_tables, linear_layers, quantise_linears
from edgeqlora_export.precision.cpu.vocabulary import Turned, find_vocabulary, quantise_vocabulary
from edgeqlora_jetson.bundle import Bundle

VOCABULARY = "vocabulary"


class Vocabulary(NamedTuple):
    """How the vocabulary is int8: see vocabulary.py."""

    turned: Turned
    n_lead: int
    n_best: int


def part_of(linear: str) -> str:
    """The part that a linear belongs to: "/layers.0/attention/together/MatMul" -> "layers.0/attention"."""
    names = linear.strip("/").split("/")
    return "/".join(names[:-2] or names[:1])


def parts_of(graphs: Mapping[str, Path]) -> list[str]:
    """All parts that can be int8, as "graph/part", in the order in which they run."""
    found: dict[str, None] = {}
    for graph, path in graphs.items():
        model = onnx.load(str(path), load_external_data=False)
        found |= {f"{graph}/{part_of(name)}": None for name in linear_layers(model)}
        if find_vocabulary(model):
            found[f"{graph}/{VOCABULARY}"] = None
    return list(found)


def write_mix(
    bundle: Bundle, graphs: Mapping[str, Path], int8: Collection[str], vocabulary: Vocabulary | None, ending: str
) -> Bundle:
    """The graphs with these parts in int8, as GRAPH-ENDING.onnx beside the fp32 ones, and a bundle of them."""
    manifest: dict[str, Any] = {**bundle.manifest, "graphs": dict(bundle.manifest["graphs"])}
    for graph, path in graphs.items():
        parts = {part.removeprefix(f"{graph}/") for part in int8 if part.startswith(f"{graph}/")}
        if not parts:
            continue
        model = onnx.load(str(path))
        quantise_linears(model, lambda name, parts=parts: part_of(name) in parts)  # type: ignore[misc]
        if VOCABULARY in parts:
            assert vocabulary is not None
            quantise_vocabulary(model, vocabulary.turned, vocabulary.n_lead, vocabulary.n_best)
            manifest["decoder"] = {**manifest["decoder"], "n_candidates": vocabulary.n_best}
        halve_tables(model)
        file = path.with_name(f"{path.stem}-{ending}.onnx")
        save_graph(model, file)
        outputs = [value.name for value in model.graph.output]
        manifest["graphs"][graph] = {
            **manifest["graphs"][graph],
            "file": file.name,
            "outputs": outputs,
            "precision": "int8",
        }
    return Bundle(bundle.folder, manifest)  # type: ignore[arg-type]


def bytes_of(bundle: Bundle) -> int:
    """Bytes of all graphs, weights beside them included."""
    paths = [Path(bundle.graph_path(graph)) for graph in bundle.graphs]
    return sum(file.stat().st_size for path in paths for file in path.parent.glob(f"{path.name}*"))
