"""Which operators of a graph a TensorRT version takes, judged from its published operator table before any build."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from edgeqlora_jetson.errors import UserError

TABLES = Path(__file__).parent / "trt_ops"

_AXES_INPUT = {"Slice": 3, "Squeeze": 1, "Unsqueeze": 1, "ReduceMean": 1}
"""Input that holds the axes, from the opset on at which they became an input."""


@dataclass(frozen=True)
class OperatorTable:
    """What one TensorRT version's ONNX parser takes."""

    version: str
    """TensorRT version, such as "8.2"."""
    max_opset: int
    """Highest ONNX opset it reads."""
    operators: dict[str, str]
    """Supported operator -> its restriction as published, "" for none."""
    source: str
    """Where the table comes from."""


def known_versions() -> list[str]:
    """TensorRT versions with a table here."""
    return sorted((p.stem.removeprefix("TRT-") for p in TABLES.glob("TRT-*.tsv")), key=_version_key)


def load_operators(version: str) -> OperatorTable:
    """The table of a TensorRT version; the patch number, as in "8.2.1", is not looked at.

    Raises UserError when there is no table of that version.
    """
    short = ".".join(version.split(".")[:2])
    path = TABLES / f"TRT-{short}.tsv"
    if not path.is_file():
        raise UserError(
            f"tensorrt={version!r}: no operator table of that version; known are {', '.join(known_versions())}: "
            "choose one of them in the profile"
        )
    return parse_operators(short, path.read_text(encoding="utf-8"))


def parse_operators(version: str, text: str) -> OperatorTable:
    """Parse a table: '# source:' and '# max_opset:' lines, a header, then operator, Y or N, restriction (tabs)."""
    lines = text.splitlines()
    notes = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")][1:]
    return OperatorTable(
        version=version,
        max_opset=int(notes["max_opset"]),
        operators={name: restriction for name, supported, restriction in rows if supported == "Y"},
        source=notes["source"],
    )


def find_problems(graph: onnx.ModelProto, table: OperatorTable) -> list[str]:
    """What the table's TensorRT would refuse, one line a problem; empty when all is well.

    Looked at: the opset, every operator's name, rank and constancy of convolution weights, constancy of axes.
    """
    problems = []
    opset = max((o.version for o in graph.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset > table.max_opset:
        problems.append(f"opset {opset}; TensorRT {table.version} reads up to {table.max_opset}")
    constants = {tensor.name: len(tensor.dims) for tensor in graph.graph.initializer}
    constants |= {
        node.output[0]: len(node.attribute[0].t.dims) for node in graph.graph.node if node.op_type == "Constant"
    }
    for node in graph.graph.node:
        problems += [
            f"{node.op_type} (node {node.name or node.output[0]}): {why}" for why in _why(node, table, constants)
        ]
    return problems


def lint_graph(onnx_path: Path | str, table: OperatorTable) -> int:
    """Check a graph file; weights beside it are not read. Returns the number of nodes.

    Raises UserError naming the file and each operator and node that TensorRT would refuse (the first five).
    """
    graph = onnx.load(str(onnx_path), load_external_data=False)
    problems = find_problems(graph, table)
    if problems:
        shown = "; ".join(problems[:5])
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(
            f"{Path(onnx_path).name} is outside TensorRT {table.version}'s operator table: {shown}{more}. "
            f"Lower the profile's opset (this TensorRT reads up to {table.max_opset}) or choose a newer target"
        )
    return len(graph.graph.node)


def _why(node: onnx.NodeProto, table: OperatorTable, constants: dict[str, int]) -> Iterator[str]:
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
    if restriction.startswith("`axes` must be"):
        index = _AXES_INPUT.get(node.op_type)
        axes = node.input[index] if index is not None and index < len(node.input) else ""
        if axes and axes not in constants:
            yield "its axes must be constant"


def _version_key(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]
