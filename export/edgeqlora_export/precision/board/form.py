"""fp16, and int8 in it, for TensorRT as the search tries them (see search.py).

No GPU is needed: a mix is heard in graphs of fp32 that round where the graphs of the board round, with sums in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgeqlora_export.onnx_graph import save_graph
from edgeqlora_export.precision.board.calibrate import Channels, Histograms, Rounding, even_out
from edgeqlora_export.precision.board.static import inputs_of, quantise_static, weights_of
from edgeqlora_export.precision.board.taps import See, tapped
from edgeqlora_export.precision.board.typed import always_fp32, largest_constants, places, to_rounded, to_types
from edgeqlora_export.precision.cpu.mixes import part_of
from edgeqlora_export.precision.judge import Clip, Heard, hear
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.schema import Graph
from edgeqlora_jetson.transcribe import Transcriber

HEADROOM = 4
"""How much larger a value may become than on the clips that were heard."""
LARGEST_FP16 = 65504


class HalfForm:
    """All that needs no fp32 in fp16, or bf16."""

    rest, is_timed = "fp32", False

    def __init__(
        self,
        bundle: Bundle,
        graphs: Mapping[str, Path],
        threads: int,
        progress: Callable[[str], None],
        io: Mapping[str, Collection[str]],
        low: str = "fp16",
    ) -> None:
        self.low = self.half = low
        # A GPU computes whole windows.
        audio = {key: value for key, value in bundle.manifest["audio"].items() if key != "margin"}
        self.bundle = Bundle(bundle.folder, {**bundle.manifest, "audio": audio})  # type: ignore[typeddict-item]
        self.graphs, self.threads, self.progress, self.io = graphs, threads, progress, io
        self.part_of: dict[str, dict[str, str]] = {}
        """Graph -> node -> part, of the nodes that can be fp16."""
        self.tensors: dict[str, list[str]] = {}
        self.too_large: dict[str, dict[str, float]] = {}
        """Graph -> tensor or node -> its largest magnitude, where that is too near to the end of fp16."""
        self._forbidden: dict[str, set[str]] = {}
        for graph, path in graphs.items():
            model = onnx.load(str(path))
            floats, always = places(model).floats, always_fp32(model)
            nodes = [node for node in model.graph.node if floats & set(node.output) and node.op_type != "Constant"]
            self.part_of[graph] = {node.name: part_of_node(node.name) for node in nodes if node.name not in always}
            self.tensors[graph] = [name for node in nodes for name in node.output if name in floats]
            # bf16 has the range of fp32; only what goes in and out is fp16.
            self.too_large[graph] = _beyond(largest_constants(model)) if low == "fp16" else {}
            self._forbidden[graph] = set(self.too_large[graph])

    @property
    def all_parts(self) -> list[str]:
        return list(
            dict.fromkeys(f"{graph}/{part}" for graph, nodes in self.part_of.items() for part in nodes.values())
        )

    @property
    def parts(self) -> list[str]:
        return self.all_parts

    def hear_plain(self, clips: Sequence[Clip]) -> Heard:
        largest: dict[tuple[str, str], float] = {}

        def see(graph: str, tensor: str, value: np.ndarray) -> None:
            largest[graph, tensor] = max(largest.get((graph, tensor), 0.0), float(value))

        heard = hear(Transcriber(self.bundle, self.tap(self.tensors, see, only_largest=True)), clips)
        for graph, path in self.graphs.items():
            looked_at = set(self.tensors[graph] if self.half == "fp16" else self.io.get(graph, ()))
            large = _beyond({name: value for (of, name), value in largest.items() if of == graph and name in looked_at})
            self.too_large[graph] |= large
            for node in onnx.load(str(path), load_external_data=False).graph.node:
                if set(large) & {*node.input, *node.output}:
                    self._forbidden[graph].add(node.name)
        if any(set(self.too_large[graph]) & set(names) for graph, names in self.io.items()):
            self.io = {}  # what leaves one graph enters another
        return heard

    def tap(self, tensors: Mapping[str, Collection[str]], see: See, only_largest: bool = False) -> Any:
        return tapped(self.bundle, tensors, see, self.threads, only_largest=only_largest)

    def fp32_nodes(self, graph: str, low: Collection[str]) -> set[str]:
        """Nodes that are fp32 in a mix, beside those that always are."""
        kept = {node for node, part in self.part_of[graph].items() if f"{graph}/{part}" not in low}
        return kept | self._forbidden[graph]

    def convert(self, graph: str, low: Collection[str], *, as_shipped: bool) -> onnx.ModelProto:
        """The graph of a mix: with types as it ships, or with roundings as it is heard here."""
        model = onnx.load(str(self.graphs[graph]))
        self._change(model, graph, self.fp32_nodes(graph, low), as_shipped)
        return model

    def _change(self, model: onnx.ModelProto, graph: str, fp32: set[str], as_shipped: bool) -> None:
        if as_shipped:
            to_types(model, fp32, self.half, self.io.get(graph, ()))
        else:
            to_rounded(model, fp32, self.half, self.io.get(graph, ()))

    def write(self, low: Sequence[str], ending: str) -> Bundle:
        return self._write(low, ending, as_shipped=False)

    def ship(self, low: Sequence[str]) -> Bundle:
        return self._write(low, "mix", as_shipped=True)

    def _write(self, low: Sequence[str], ending: str, as_shipped: bool) -> Bundle:
        graphs: dict[str, Graph] = dict(self.bundle.manifest["graphs"])
        for graph, path in self.graphs.items():
            if not self.is_typed(low):
                break
            file = path.with_name(f"{path.stem}-{ending}.onnx")
            save_graph(self.convert(graph, low, as_shipped=as_shipped), file)
            graphs[graph] = {**graphs[graph], "file": file.name}
            if as_shipped:
                graphs[graph]["precision"] = self.precision_of(graph, low)
                if kept := self.fp32_nodes(graph, self.fp16_of(low)):
                    graphs[graph]["fp32_nodes"] = sorted(kept)
        return Bundle(self.bundle.folder, {**self.bundle.manifest, "graphs": graphs})

    def is_typed(self, low: Collection[str]) -> bool:
        """Whether the graphs of a mix have types: all have, where a part of one has, since they hand tensors to each other."""
        return bool(low)

    def fp16_of(self, low: Collection[str]) -> Collection[str]:
        """The parts that are fp16 in a mix."""
        return low

    def precision_of(self, graph: str, low: Collection[str]) -> str:
        return self.half

    def bytes_of(self, low: Sequence[str], written: Bundle) -> int:
        paths = self.graphs.items()
        return sum(
            sum(len(tensor.raw_data) for tensor in self.convert(graph, low, as_shipped=True).graph.initializer)
            if self.is_typed(low)
            else sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
            for graph, path in paths
        )

    def names(self, low: Sequence[str]) -> dict[str, list[str]]:
        return {self.half: list(low)}

    def record(self) -> dict[str, Any]:
        large = {f"{graph}/{name}": value for graph, found in self.too_large.items() for name, value in found.items()}
        return {"too_large": large} if large else {}


class Int8Form(HalfForm):
    """Linear layers in int8, in the graphs of a mix of fp16 and fp32."""

    rest = "fp16"

    def __init__(self, base: HalfForm, fp16: Collection[str], from_fp32: bool) -> None:
        """from_fp32: see quantise_static."""
        self.__dict__.update(base.__dict__)
        self.low = "int8"
        self.fp16, self.from_fp32 = list(fp16), from_fp32
        self.roundings: dict[tuple[str, str], Rounding] = {}
        self.linears: dict[str, dict[str, str]] = {}
        for graph, path in self.graphs.items():
            model = onnx.load(str(path))
            self.linears[graph] = {n: x for n, x in inputs_of(model).items() if n not in self.fp32_nodes(graph, fp16)}

    @property
    def parts(self) -> list[str]:
        found = [f"{graph}/{part_of(name)}" for graph, names in self.linears.items() for name in names]
        return list(dict.fromkeys(found))

    def calibrate(self, clips: Sequence[Clip]) -> None:
        """Find the steps of all inputs on these clips."""
        inputs = {graph: set(names.values()) for graph, names in self.linears.items()}
        channels = Channels()
        hear(Transcriber(self.bundle, self.tap(inputs, channels.see)), clips)
        evened = {}
        for graph, path in self.graphs.items():
            for x, weights in weights_of(onnx.load(str(path))).items():
                if x in inputs[graph]:
                    evened[graph, x] = even_out(channels.largest[graph, x], weights)
        histograms = Histograms(evened, channels.largest)
        hear(Transcriber(self.bundle, self.tap(inputs, histograms.see)), clips)
        self.roundings = histograms.roundings()

    def convert(self, graph: str, low: Collection[str], *, as_shipped: bool) -> onnx.ModelProto:
        model = onnx.load(str(self.graphs[graph]))
        wanted = [name for name in self.linears[graph] if f"{graph}/{part_of(name)}" in low]
        roundings = {x: rounding for (of, x), rounding in self.roundings.items() if of == graph}
        fp32 = quantise_static(model, wanted, roundings, as_numbers=not as_shipped, from_fp32=self.from_fp32)
        self._change(model, graph, fp32 | self.fp32_nodes(graph, self.fp16), as_shipped)
        return model

    def is_typed(self, low: Collection[str]) -> bool:
        return bool([*low, *self.fp16])

    def fp16_of(self, low: Collection[str]) -> Collection[str]:
        return self.fp16

    def precision_of(self, graph: str, low: Collection[str]) -> str:
        return "int8" if any(part.startswith(f"{graph}/") for part in low) else "fp16"

    def names(self, low: Sequence[str]) -> dict[str, list[str]]:
        return {"int8": list(low), "fp16": self.fp16}


def _beyond(largest: Mapping[str, float]) -> dict[str, float]:
    """What is too near to the end of fp16, or not finite."""
    return {
        name: round(value, 1) if np.isfinite(value) else float(np.finfo(np.float32).max)
        for name, value in largest.items()
        if not value <= LARGEST_FP16 / HEADROOM
    }


def part_of_node(name: str) -> str:
    """The part of fp16 that a node belongs to, a layer: "/layers.0/attention/query/MatMul" -> "layers.0", "/Add" -> "rest"."""
    names = name.strip("/").split("/")[:-1]
    at = next((i for i, word in enumerate(names) if word.startswith("layers.")), 0)
    return "/".join(names[: at + 1]) or "rest"
