"""int8 as TensorRT takes it: what the integers are, and the steps that real ranges give."""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeqlora_export.precision.board.calibrate import LARGEST, Channels, Histograms, Rounding, best_step, even_out
from edgeqlora_export.precision.board.static import inputs_of, quantise_static, weights_of

rng = np.random.default_rng(0)
W = rng.normal(0, 1, (64, 32)).astype(np.float32)
V = rng.normal(0, 0.1, (64, 48)).astype(np.float32)


def two_layers():
    """x (n, 64) times W and times V."""
    nodes = [helper.make_node("MatMul", ["x", n], [f"y{n}"], name=f"/{n}/MatMul") for n in ("w", "v")]
    info = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])]
    out = [helper.make_tensor_value_info(f"y{n}", TensorProto.FLOAT, ["n", m]) for n, m in (("w", 32), ("v", 48))]
    constants = [numpy_helper.from_array(array, name) for array, name in ((W, "w"), (V, "v"))]
    graph = helper.make_graph(nodes, "g", info, out, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)


def run(model, x):
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )


def calibrated(x):
    """The rounding of x, as export finds it."""
    channels = Channels()
    channels.see("g", "x", x)
    evened = {("g", "x"): even_out(channels.largest["g", "x"], weights_of(two_layers())["x"])}
    histograms = Histograms(evened, channels.largest)
    histograms.see("g", "x", x)
    return histograms.roundings()["g", "x"]


@pytest.fixture
def x():
    """Inputs with two channels far larger than the others, as Whisper has them."""
    made = rng.normal(0, 1, (200, 64)).astype(np.float32)
    made[:, [3, 40]] *= 60
    return made


def test_both_forms_of_weights_and_the_plain_numbers_are_one_result(x):
    rounding, found = calibrated(x), []
    for flags in ({}, {"from_fp32": True}, {"as_numbers": True}):
        model = two_layers()
        fp32 = quantise_static(model, {"/w/MatMul", "/v/MatMul"}, {"x": rounding}, **flags)
        assert "/w/MatMul" not in fp32
        found.append(run(model, x))
        kinds = [node.op_type for node in model.graph.node]
        assert kinds.count("MatMul") == 2
        zeros = [numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith("_zero")]
        assert all((zero == 0).all() and zero.dtype == np.int8 for zero in zeros)
        if not flags:
            assert kinds.count("QuantizeLinear") == 1, "both layers read the same integers"
            assert {t.data_type for t in model.graph.initializer if t.name in ("w_int8", "v_int8")} == {
                TensorProto.INT8
            }
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)
    error = np.sqrt(np.mean((found[0][0] - x @ W) ** 2)) / np.sqrt(np.mean((x @ W) ** 2))
    assert 0 < error < 0.02


def test_evening_the_channels_out_is_what_saves_them(x):
    """One step for channels of 1 and of 60 leaves the small ones two or three integers."""

    def error(rounding):
        model = two_layers()
        quantise_static(model, {"/w/MatMul"}, {"x": rounding})
        small = np.delete(np.arange(64), [3, 40])
        return np.sqrt(np.mean((run(model, x)[0] - x @ W) ** 2)) / np.sqrt(np.mean((x[:, small] @ W[small]) ** 2))

    plain = Rounding(np.ones(64, dtype=np.float32), float(np.abs(x).max()) / LARGEST)
    assert error(calibrated(x)) < 0.35 * error(plain)


def test_only_what_is_wanted_changes():
    model = two_layers()
    quantise_static(model, {"/v/MatMul"}, {"x": Rounding(np.ones(64, dtype=np.float32), 0.1)})
    assert next(node for node in model.graph.node if node.name == "/w/MatMul").input[:] == ["x", "w"]
    assert inputs_of(two_layers()) == {"/w/MatMul": "x", "/v/MatMul": "x"}


def test_a_channel_that_was_silent_or_has_no_weights_is_left_as_it_is():
    factors = even_out(np.array([0.0, 4.0, 4.0]), np.array([[1.0, 1.0], [0.0, 0.0], [1.0, -16.0]]))
    np.testing.assert_array_equal(factors, np.array([1.0, 1.0, 2.0], dtype=np.float32))


def test_a_rare_outlier_is_cut_where_that_errs_less():
    counts = np.zeros(2048)
    counts[:40], counts[-1] = 10_000, 1
    assert best_step(counts, 1.0) < 0.5 / LARGEST
    even = np.full(2048, 100)
    assert best_step(even, 1.0) == pytest.approx(1 / LARGEST, rel=0.05)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(1e-9, 1e9))
def test_a_step_is_always_one_to_divide_by(counts, top):
    step = best_step(np.array(counts), top)
    assert 0 < step <= top / LARGEST * (1 + 1e-9)
