"""The engine request: every shape that the runner will feed, and none that the graphs do not have."""

import json
from pathlib import Path

import onnx
import pytest
from export_tiny import tiny_generation_config

from edgeqlora_export.engine_request import engine_precisions, engine_request
from edgeqlora_export.whisper.decoding import decoding_spec
from edgeqlora_export.whisper.engine_graphs import engine_graphs
from edgeqlora_export.whisper.graphs import export_whisper
from edgeqlora_export.whisper.graphs.modules import model_constants
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.bundle.manifest import check_manifest
from edgeqlora_jetson.engines.request import check_request, optimization_profiles
from edgeqlora_jetson.errors import UserError

FIXTURES = Path(__file__).resolve().parents[1] / "jetson" / "fixtures"
MODEL = {"n_layers": 1, "n_heads": 2, "head_dim": 4, "n_mels": 16, "max_target_positions": 24, "vocab_size": 40}


def ask(**changes):
    shapes = {"model": MODEL, "windows_s": [1.0, 0.5], "n_prompt": 2, "max_new_tokens": {"0.5": 6, "1.0": 10}}
    settings = {"max_batch": 4, "precisions": ["fp16", "fp32"], "tensorrt": "8.2", "workspace_mib": 64}
    for key, value in changes.items():
        (shapes if key in shapes else settings)[key] = value
    return engine_request(engine_graphs(max_batch=settings["max_batch"], **shapes), **settings)


def test_the_shapes_of_a_model_worked_out_by_hand():
    request = ask()
    assert request["max_batch"] == 4
    # 2 prompt tokens and 10 new ones
    assert request["graphs"]["decoder"]["outputs"]["present_k_0"] == [4, 2, 12, 4]
    assert request["graphs"]["encoder"]["outputs"] == {"cross_k_0": [4, 2, 4, 50], "cross_v_0": [4, 2, 50, 4]}
    encoder = optimization_profiles(request, "encoder")
    assert [profile.name for profile in encoder] == ["window 0.5 s", "window 1 s"]
    assert encoder[1].inputs == {"mel": {"min": (1, 16, 100), "opt": (1, 16, 100), "max": (4, 16, 100)}}
    prefill, step = optimization_profiles(request, "decoder")
    assert (prefill.name, step.name) == ("prefill", "step")
    assert prefill.inputs["tokens"] == {"min": (1, 2), "opt": (1, 2), "max": (4, 2)}
    assert prefill.inputs["past_k_0"] == {"min": (1, 2, 0, 4), "opt": (1, 2, 0, 4), "max": (4, 2, 0, 4)}
    assert step.inputs["tokens"] == {"min": (1, 1), "opt": (1, 1), "max": (4, 1)}
    # 2 prompt tokens and 10 new ones: the last run has 11 behind it; kernels are chosen for the middle, (2 + 12) / 2.
    assert step.inputs["past_v_0"] == {"min": (1, 2, 1, 4), "opt": (1, 2, 7, 4), "max": (4, 2, 11, 4)}
    assert step.inputs["cross_k_0"] == {"min": (1, 2, 4, 25), "opt": (1, 2, 4, 50), "max": (4, 2, 4, 50)}
    assert step.inputs["cross_v_0"] == {"min": (1, 2, 25, 4), "opt": (1, 2, 50, 4), "max": (4, 2, 50, 4)}


def test_the_boards_tests_use_the_same_request():
    expected = json.loads((FIXTURES / "engine_request.json").read_text())
    assert ask() == expected, (
        "make tests/jetson/fixtures/engine_request.json again: python tests/jetson/fixtures/make_request.py"
    )


def test_every_input_of_the_graphs_is_asked_for(whisper, tokenizer, tmp_path):
    spec = decoding_spec(whisper, tokenizer, tiny_generation_config(), [1.0, 2.0])
    request = ask(
        model=model_constants(whisper),
        windows_s=[1.0, 2.0],
        n_prompt=len(spec["prompt_ids"]),
        max_new_tokens=spec["max_new_tokens"],
        max_batch=8,
        precisions=["fp16"],
        tensorrt="10.3",
    )
    graphs = export_whisper(whisper, tmp_path)
    for graph in request["graphs"]:
        inputs = {node.name: node.type.tensor_type.shape.dim for node in onnx.load(graphs[graph]).graph.input}
        for profile in optimization_profiles(request, graph):
            assert set(profile.inputs) == set(inputs)
            for name, shapes in profile.inputs.items():
                for shape in shapes.values():
                    assert len(shape) == len(inputs[name])
                    fixed = [(n, dim.dim_value) for n, dim in zip(shape, inputs[name], strict=True) if dim.dim_value]
                    assert all(n == size for n, size in fixed), (name, shape)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_batch": 0}, "max_batch=0, allowed 1 to 64"),
        ({"windows_s": []}, "windows_s is empty"),
        ({"windows_s": [0.51]}, r"window_s=0.51 is not a multiple of 0.02"),
        ({"max_new_tokens": {}}, "max_new_tokens is empty"),
        ({"n_prompt": 0}, "n_prompt=0 with 10 new tokens"),
        ({"n_prompt": 15}, "together at most the model's 24 positions"),
    ],
)
def test_bad_values_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        ask(**changes)


