"""Operator tables: what TensorRT would refuse is named with its node before anything is built."""

import onnx
import pytest
from export_tiny import tiny_whisper
from onnx import TensorProto, helper

from edgeqlora_export.graphs import export_whisper
from edgeqlora_export.lint import find_problems, known_versions, lint_graph, load_operators
from edgeqlora_jetson.errors import UserError


def _graph(*nodes, opset=13, initializers=()):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(list(nodes), "g", [x], [y], list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def _constant(name, *dims):
    size = 1
    for dim in dims:
        size *= dim
    return helper.make_tensor(name, TensorProto.FLOAT, dims, [0.0] * size)


def test_tables_hold_what_the_published_ones_say():
    old, new = load_operators("8.2"), load_operators("10.3.0.30")
    assert known_versions() == ["8.2", "10.3"]
    assert (old.max_opset, new.max_opset) == (13, 20)
    assert "LayerNormalization" not in old.operators
    assert "LayerNormalization" in new.operators
    assert "NonZero" not in old.operators  # listed, but as not supported
    assert "8.2-GA" in old.source
    with pytest.raises(UserError, match=r"tensorrt='7.1': no operator table of that version; known are 8.2, 10.3"):
        load_operators("7.1")


def test_whisper_at_opset_13_fits_tensorrt_8_2_and_opset_17_does_not(tmp_path):
    old = load_operators("8.2")
    for path in export_whisper(tiny_whisper(), tmp_path / "13", opset=13).values():
        assert lint_graph(path, old) > 100
    newer = export_whisper(tiny_whisper(), tmp_path / "17", opset=17)
    for path in newer.values():
        assert lint_graph(path, load_operators("10.3")) > 100
    with pytest.raises(
        UserError, match=r"(?s)encoder\.onnx.*8\.2.*opset 17; .*LayerNormalization \(node .*norm.*\): not supp"
    ):
        lint_graph(newer["encoder"], old)


def test_restrictions_are_looked_at():
    old, new = load_operators("8.2"), load_operators("10.3")
    flat = _graph(helper.make_node("Conv", ["x", "w"], ["y"], name="c"), initializers=[_constant("w", 2, 2, 3)])
    assert find_problems(flat, old) == ["Conv (node c): 1-D convolution; only 2-D and 3-D are supported"]
    assert find_problems(flat, new) == []
    computed = _graph(helper.make_node("Conv", ["x", "x"], ["y"], name="c"))
    assert find_problems(computed, old) == ["Conv (node c): its weights must be constant"]
    axes = _graph(helper.make_node("Unsqueeze", ["x", "x"], ["y"]))
    assert find_problems(axes, old) == ["Unsqueeze (node y): its axes must be constant"]
    foreign = _graph(helper.make_node("Add", ["x", "x"], ["y"], domain="com.microsoft"))
    assert find_problems(foreign, old) == ["Add (node y): not supported"]


def test_many_problems_are_cut_at_five(tmp_path):
    nodes = [helper.make_node("NonZero", ["x"], [f"y{i}"], name=f"n{i}") for i in range(7)]
    onnx.save(_graph(*nodes), str(tmp_path / "bad.onnx"))
    with pytest.raises(UserError, match=r"bad\.onnx .*NonZero \(node n4\): not supported; and 2 more\. Lower"):
        lint_graph(tmp_path / "bad.onnx", load_operators("8.2"))
