"""Operator tables: what TensorRT would refuse is named with its node before anything is built."""

import onnx
import pytest
from export_tiny import tiny_whisper
from onnx import TensorProto, helper

from edgeqlora.profiles.load import list_profiles, load_profile
from edgeqlora_export.lint import _AXES_INPUT, find_problems, known_versions, lint_graph, load_operators
from edgeqlora_export.whisper.graphs import export_whisper
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
    assert known_versions() == ["8.2", "8.5", "8.6", "10.1", "10.3", "10.13", "10.15"]
    assert (old.max_opset, new.max_opset) == (13, 20)
    assert "LayerNormalization" not in old.operators
    assert "LayerNormalization" in new.operators
    assert "NonZero" not in old.operators  # listed, but as not supported
    assert "8.2-GA" in old.source
    with pytest.raises(
        UserError,
        match=r"tensorrt='7.1': no operator table of that version or an older one; known are 8.2, 8.5, .* in the",
    ):
        load_operators("7.1")


@pytest.mark.parametrize(
    ("version", "highest_opset", "n_supported", "takes", "lacks"),
    [
        # Counts and rows as in the published operators.md (10.3 and 10.13: derived with the changelog).
        ("8.2", 13, 129, ["Einsum"], ["LayerNormalization", "Trilu", "NonZero", "Gelu"]),
        ("8.5", 17, 142, ["Trilu", "NonZero"], ["LayerNormalization", "GroupNormalization"]),
        ("8.6", 17, 145, ["LayerNormalization", "GroupNormalization"], ["Gelu"]),
        ("10.1", 20, 150, ["Gelu"], ["STFT", "HannWindow"]),
        ("10.3", 20, 150, ["Gelu"], ["STFT", "Attention"]),
        ("10.13", 20, 154, ["STFT"], ["Attention", "RMSNormalization"]),
        ("10.15", 24, 158, ["Attention", "RMSNormalization"], ["DFT", "MatMulInteger"]),
    ],
)
def test_each_table_counts_what_was_published(version, highest_opset, n_supported, takes, lacks):
    table = load_operators(version)
    assert (table.version, table.max_opset, len(table.operators)) == (version, highest_opset, n_supported)
    assert set(takes) <= set(table.operators)
    assert not set(lacks) & set(table.operators)


def test_a_version_without_a_table_gets_the_newest_that_is_not_newer_and_says_so():
    assert load_operators("8.2.1").title == "TensorRT 8.2"
    jetpack_72 = load_operators("10.16.2.10")
    assert jetpack_72.version == "10.15"
    assert jetpack_72.title == "TensorRT 10.15 (the newest one not newer than 10.16.2.10, which has no table here)"
    assert load_operators("11.4").version == "10.15"
    assert load_operators("9.0").version == "8.6"


def test_whisper_at_opset_13_fits_tensorrt_8_2_and_opset_17_does_not(tmp_path):
    old = load_operators("8.2")
    for path in export_whisper(tiny_whisper(), tmp_path / "13", opset=13).values():
        assert lint_graph(path, old) > 100
    newer = export_whisper(tiny_whisper(), tmp_path / "17", opset=17)
    for path in newer.values():
        assert lint_graph(path, load_operators("10.3")) > 100
    with pytest.raises(
        UserError,
        match=r"(?s)encoder\.onnx is outside the operator table of TensorRT 8\.2: opset 17; .*LayerNormalization \(node .*norm.*\): not supp",
    ):
        lint_graph(newer["encoder"], old)


def test_every_profile_and_jetpack_gets_graphs_that_its_table_takes(tmp_path):
    asked = {(r.opset, r.tensorrt) for name in list_profiles() for r in load_profile(name).jetpacks}
    assert asked == {
        (13, "8.2.1"),
        (13, "8.5.2"),
        (17, "8.6.2.3"),
        (17, "10.3.0.30"),
        (17, "10.13.3.9"),
        (17, "10.16.2.10"),
    }
    for opset in (13, 17):
        graphs = export_whisper(tiny_whisper(), tmp_path / str(opset), opset=opset)
        for version in [version for wanted, version in asked if wanted == opset]:
            for path in graphs.values():
                assert lint_graph(path, load_operators(version)) > 100


