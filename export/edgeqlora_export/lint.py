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

    Looked at: the opset, every operator's name, rank and constancy of convolution weights, constancy of axes.
    """
    problems = []
    opset = max((o.version for o in graph.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset > table.max_opset:
        problems.append(f"opset {opset}; {table.title} reads up to {table.max_opset}")
    constants = {tensor.name: len(tensor.dims) for tensor in graph.graph.initializer}
    constants |= {
        node.output[0]: len(node.attribute[0].t.dims) for node in graph.graph.node if node.op_type == "Constant"
    }
    inputs = {value.name for value in graph.graph.input} - set(constants)
    for node in graph.graph.node:
        problems += [
            f"{node.op_type} (node {node.name or node.output[0]}): {why}"
            for why in _why(node, table, constants, inputs)
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
            f"{Path(onnx_path).name} is outside the operator table of {table.title}: {shown}{more}. "
            f"Lower the profile's opset (this TensorRT reads up to {table.max_opset}) or choose a newer target"
        )
    return len(graph.graph.node)


def _why(node: onnx.NodeProto, table: OperatorTable, constants: dict[str, int], inputs: set[str]) -> Iterator[str]:
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
        # "resolvable to a constant" (10.7 and newer) takes what the parser can fold; only an input surely is not that.
        bad = axes in inputs if "resolvable" in restriction else axes not in constants
        if axes and bad:
            yield "its axes must be constant"


def _version_key(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]
