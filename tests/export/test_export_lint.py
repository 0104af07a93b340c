"""Operator tables: what TensorRT would refuse is named with its node before anything is built."""

import numpy as np
import onnx
import pytest
from export_tiny import tiny_whisper
from onnx import TensorProto, helper

from edgeqlora.demo import model_dir
from edgeqlora.profiles.load import list_profiles, load_profile
from edgeqlora_export.family import load_exporter
from edgeqlora_export.lint import find_problems, known_versions, lint_graph, load_operators
from edgeqlora_export.lint.rules import AXES_INPUT, RULES, UNDECIDED
from edgeqlora_export.precision.board.calibrate import Rounding
from edgeqlora_export.precision.board.static import inputs_of, quantise_static, weights_of
from edgeqlora_export.precision.board.typed import to_types
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


def told(graph, table):
    return [str(finding) for finding in find_problems(graph, table)]


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
    model = load_exporter(model_dir()).base_model
    for opset in (13, 17):
        graphs = export_whisper(model, tmp_path / str(opset), opset=opset)
        for version in [version for wanted, version in asked if wanted == opset]:
            for path in graphs.values():
                assert lint_graph(path, load_operators(version)) > 100
                for precision in ("fp16", "int8", *(["bf16"] if version.startswith("10") else [])):
                    typed = in_precision(path, precision, from_fp32=version.startswith("8"))
                    assert lint_graph(typed, load_operators(version)) > 100


def in_precision(path, precision, from_fp32):
    """The graph with types, its int8 ranges made up."""
    graph, fp32 = onnx.load(str(path)), set()
    if precision == "int8":
        widths = {x: len(weights) for x, weights in weights_of(graph).items()}
        roundings = {x: Rounding(np.ones(n, dtype=np.float32), 0.05) for x, n in widths.items()}
        assert roundings
        fp32 = quantise_static(graph, set(inputs_of(graph)), roundings, from_fp32=from_fp32)
    to_types(graph, fp32, "bf16" if precision == "bf16" else "fp16")
    typed = path.with_name(f"{path.stem}-{precision}.onnx")
    onnx.save(graph, str(typed))
    return typed


def test_restrictions_are_looked_at():
    old, new = load_operators("8.2"), load_operators("10.3")
    flat = _graph(helper.make_node("Conv", ["x", "w"], ["y"], name="c"), initializers=[_constant("w", 2, 2, 3)])
    assert told(flat, old) == ["Conv (node c): 1-D convolution; only 2-D and 3-D are supported"]
    assert told(flat, new) == []
    computed = _graph(helper.make_node("Conv", ["x", "x"], ["y"], name="c"))
    assert told(computed, old) == ["Conv (node c): its weights must be constant"]
    axes = _graph(helper.make_node("Unsqueeze", ["x", "x"], ["y"]))
    assert told(axes, old) == ["Unsqueeze (node y): its axes must be constant"]
    resolvable = load_operators("10.15")
    assert told(axes, resolvable) == ["Unsqueeze (node y): its axes must be constant"]  # a graph input
    folded = _graph(helper.make_node("Cast", ["w"], ["a"], to=7), helper.make_node("Unsqueeze", ["x", "a"], ["y"]))
    assert told(folded, resolvable) == []
    assert told(folded, old) == ["Unsqueeze (node y): its axes must be constant"]
    foreign = _graph(helper.make_node("Add", ["x", "x"], ["y"], domain="com.microsoft"))
    assert told(foreign, old) == ["Add (node y): not supported"]


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
    assert told(bad, load_operators(version)) == [f"{operator} (node y): its {word}"]
    good = _graph(helper.make_node(operator, [*inputs, "w"], ["y"]), initializers=[_constant("w", 1)])
    assert told(good, load_operators(version)) == []


def test_every_operator_with_axes_in_a_table_is_known():
    for version in known_versions():
        for operator, restriction in load_operators(version).operators.items():
            if restriction.startswith(("`axes` must be", "`axis` must be")):
                assert operator in AXES_INPUT, (version, operator)


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
    assert told(graph, load_operators("8.2")) == ["NonZero (node deep): not supported"]
    assert told(graph, table) == []
    onnx.save(graph, str(tmp_path / "if.onnx"))
    assert lint_graph(tmp_path / "if.onnx", table) == 5
    # A body's own input hides a constant of the same name outside.
    state = helper.make_tensor_value_info("w", TensorProto.FLOAT, None)
    body = _branch("d", helper.make_node("ReduceSum", ["x", "w"], ["d"], name="in_body"), inputs=[state])
    loop = _graph(helper.make_node("Loop", ["", "", "x"], ["y"], body=body), initializers=[_constant("w", 1)])
    assert told(loop, table) == ["ReduceSum (node in_body): its axes must be constant"]