def test_restrictions_are_looked_at():
    old, new = load_operators("8.2"), load_operators("10.3")
    flat = _graph(helper.make_node("Conv", ["x", "w"], ["y"], name="c"), initializers=[_constant("w", 2, 2, 3)])
    assert find_problems(flat, old) == ["Conv (node c): 1-D convolution; only 2-D and 3-D are supported"]
    assert find_problems(flat, new) == []
    computed = _graph(helper.make_node("Conv", ["x", "x"], ["y"], name="c"))
    assert find_problems(computed, old) == ["Conv (node c): its weights must be constant"]
    axes = _graph(helper.make_node("Unsqueeze", ["x", "x"], ["y"]))
    assert find_problems(axes, old) == ["Unsqueeze (node y): its axes must be constant"]
    resolvable = load_operators("10.15")
    assert find_problems(axes, resolvable) == ["Unsqueeze (node y): its axes must be constant"]  # a graph input
    folded = _graph(helper.make_node("Cast", ["w"], ["a"], to=7), helper.make_node("Unsqueeze", ["x", "a"], ["y"]))
    assert find_problems(folded, resolvable) == []
    assert find_problems(folded, old) == ["Unsqueeze (node y): its axes must be constant"]
    foreign = _graph(helper.make_node("Add", ["x", "x"], ["y"], domain="com.microsoft"))
    assert find_problems(foreign, old) == ["Add (node y): not supported"]


@pytest.mark.parametrize(
    ("operator", "version", "index"),
    [
        ("ReduceSum", "10.3", 1),
        ("ReduceMax", "10.15", 1),
        ("ReduceLogSumExp", "10.13", 1),
        ("Pad", "10.3", 3),
        ("CumSum", "8.2", 1),
        ("CumSum", "10.15", 1),
    ],
)
def test_axes_that_became_an_input_are_looked_at(operator, version, index):
    inputs = ["x", "w", "w", "w"][:index]
    bad = _graph(helper.make_node(operator, [*inputs, "x"], ["y"]), initializers=[_constant("w", 1)])
    word = "axes must be constant"
    assert find_problems(bad, load_operators(version)) == [f"{operator} (node y): its {word}"]
    good = _graph(helper.make_node(operator, [*inputs, "w"], ["y"]), initializers=[_constant("w", 1)])
    assert find_problems(good, load_operators(version)) == []


def test_every_operator_with_axes_in_a_table_is_known():
    for version in known_versions():
        for operator, restriction in load_operators(version).operators.items():
            if restriction.startswith(("`axes` must be", "`axis` must be")):
                assert operator in _AXES_INPUT, (version, operator)


def _branch(name, *nodes, initializers=(), inputs=()):
    out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), name, list(inputs), [out], list(initializers))


def test_branches_and_bodies_are_looked_into(tmp_path):
    table = load_operators("10.3")
    fine = _branch("a", helper.make_node("ReduceSum", ["x", "w"], ["a"], name="outer_axes"))
    inner = _branch("b", helper.make_node("NonZero", ["x"], ["b"], name="deep"))
    nested = _branch("c", helper.make_node("If", ["x"], ["c"], then_branch=inner, else_branch=fine))
    graph = _graph(
        helper.make_node("If", ["x"], ["y"], then_branch=fine, else_branch=nested), initializers=[_constant("w", 1)]
    )
    assert find_problems(graph, load_operators("8.2")) == ["NonZero (node deep): not supported"]
    assert find_problems(graph, table) == []
    onnx.save(graph, str(tmp_path / "if.onnx"))
    assert lint_graph(tmp_path / "if.onnx", table) == 5
    # A body's own input hides a constant of the same name outside.
    state = helper.make_tensor_value_info("w", TensorProto.FLOAT, None)
    body = _branch("d", helper.make_node("ReduceSum", ["x", "w"], ["d"], name="in_body"), inputs=[state])
    loop = _graph(helper.make_node("Loop", ["", "", "x"], ["y"], body=body), initializers=[_constant("w", 1)])
    assert find_problems(loop, table) == ["ReduceSum (node in_body): its axes must be constant"]


def test_many_problems_are_cut_at_five(tmp_path):
    nodes = [helper.make_node("NonZero", ["x"], [f"y{i}"], name=f"n{i}") for i in range(7)]
    onnx.save(_graph(*nodes), str(tmp_path / "bad.onnx"))
    with pytest.raises(UserError, match=r"bad\.onnx .*NonZero \(node n4\): not supported; and 2 more\. Lower"):
        lint_graph(tmp_path / "bad.onnx", load_operators("8.2"))