@pytest.mark.parametrize(
    ("graphs", "offered", "found"),
    [
        (["fp32", "fp32"], ["fp16", "bf16", "fp32", "int8"], ["fp32", "fp16"]),
        (["fp32", "fp32"], ["fp32"], ["fp32"]),
        (["fp32", "fp16"], ["fp16", "fp32"], ["fp16"]),
        (["fp16", "int8"], ["fp16", "fp32", "int8"], ["int8"]),
    ],
)
def test_engines_have_the_precision_of_graphs_with_types_and_of_fp32_what_the_board_offers(graphs, offered, found):
    manifest = {"graphs": {name: {"precision": p} for name, p in zip("ab", graphs, strict=True)}}
    assert engine_precisions(manifest, offered) == found


def _set(*keys_and_value):
    def edit(request):
        for key in keys_and_value[:-2]:
            request = request[key]
        request[keys_and_value[-2]] = keys_and_value[-1]

    return edit


STEP = ("graphs", "decoder", "optimization_profiles", 1, "inputs")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_set("schema", "edgeqlora.engines/9"), "engine_request.schema is 'edgeqlora.engines/9'"),
        (
            _set("precisions", ["int4"]),
            r"engine_request.precisions is \['int4'\], needed: a list out of fp32, fp16, bf16, int8",
        ),
        (_set("precisions", []), "engine_request.precisions is"),
        (_set("workspace_mib", 0), "engine_request.workspace_mib is 0, needed: MiB of at least 1, or null"),
        (_set("max_batch", True), "engine_request.max_batch is True"),
        (
            _set(*STEP, "past_k_0", {key: [1, 2, 9, 4] for key in ("min", "opt", "max")}),
            r"no decoder shape for the longest transcript \(past_k_0 \(1, 2, 11, 4\)\)",
        ),
        (
            _set("graphs", {}),
            "engine_request.graphs needs exactly decoder and encoder|needs exactly encoder and decoder",
        ),
        (_set("graphs", "encoder", "optimization_profiles", []), "needed: at least one"),
        (_set("graphs", "encoder", "optimization_profiles", 0, "name", 3), "needs a name and inputs"),
        (
            _set("graphs", "encoder", "outputs", "cross_k_0", [1, "x"]),
            "outputs is .*, needed: the largest shape of each",
        ),
        (
            _set("graphs", "encoder", "on_device", ["x"]),
            r"on_device is \['x'\], needed: a list of its inputs and outputs",
        ),
        (_set("graphs", "decoder", "outputs", {}), "outputs: logits, present_k_0, present_v_0 not as the graph has it"),
        (_set(*STEP, "tokens", "min", [1, "x"]), r"inputs.tokens.min is \[1, 'x'\], needed: a shape"),
        (_set(*STEP, "tokens", "min", [1]), "need the same number of axes"),
        (_set(*STEP, "tokens", "min", [9, 1]), r"min \[9, 1\], opt \[1, 1\], max \[4, 1\]: needed min <= opt <= max"),
        (_set(*STEP, "tokens", {}), "needed: min, opt and max"),
        (_set(*STEP, "past_k_9", {}), "past_k_9 not as the graph has it"),
        (
            _set("graphs", "encoder", "optimization_profiles", 1, "inputs", "mel", "max", [4, 16, 98]),
            "needed min <= opt",
        ),
        (
            _set(
                "graphs",
                "encoder",
                "optimization_profiles",
                1,
                "inputs",
                "mel",
                {key: [1, 16, 60] for key in ("min", "opt", "max")},
            ),
            r"no encoder shape for the window of 1 s \(mel \(1, 16, 100\)\)",
        ),
    ],
)
def test_a_broken_request_stops_the_bundle(edit, message):
    manifest = Bundle.load(FIXTURES / "bundle").manifest
    manifest["engine_request"] = ask()
    check_manifest(manifest, "manifest.json")
    edit(manifest["engine_request"])
    with pytest.raises(UserError, match=message):
        check_manifest(manifest, "manifest.json")


def test_a_request_that_is_no_object():
    with pytest.raises(UserError, match="engine_request is list, needed: an object or null"):
        check_request([], "manifest.json")
