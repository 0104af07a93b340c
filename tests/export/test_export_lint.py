"""Operator tables: what TensorRT would refuse is named with its node before anything is built."""

import onnx
import pytest
from export_tiny import tiny_whisper
from onnx import TensorProto, helper

from edgeqlora.profiles import list_profiles, load_profile
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


def test_many_problems_are_cut_at_five(tmp_path):
    nodes = [helper.make_node("NonZero", ["x"], [f"y{i}"], name=f"n{i}") for i in range(7)]
    onnx.save(_graph(*nodes), str(tmp_path / "bad.onnx"))
    with pytest.raises(UserError, match=r"bad\.onnx .*NonZero \(node n4\): not supported; and 2 more\. Lower"):
        lint_graph(tmp_path / "bad.onnx", load_operators("8.2"))
