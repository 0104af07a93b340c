"""Linear layers in int8: what comes out is near fp32, exact where integers are, and nothing else is touched."""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from onnx import TensorProto, helper, numpy_helper

from edgeqlora_export.precision.cpu.linears import LARGEST, halve_tables, linear_layers, quantise_linears, round_rows


def graph_of(nodes, constants, inputs, outputs):
    """Model from nodes and constants; inputs and outputs: name -> shape, all float."""
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in some.items()]
        for some in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "test", *values, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)


def run(model, **inputs):
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, inputs)


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=20), elements=st.floats(-1e4, 1e4, width=32)))
@settings(max_examples=60, deadline=None)
def test_rows_are_rounded_to_the_nearest_of_127_steps(rows):
    integers, scales = round_rows(rows)
    assert integers.dtype == np.int8
    assert np.abs(integers).max(initial=0) <= LARGEST
    assert np.abs(rows - integers * scales[:, None]).max(initial=0) <= scales.max(initial=0) * 0.501
    assert (scales > 0).all(), "a row of zeros has a scale too"


@pytest.fixture
def two_layers():
    """x (b, n, 64) -> two linears of the same input, one of which goes on into a small one."""
    draw = np.random.default_rng(0)
    sizes = {"wide": (64, 96), "tall": (64, 40), "small": (40, 8)}
    constants = {name: draw.normal(0, 1, size).astype(np.float32) for name, size in sizes.items()}
    nodes = [
        helper.make_node("MatMul", ["x", "wide"], ["y"], name="/layers.0/mlp/fc1/MatMul"),
        helper.make_node("MatMul", ["x", "tall"], ["h"], name="/layers.0/mlp/fc2/MatMul"),
        helper.make_node("MatMul", ["h", "small"], ["z"], name="/last/MatMul"),
    ]
    shapes = {"y": ["b", "n", 96], "z": ["b", "n", 8]}
    return graph_of(nodes, constants, {"x": ["b", "n", 64]}, shapes)


def test_int8_is_near_fp32_and_small_or_unwanted_layers_stay(two_layers):
    x = np.random.default_rng(1).normal(0, 1, (2, 5, 64)).astype(np.float32)
    wanted = run(two_layers, x=x)
    assert linear_layers(two_layers) == ["/layers.0/mlp/fc1/MatMul", "/layers.0/mlp/fc2/MatMul"]
    part = onnx.ModelProto()
    part.CopyFrom(two_layers)
    assert quantise_linears(part, lambda name: "fc1" in name) == ["/layers.0/mlp/fc1/MatMul"]
    assert [node.op_type for node in part.graph.node].count("MatMul") == 2
    assert quantise_linears(two_layers) == ["/layers.0/mlp/fc1/MatMul", "/layers.0/mlp/fc2/MatMul"]
    kinds = [node.op_type for node in two_layers.graph.node]
    assert (kinds.count("DynamicQuantizeLinear"), kinds.count("MatMulInteger"), kinds.count("MatMul")) == (1, 2, 1)
    assert {t.name for t in two_layers.graph.initializer if t.data_type == TensorProto.FLOAT} == {
        "small", "wide_int8_scales", "tall_int8_scales",
    }, "the fp32 weights are gone"  # fmt: skip
    for model, changed in ((part, [True, False]), (two_layers, [True, True])):
        for a, b, is_changed in zip(wanted, run(model, x=x), changed, strict=True):
            assert (np.abs(a - b).max() > 0) == is_changed
            assert np.abs(a - b).max() < 0.03 * np.abs(a).max()


def test_the_largest_products_are_not_cut_on_this_processor():
    """Without VNNI two products of 8 bits are added in 16: of full int8 weights the sum would not fit."""
    weight = np.full((64, 32), float(LARGEST), dtype=np.float32)
    model = graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="/a/b/MatMul")],
        {"w": weight}, {"x": ["n", 64]}, {"y": ["n", 32]},
    )  # fmt: skip
    x = np.full((3, 64), 255.0, dtype=np.float32)
    quantise_linears(model)
    assert np.allclose(run(model, x=x)[0], 64 * 255.0 * LARGEST, rtol=1e-6)


def test_tables_are_halved_where_fp16_holds_them():
    draw = np.random.default_rng(2)
    tables = {
        "good": draw.normal(0, 1, (512, 128)),
        "huge": draw.normal(0, 1e6, (512, 128)),
        "few": draw.normal(0, 1, (8, 128)),
    }
    nodes = [helper.make_node("Add", ["x", name], [f"{name}_out"]) for name in tables]
    nodes.append(helper.make_node("MatMul", ["x", "factor"], ["product"]))
    constants = {name: table[None].astype(np.float32) for name, table in tables.items()}
    constants["factor"] = draw.normal(0, 1, (128, 600)).astype(np.float32)
    shapes = {f"{name}_out": [1, "n", 128] for name in tables} | {"product": [1, "n", 600]}
    model = graph_of(nodes, constants, {"x": [1, "n", 128]}, shapes)
    x = np.zeros((1, 1, 128), dtype=np.float32)
    before = run(model, x=x)
    halve_tables(model)
    assert [t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16] == ["good_fp16"]
    after = run(model, x=x)
    assert 0 < np.abs(before[0] - after[0]).max() < 2e-3
    assert all(np.array_equal(a, b) for a, b in zip(before[1:], after[1:], strict=True))
