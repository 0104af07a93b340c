"""A graph held against an operator table, node by node, also in branches and bodies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edgeqlora_export.lint.rules import Scope, refused
from edgeqlora_export.lint.tables import OperatorTable
from edgeqlora_jetson.errors import UserError

_NEWER = "choose a newer target, or the profile's opset lower: the exporter then writes older operators"
_WRITE_SO = "write the operator as its rule says, or choose a target that takes it"


@dataclass(frozen=True)
class Finding:
    """One thing that a TensorRT version refuses."""

    operator: str
    """Its name; "graph" for what is of the whole graph."""
    node: str
    """Name of the node or tensor; its first output where a node has no name."""
    rule: str
    version: str
    """Title of the table that says so."""
    way_out: str

    def __str__(self) -> str:
        return f"{self.operator} ({self.node}): {self.rule}" if self.node else self.rule


def find_problems(graph: onnx.ModelProto, table: OperatorTable) -> list[Finding]:
    """What the table's TensorRT would refuse; empty when all is well.

    Looked at: the opset, element types of inputs, outputs, constants and casts, constants that 32 bits do not hold, every
    operator's name, and of its restriction what a graph decides (see rules.py); in the branches of If and the bodies of
    Loop and Scan as well.
    """
    found = []
    opset = max((o.version for o in graph.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset > table.max_opset:
        rule = f"opset {opset}; {table.title} reads up to {table.max_opset}"
        found.append(Finding("graph", "", rule, table.title, f"export with opset {table.max_opset} or lower"))
    for value in (*graph.graph.input, *graph.graph.output):
        found += _of_type(value.type.tensor_type.elem_type, "graph", f"tensor {value.name}", table)
    for node, scope in walk_nodes(graph.graph):
        found += _of_node(node, scope, table)
    for name, tensor, users in _constants(graph.graph):
        found += _of_type(tensor.data_type, "Constant", f"tensor {name}", table)
        found += _of_range(name, tensor, users, table)
    return found


def walk_nodes(graph: onnx.GraphProto, outer: Scope | None = None) -> Iterator[tuple[onnx.NodeProto, Scope]]:
    """Every node, those of subgraphs after the node that holds them, with what is visible to it."""
    own = _own_constants(graph)
    # A name inside hides the same name outside.
    inputs = {value.name for value in graph.input}
    named = inputs | {name for node in graph.node for name in node.output}
    constants = {**{name: t for name, t in (outer.constants if outer else {}).items() if name not in named}, **own}
    scope = Scope(constants, ((outer.inputs if outer else set()) - named | inputs) - own.keys())
    for node in graph.node:
        yield node, scope
        for subgraph in _subgraphs(node):
            yield from walk_nodes(subgraph, scope)


def lint_graph(onnx_path: Path | str, table: OperatorTable) -> int:
    """Check a graph file; weights beside it are not read. Returns the number of nodes, subgraphs' included.

    Raises UserError naming the file, each operator and node that TensorRT would refuse (the first five), and the ways out.
    """
    graph = onnx.load(str(onnx_path), load_external_data=False)
    found = find_problems(graph, table)
    if found:
        more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
        ways = "; ".join(dict.fromkeys(finding.way_out for finding in found))
        raise UserError(
            f"{Path(onnx_path).name} is outside the operator table of {table.title}: {'; '.join(map(str, found[:5]))}{more}. "
            f"Ways out: {ways}"
        )
    return sum(1 for _ in walk_nodes(graph.graph))


def _of_node(node: onnx.NodeProto, scope: Scope, table: OperatorTable) -> Iterator[Finding]:
    name = f"node {node.name or node.output[0]}"
    restriction = table.operators.get(node.op_type)
    if restriction is None or node.domain not in ("", "ai.onnx"):
        yield Finding(node.op_type, name, "not supported", table.title, _NEWER)
        return
    for rule in refused(node, scope, restriction):
        yield Finding(node.op_type, name, rule, table.title, _WRITE_SO)
    if node.op_type == "Cast":
        wanted = next((attribute.i for attribute in node.attribute if attribute.name == "to"), TensorProto.FLOAT)
        yield from _of_type(wanted, "Cast", name, table)


def _of_type(element_type: int, operator: str, name: str, table: OperatorTable) -> Iterator[Finding]:
    """element_type: 0 where the graph does not say."""
    kind = TensorProto.DataType.Name(element_type)
    if element_type and kind not in table.types:
        rule = f"element type {kind}; {table.title} reads {', '.join(sorted(table.types))}"
        yield Finding(operator, name, rule, table.title, "export in another precision, or choose a newer target")


def _of_range(name: str, tensor: TensorProto, users: list[tuple[str, int]], table: OperatorTable) -> Iterator[Finding]:
    """TensorRT 8 cuts INT64 to 32 bits. That is harmless where a Slice ends, which means to the end of the axis."""
    if int(table.version.split(".")[0]) > 8 or tensor.data_type != TensorProto.INT64:
        return
    if tensor.data_location == TensorProto.EXTERNAL or all(op == "Slice" and i in (1, 2) for op, i in users):
        return
    values = numpy_helper.to_array(tensor)
    limit = np.iinfo(np.int32)
    outside = values[(values < limit.min) | (values > limit.max)]
    if outside.size:
        rule = f"INT64 value {int(outside.flat[0])}, which {table.title} cuts to 32 bits"
        yield Finding("Constant", f"tensor {name}", rule, table.title, _WRITE_SO)


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, TensorProto, list[tuple[str, int]]]]:
    """Constants of a graph and its subgraphs: name, value, and the (operator, input) that read the name."""
    users: dict[str, list[tuple[str, int]]] = {}
    for node, _ in walk_nodes(graph):
        for index, name in enumerate(node.input):
            users.setdefault(name, []).append((node.op_type, index))

    def of(part: onnx.GraphProto) -> Iterator[tuple[str, TensorProto]]:
        yield from _own_constants(part).items()
        for node in part.node:
            for subgraph in _subgraphs(node):
                yield from of(subgraph)

    for name, tensor in of(graph):
        yield name, tensor, users.get(name, [])


def _own_constants(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute:
            value = onnx.helper.get_attribute_value(node.attribute[0])
            if isinstance(value, (int, float, list)):  # value_int, value_floats, ...
                value = numpy_helper.from_array(np.array(value))
            found[node.output[0]] = value if isinstance(value, TensorProto) else TensorProto()
    return found


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        yield from [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
