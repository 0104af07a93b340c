"""The vocabulary in int8: the likeliest tokens are found by few columns, and their logits are complete."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_linears import run

from edgeqlora_export.precision.cpu.vocabulary import (
    LEAST_TOKENS,
    choose_lead,
    find_vocabulary,
    quantise_vocabulary,
    second_moment,
    turn,
)

D, V = 96, LEAST_TOKENS


@pytest.fixture(scope="module")
def speech():
    """W (V, D), and 400 states that live mostly in 24 directions, as those of a language model do."""
    draw = np.random.default_rng(0)
    directions = np.linalg.qr(draw.normal(0, 1, (D, D)))[0]
    spread = np.concatenate([np.full(24, 3.0), np.full(D - 24, 0.05)])
    states = (draw.normal(0, 1, (400, D)) * spread) @ directions.T
    return draw.normal(0, 1, (V, D)).astype(np.float32), states.astype(np.float32)


def decoder_of(weight, untied=None):
    """tokens (b, n) -> rows of the table; hidden (b, D) -> logits of all tokens."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["rows"], name="/Gather"),
        helper.make_node("Gemm", ["hidden", "table" if untied is None else "own"], ["logits"], name="/Gemm", transB=1),
    ]
    tables = {"table": weight} if untied is None else {"table": weight, "own": untied}
    inputs = [value("tokens", TensorProto.INT32, ["b", "n"]), value("hidden", TensorProto.FLOAT, ["b", D])]
    outputs = [value("rows", TensorProto.FLOAT, ["b", "n", D]), value("logits", TensorProto.FLOAT, ["b", V])]
    tensors = [numpy_helper.from_array(table, name) for name, table in tables.items()]
    graph = helper.make_graph(nodes, "test", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)


@pytest.mark.parametrize("rank", [D, 10], ids=["whole", "of few directions"])
def test_the_turned_table_is_the_table(speech, rank):
    weight, states = speech
    weight = weight[:, :rank] @ np.random.default_rng(1).normal(0, 1, (rank, D)).astype(np.float32)
    turned = turn(weight, second_moment(states[:, :]))
    assert np.abs(turned.a @ turned.b - weight).max() < 1e-3 * np.abs(weight).max()
    still = turn(weight, np.zeros((D, D)))
    assert np.abs(still.a @ still.b - weight).max() < 1e-3 * np.abs(weight).max(), "of states that say nothing, too"


@pytest.mark.parametrize("n", [3, 40])
def test_fewer_states_than_columns_are_no_trouble(speech, n):
    weight, states = speech
    few = states[:n] + np.float32(50) * states[:1]  # one direction is far larger than all others
    turned = turn(weight, second_moment(few))
    assert np.abs(turned.a @ turned.b - weight).max() < 1e-3 * np.abs(weight).max()
    assert 32 <= choose_lead(weight, few, 192) <= D


def test_few_columns_lead_where_states_live_in_few_directions(speech):
    weight, states = speech
    assert choose_lead(weight, states, 192) == 32
    even = np.random.default_rng(2).normal(0, 1, states.shape).astype(np.float32)
    assert choose_lead(weight, even, 192) >= 64, "no direction leads"
    assert choose_lead(weight, states, 4) == D, "the very first must be right"


def test_the_best_tokens_and_their_logits_are_those_of_fp32(speech):
    weight, states = speech
    model = decoder_of(weight)
    tokens = np.arange(8, dtype=np.int32).reshape(2, 4) * 500
    rows, logits = run(model, tokens=tokens, hidden=states[:2])
    assert find_vocabulary(model) == "/Gemm"
    quantise_vocabulary(model, turn(weight, second_moment(states)), 32, 192)
    assert sum(t.data_type == TensorProto.INT8 and np.prod(t.dims) > V for t in model.graph.initializer) == 2
    assert {output.name for output in model.graph.output} == {"rows", "logits", "candidates"}
    found = 0
    for i in range(40):
        hidden = states[2 * i : 2 * i + 2]
        few_rows, few, ids = run(model, tokens=tokens, hidden=hidden)
        logits = hidden @ weight.T
        assert few.shape == ids.shape == (2, 192)
        error = np.abs(few - np.take_along_axis(logits, ids, axis=1)).max()
        assert error < 0.03 * np.abs(logits).max()
        found += sum(ids[row][few[row].argmax()] == logits[row].argmax() for row in range(2))
    assert found >= 78, "int8 may swap two that are nearly equal"
    assert np.abs(few_rows - rows).max() < 0.03 * np.abs(rows).max()


def test_an_untied_embedding_stays_as_it_is(speech):
    weight, states = speech
    other = np.random.default_rng(3).normal(0, 1, (V, D)).astype(np.float32)
    model = decoder_of(other, untied=weight)
    tokens = np.array([[7]], dtype=np.int32)
    quantise_vocabulary(model, turn(weight, second_moment(states)), 32, 192)
    rows, few, ids = run(model, tokens=tokens, hidden=states[:1])
    assert np.array_equal(rows[0, 0], other[7])
    assert ids[0][few[0].argmax()] == (states[0] @ weight.T).argmax()


def test_a_graph_without_a_large_vocabulary_has_none(speech):
    model = decoder_of(speech[0])
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(speech[0][:100], "table"))
    assert find_vocabulary(model) is None
    assert find_vocabulary(onnx.ModelProto()) is None