def test_many_problems_are_cut_at_five(tmp_path):
    nodes = [helper.make_node("NonZero", ["x"], [f"y{i}"], name=f"n{i}") for i in range(7)]
    onnx.save(_graph(*nodes), str(tmp_path / "bad.onnx"))
    with pytest.raises(
        UserError,
        match=r"bad\.onnx .*NonZero \(node n4\): not supported; and 2 more\. Ways out: choose a newer target, or",
    ):
        lint_graph(tmp_path / "bad.onnx", load_operators("8.2"))


def test_every_restriction_of_a_table_is_looked_at_or_said_to_be_out_of_reach():
    for version in known_versions():
        for operator, restriction in load_operators(version).operators.items():
            if restriction and not restriction.startswith("DERIVED: support added"):
                assert operator in RULES or operator in UNDECIDED, (version, operator, restriction)
    assert not set(RULES) & set(UNDECIDED)


def test_a_finding_names_node_operator_rule_version_and_way_out(tmp_path):
    graph = _graph(helper.make_node("Conv", ["x", "w"], ["y"], name="c"), initializers=[_constant("w", 2, 2, 3)])
    (finding,) = find_problems(graph, load_operators("8.2.1"))
    assert (finding.operator, finding.node, finding.version) == ("Conv", "node c", "TensorRT 8.2")
    assert finding.rule == "1-D convolution; only 2-D and 3-D are supported"
    assert finding.way_out == "write the operator as its rule says, or choose a target that takes it"


def _ints(name, *values):
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], list(values))


def _bytes(name, kind, *values):
    return helper.make_tensor(name, kind, [len(values)], list(values))


