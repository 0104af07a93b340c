"""Types in a graph: fp16 where it may be, fp32 where it must be, and the same roundings in a graph that stays fp32."""

import numpy as np
import onnx
import onnxruntime
import pytest
from export_tiny import tiny_whisper
from onnx import TensorProto, helper, numpy_helper

from edgeqlora_export.lint import lint_graph, load_operators
from edgeqlora_export.precision.board.typed import always_fp32, largest_constants, places, to_rounded, to_types
from edgeqlora_export.whisper.graphs import export_whisper

rng = np.random.default_rng(0)


def graph(*nodes, inputs=("x",), outputs=("y",), constants=None, opset=13):
    """A model of float tensors (2, 8)."""
    info = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 8]) for n in names] for names in (inputs, outputs)]
    tensors = [numpy_helper.from_array(np.asarray(v, dtype=np.float32), n) for n, v in (constants or {}).items()]
    made = [helper.make_node(op, i, o, name=f"/{op}", **attributes) for op, i, o, attributes in nodes]
    return helper.make_model(
        helper.make_graph(made, "g", *info, tensors), opset_imports=[helper.make_opsetid("", opset)], ir_version=7
    )


def run(model, **inputs):
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


WEIGHTS = rng.normal(0, 1, (8, 8)).astype(np.float32)
PRODUCT = ("MatMul", ["x", "w"], ["z"], {}), ("Softmax", ["z"], ["y"], {"axis": -1})


def test_a_product_is_fp16_and_the_softmax_after_it_fp32():
    model = graph(*PRODUCT, constants={"w": WEIGHTS})
    to_types(model, ())
    types = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
    by_name = {node.name: node for node in model.graph.node}
    assert [types[name] for name in by_name["/MatMul"].output] == [TensorProto.FLOAT16]
    assert [types[name] for name in by_name["/Softmax"].input] == [TensorProto.FLOAT]
    assert [tensor.data_type for tensor in model.graph.initializer] == [TensorProto.FLOAT16]
    x = rng.normal(0, 1, (2, 8)).astype(np.float32)
    (y,) = run(model, x=x)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, run(graph(*PRODUCT, constants={"w": WEIGHTS}), x=x)[0], atol=5e-3)


def test_roundings_are_those_of_fp16_with_sums_in_fp32():
    model = graph(*PRODUCT, constants={"w": WEIGHTS})
    to_rounded(model, ())
    x = rng.normal(0, 1, (2, 8)).astype(np.float32)
    half = [array.astype(np.float16).astype(np.float32) for array in (x, WEIGHTS)]
    z = (half[0] @ half[1]).astype(np.float16).astype(np.float32)
    wanted = np.exp(z - z.max(axis=1, keepdims=True))
    np.testing.assert_allclose(run(model, x=x)[0], wanted / wanted.sum(axis=1, keepdims=True), rtol=1e-5)
    assert np.abs(z - x @ WEIGHTS).max() > 1e-4, "the roundings show"


@pytest.mark.parametrize("kept", [(), ("/Mul",)])
def test_what_leaves_the_range_of_fp16_is_seen_in_the_roundings(kept):
    model = graph(("Mul", ["x", "c"], ["z"], {}), ("Div", ["z", "c"], ["y"], {}), constants={"c": np.full((1,), 300.0)})
    to_rounded(model, {*kept, "/Div"})
    x = np.full((2, 8), 300.0, dtype=np.float32)
    assert np.isfinite(run(model, x=x)[0]).all() == bool(kept), "300 * 300 is above 65504"


def test_a_number_that_fp16_makes_0_stays_with_what_reads_it():
    """A silent clip divided by its loudest sample and 1e-10: 0, not NaN."""
    nodes = (
        ("Add", ["x", "least"], ["loudest"], {}),
        ("Div", ["x", "loudest"], ["z"], {}),
        ("Mul", ["z", "c"], ["y"], {}),
    )
    constants = {"least": np.array([1e-10]), "c": np.array([2.0])}
    for change in (to_types, to_rounded):
        model = graph(*nodes, constants=constants)
        assert always_fp32(model) == {"/Add", "/Div"}
        change(model, ())
        assert (run(model, x=np.zeros((2, 8), dtype=np.float32))[0] == 0).all()


def test_a_cast_from_integers_gives_the_type_that_it_names():
    nodes = (
        ("ArgMax", ["x"], ["n"], {"axis": 1, "keepdims": 1}),
        ("Cast", ["n"], ["z"], {"to": TensorProto.FLOAT}),
        ("Mul", ["x", "z"], ["y"], {}),
    )
    model, x = graph(*nodes), np.eye(2, 8, k=3, dtype=np.float32)
    to_types(model, ())
    np.testing.assert_array_equal(run(model, x=x)[0], x * np.array([[3], [4]]))


