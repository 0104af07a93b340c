"""Which operators of a graph a TensorRT version takes, judged from its published operator table before any build."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import onnx

from edgeqlora_jetson.errors import UserError

TABLES = Path(__file__).parent / "trt_ops"

_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
_AXES_INPUT = {
    "Slice": 3,
    "Squeeze": 1,
    "Unsqueeze": 1,
    "Pad": 3,
    "CumSum": 1,
    **{f"Reduce{name}": 1 for name in _REDUCTIONS},
}
"""Input that holds the axes, where they are one (ReduceSum since opset 13, other reductions and Pad since 18)."""


@dataclass(frozen=True)
class OperatorTable:
    """What one TensorRT version's ONNX parser takes."""

    version: str
    """TensorRT version that the table is of, such as "8.2"."""
    asked: str
    """TensorRT version that was asked for, such as "8.2.1"; a newer one than the table's where it has none itself."""
    max_opset: int
    """Highest ONNX opset it reads."""
    operators: dict[str, str]
    """Supported operator -> its restriction as published, "" for none."""
    source: str
    """Where the table comes from."""

    @property
    def title(self) -> str:
        """Which table it is, in words: says so where it is not the asked version's own."""
        if _version_key(self.asked)[:2] == _version_key(self.version):
            return f"TensorRT {self.version}"
        return f"TensorRT {self.version} (the newest one not newer than {self.asked}, which has no table here)"


def known_versions() -> list[str]:
    """TensorRT versions with a table here."""
    return sorted((p.stem.removeprefix("TRT-") for p in TABLES.glob("TRT-*.tsv")), key=_version_key)


def load_operators(version: str) -> OperatorTable:
    """The newest table that is not newer than a TensorRT version; `.title` says which one that is.

    No table has been published for some versions, and operators are added, hardly ever taken away. The patch number,
    as in "8.2.1", is not looked at. Raises UserError when every table is newer.
    """
    wanted = _version_key(version)[:2]
    fitting = [known for known in known_versions() if _version_key(known) <= wanted]
    if not fitting:
        raise UserError(
            f"tensorrt={version!r}: no operator table of that version or an older one; known are "
            f"{', '.join(known_versions())}: choose one of them in the profile"
        )
    text = (TABLES / f"TRT-{fitting[-1]}.tsv").read_text(encoding="utf-8")
    return parse_operators(fitting[-1], text, asked=version)


def parse_operators(version: str, text: str, asked: str = "") -> OperatorTable:
    """Parse a table: '# source:' and '# max_opset:' lines, a header, then operator, Y or N, restriction (tabs)."""
    lines = text.splitlines()
    notes = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")][1:]
    return OperatorTable(
        version=version,
        asked=asked or version,
        max_opset=int(notes["max_opset"]),
        operators={name: restriction for name, supported, restriction in rows if supported == "Y"},
        source=notes["source"],
    )


def find_problems(graph: onnx.ModelProto, table: OperatorTable) -> list[str]:
    """What the table's TensorRT would refuse, one line a problem; empty when all is well.

    Looked at: the opset, every operator's name, rank and constancy of convolution weights, constancy of axes; in the
    branches of If and the bodies of Loop and Scan as well.
    """
    problems = []
    opset = max((o.version for o in graph.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset > table.max_opset:
        problems.append(f"opset {opset}; {table.title} reads up to {table.max_opset}")
    for node, constants, inputs in walk_nodes(graph.graph):
        problems += [
            f"{node.op_type} (node {node.name or node.output[0]}): {why}"
            for why in _why(node, table, constants, inputs)
        ]
    return problems


def walk_nodes(
    graph: onnx.GraphProto, constants: Mapping[str, int] | None = None, inputs: Set[str] = frozenset()
) -> Iterator[tuple[onnx.NodeProto, Mapping[str, int], Set[str]]]:
    """Every node, those of subgraphs after the node that holds them, with what is visible to it.

    Gives (node, rank of each constant by name, names of graph inputs); arguments: those of the graph around this one.
    """
    own = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    own |= {node.output[0]: len(node.attribute[0].t.dims) for node in graph.node if node.op_type == "Constant"}
    # A name inside hides the same name outside.
    named = {value.name for value in graph.input} | {name for node in graph.node for name in node.output}
    constants = {**{name: rank for name, rank in (constants or {}).items() if name not in named}, **own}
    inputs = (inputs - named | {value.name for value in graph.input}) - own.keys()
    for node in graph.node:
        yield node, constants, inputs
        for attribute in node.attribute:
            for subgraph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from walk_nodes(subgraph, constants, inputs)


def lint_graph(onnx_path: Path | str, table: OperatorTable) -> int:
    """Check a graph file; weights beside it are not read. Returns the number of nodes, subgraphs' included.

    Raises UserError naming the file and each operator and node that TensorRT would refuse (the first five).
    """
    graph = onnx.load(str(onnx_path), load_external_data=False)
    problems = find_problems(graph, table)
    if problems:
        shown = "; ".join(problems[:5])
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(
            f"{Path(onnx_path).name} is outside the operator table of {table.title}: {shown}{more}. "
            f"Lower the profile's opset (this TensorRT reads up to {table.max_opset}) or choose a newer target"
        )
    return sum(1 for _ in walk_nodes(graph.graph))


def _why(node: onnx.NodeProto, table: OperatorTable, constants: Mapping[str, int], inputs: Set[str]) -> Iterator[str]:
    restriction = table.operators.get(node.op_type)
    if restriction is None or node.domain not in ("", "ai.onnx"):
        yield "not supported"
        return
    if node.op_type == "Conv" and restriction.startswith("2D or 3D"):
        rank = constants.get(node.input[1])
        if rank is None:
            yield "its weights must be constant"
        elif rank not in (4, 5):
            yield f"{rank - 2}-D convolution; only 2-D and 3-D are supported"
    if restriction.startswith(("`axes` must be", "`axis` must be")):
        index = _AXES_INPUT.get(node.op_type)
        axes = node.input[index] if index is not None and index < len(node.input) else ""
        # What is resolvable to, or at build time, a constant (10.7 and newer) the parser folds; only an input surely is not.
        bad = axes in inputs if re.search("resolvable|build-time", restriction) else axes not in constants
        if axes and bad:
            yield "its axes must be constant"


def _version_key(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]