@pytest.mark.parametrize(
    ("version", "node", "initializers", "rules"),
    [
        ("10.3", ("MaxPool", ["x"], ["y", "i"], {"kernel_shape": [2]}), (), ["1-D pooling; only 2-D and 3-D are supported", "its output Indices is not supported"]),
        ("10.3", ("AveragePool", ["x"], ["y"], {"kernel_shape": [2, 2], "dilations": [1, 2]}), (), ["dilations [1, 2]; only 1 is supported"]),
        ("8.2", ("AveragePool", ["x"], ["y"], {"kernel_shape": [2, 2], "dilations": [1, 2]}), (), []),
        ("10.3", ("DequantizeLinear", ["x", "s", "z"], ["y"], {}), (_constant("s", 1), _bytes("z", TensorProto.INT8, 3)), ["its zero point must be 0"]),
        ("10.3", ("DequantizeLinear", ["x", "s", "z"], ["y"], {}), (_constant("s", 1), _bytes("z", TensorProto.INT8, 0)), []),
        ("8.2", ("QuantizeLinear", ["x", "s", "x"], ["y"], {}), (_constant("s", 1),), ["its zero point must be constant"]),
        ("8.2", ("TopK", ["x", "x"], ["y", "i"], {}), (), ["K must be constant"]),
        ("10.3", ("TopK", ["x", "k"], ["y", "i"], {"sorted": 0}), (_ints("k", 3840),), ["K is 3840; allowed are less than 3840", "sorted must be 1"]),
        ("10.3", ("TopK", ["x", "k"], ["y", "i"], {}), (_ints("k", 3839),), []),
        ("8.5", ("InstanceNormalization", ["x", "x", "b"], ["y"], {}), (_constant("b", 2),), ["its scale must be constant"]),
        ("10.1", ("LayerNormalization", ["x", "s"], ["y", "mean"], {}), (_constant("s", 8),), ["only its first output is supported"]),
        ("8.2", ("Einsum", ["x", "x"], ["y"], {"equation": "...ii,bij->...bj"}), (), ["an ellipsis is not supported", "a diagonal is not supported"]),
        ("8.2", ("Einsum", ["x", "x"], ["y"], {"equation": "bij,bjk->bik"}), (), []),
        ("10.3", ("GRU", ["x", "x", "x"], ["y"], {"direction": "bidirectional", "activations": ["Sigmoid", "Tanh", "Sigmoid", "Relu"]}), (), ["activations of both directions must be the same"]),
        ("10.3", ("LSTM", ["x", "x", "x"], ["y"], {"layout": 1}), (), ["layout must be 0"]),
        ("10.3", ("OneHot", ["x", "x", "w"], ["y"], {}), (_constant("w", 2),), ["depth must be constant"]),
        ("8.2", ("Range", ["w", "x", "w"], ["y"], {}), (_constant("w"),), ["start, limit and delta of floats must be constant"]),
        ("10.3", ("Resize", ["x", "", "w"], ["y"], {"mode": "cubic"}), (_constant("w", 3),), ["mode 'cubic'; allowed are nearest, linear"]),
        ("10.3", ("ScatterND", ["x", "k", "x"], ["y"], {"reduction": "add"}), (_ints("k", 1),), ["reduction 'add' is not supported"]),
        ("10.15", ("Attention", ["x", "x", "x", "", "x"], ["y"], {"softcap": 1.0}), (), ["its input past_key is not supported", "softcap is not supported"]),
        ("10.15", ("TensorScatter", ["x", "x"], ["y"], {"axis": 1}), (), ["axis 1; only -2 is supported"]),
        ("10.15", ("STFT", ["x", "x", "w"], ["y"], {}), (_constant("w", 4),), ["frame_step must be constant"]),
        ("8.2", ("NonMaxSuppression", ["x", "x", "x", "w", "w"], ["y"], {}), (_constant("w", 1),), ["max_output_boxes_per_class must be constant"]),
        ("10.3", ("Dropout", ["x", "w", "t"], ["y"], {}), (_constant("w", 1), _bytes("t", TensorProto.BOOL, 1)), ["training_mode must be false"]),
        ("10.1", ("Constant", [], ["y"], {"value_string": "a"}), (), ["value_string is not supported"]),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) and value and isinstance(value[0], str) else None,
)  # fmt: skip
def test_each_restriction_by_a_graph_that_breaks_it(version, node, initializers, rules):
    operator, inputs, outputs, attributes = node
    graph = _graph(helper.make_node(operator, inputs, outputs, name="n", **attributes), initializers=initializers)
    found = find_problems(graph, load_operators(version))
    if operator not in load_operators(version).operators:
        pytest.fail(f"{operator} is not in the table of {version}")
    assert [finding.rule for finding in found if finding.operator == operator and finding.node == "node n"] == rules


def test_element_types_and_constants_beyond_32_bits():
    old, new = load_operators("8.2"), load_operators("10.15")
    half = helper.make_tensor("w", TensorProto.BFLOAT16, [1], [0.0])
    graph = _graph(
        helper.make_node("Add", ["x", "w"], ["a"]),
        helper.make_node("Cast", ["a"], ["y"], name="c", to=TensorProto.UINT8),
        initializers=[half],
    )
    assert told(graph, new) == []
    types = "element type {}; TensorRT 8.2 reads BOOL, DOUBLE, FLOAT, FLOAT16, INT32, INT64, INT8"
    assert told(graph, old) == [
        f"Cast (node c): {types.format('UINT8')}",
        f"Constant (tensor w): {types.format('BFLOAT16')}",
    ]
    large = _ints("k", 2**31)
    ends = _graph(helper.make_node("Slice", ["x", "z", "k", "z"], ["y"]), initializers=[large, _ints("z", 0)])
    assert told(ends, old) == [], "to the end of the axis, cut to 32 bits or not"
    added = _graph(helper.make_node("Add", ["x", "k"], ["y"]), initializers=[large])
    assert told(added, old) == ["Constant (tensor k): INT64 value 2147483648, which TensorRT 8.2 cuts to 32 bits"]
    assert told(added, new) == []


def test_constants_given_as_numbers_count_as_constants():
    graph = _graph(
        helper.make_node("Constant", [], ["a"], value_ints=[0]), helper.make_node("Unsqueeze", ["x", "a"], ["y"])
    )
    assert told(graph, load_operators("8.2")) == []