def test_what_leaves_an_fp32_node_as_fp16_is_rounded_too():
    nodes = ("Mul", ["x", "x"], ["present"], {}), ("Add", ["present", "x"], ["y"], {})
    found = []
    x = rng.normal(0, 1, (2, 8)).astype(np.float32)
    for change in (to_types, to_rounded):
        model = graph(*nodes, outputs=("present", "y"))
        change(model, ("/Mul", "/Add"), io=("present",))
        found.append(run(model, x=x)[0].astype(np.float32))
    np.testing.assert_array_equal(*found)
    assert (found[0] != x * x).any()


def test_nodes_without_names_of_their_own_are_refused():
    model = graph(*PRODUCT, constants={"w": WEIGHTS})
    model.graph.node[0].name = ""
    with pytest.raises(ValueError, match="every node needs a name of its own"):
        to_types(model, ())


def test_more_weights_than_a_protobuf_holds_are_not_looked_at():
    """Types are inferred from names and types alone: 4 GB that are not there."""
    model = graph(*PRODUCT, constants={"w": WEIGHTS})
    model.graph.initializer[0].dims[:] = [8, 2**27]
    assert "w" in places(model).floats


def test_inputs_and_outputs_that_are_named_have_the_low_type_the_others_are_float():
    nodes = ("Add", ["x", "past"], ["present"], {}), ("Identity", ["present"], ["y"], {})
    model = graph(*nodes, inputs=("x", "past"), outputs=("present", "y"))
    to_types(model, (), io=("past", "present"))
    elem = {v.name: v.type.tensor_type.elem_type for v in [*model.graph.input, *model.graph.output]}
    assert elem == {
        "x": TensorProto.FLOAT, "past": TensorProto.FLOAT16, "present": TensorProto.FLOAT16, "y": TensorProto.FLOAT,
    }  # fmt: skip
    x = rng.normal(0, 1, (2, 8)).astype(np.float32)
    present, y = run(model, x=x, past=x.astype(np.float16))
    np.testing.assert_array_equal(present, x.astype(np.float16) + x.astype(np.float16))
    np.testing.assert_array_equal(y, present.astype(np.float32))


def test_a_constant_that_two_types_read_is_there_in_both():
    nodes = ("Mul", ["x", "c"], ["z"], {}), ("Max", ["z", "c"], ["y"], {})
    model = graph(*nodes, constants={"c": np.array([2.0])})
    to_types(model, ("/Max",))
    assert sorted(tensor.data_type for tensor in model.graph.initializer) == [TensorProto.FLOAT, TensorProto.FLOAT16]
    assert run(model, x=np.full((2, 8), 3.0, dtype=np.float32))[0].max() == 6.0


def test_the_largest_constant_of_each_node():
    nodes = ("Mul", ["x", "c"], ["z"], {}), ("Add", ["z", "x"], ["y"], {})
    assert largest_constants(graph(*nodes, constants={"c": np.array([-7.0, 2.0] * 4)})) == {"/Mul": 7.0}


@pytest.mark.parametrize("opset", [13, 17])
def test_a_whisper_in_fp16_passes_the_lint_and_computes_the_same(opset, tmp_path):
    """Every layer norm is fp32 with all its parts; weights take half the bytes."""
    paths = export_whisper(tiny_whisper(), tmp_path, opset)
    table = load_operators("8.2" if opset == 13 else "8.6")
    rounded: dict[str, list[np.ndarray]] = {}
    for name, path in paths.items():
        plain, model = onnx.load(str(path)), onnx.load(str(path))
        norms = {node.name for node in plain.graph.node if "norm/" in node.name and "Constant" not in node.op_type}
        kept = always_fp32(plain)
        if opset == 17:
            assert norms <= kept
        else:  # the scale and shift after the division may be fp16
            assert set(norms - kept) == {n for n in norms if n.endswith(("/Mul", "/Add_1"))}
        to_types(model, ())
        assert model.ByteSize() < 0.62 * plain.ByteSize()
        onnx.save(model, str(path))
        assert lint_graph(path, table) == len(model.graph.node)
        feeds = {}
        for value in plain.graph.input:
            dims = [
                d.dim_value or {"batch": 1, "n_frames": 8, "n_new": 2, "n_past": 3, "n_audio": 4}[d.dim_param]
                for d in value.type.tensor_type.shape.dim
            ]
            feeds[value.name] = (
                np.ones(dims, np.int32) if value.name == "tokens" else rng.normal(0, 1, dims).astype(np.float32)
            )
        wanted = run(plain, **feeds)
        rounded[name] = run(model, **feeds)
        for a, b in zip(wanted, rounded[name], strict=True):
            assert 0 < np.abs(a - b).max() < 0.02 * np.abs(a).max()
