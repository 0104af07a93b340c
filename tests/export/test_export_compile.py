"""NVIDIA's own parser and compiler (TensorRT-RTX, which needs no GPU) on real graphs with the real engine request."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_tiny import tiny_generation_config, tiny_whisper
from onnx import TensorProto, helper
from transformers import WhisperForConditionalGeneration

from edgeqlora_export import compile_check
from edgeqlora_export.compile_check import TARGETS, compile_gate, import_compiler, target_of
from edgeqlora_export.engine_request import engine_request
from edgeqlora_export.precision.board.calibrate import Rounding
from edgeqlora_export.precision.board.static import inputs_of, quantise_static, weights_of
from edgeqlora_export.precision.board.typed import to_types
from edgeqlora_export.run import export_bundle
from edgeqlora_export.whisper.decoding import decoding_spec
from edgeqlora_export.whisper.engine_graphs import engine_graphs
from edgeqlora_export.whisper.graphs import export_whisper
from edgeqlora_export.whisper.graphs.modules import model_constants
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.engines.request import OptimizationProfile, optimization_profiles
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.runtimes import trt_builder
from edgeqlora_jetson.runtimes.trt_adapters import make_logger

FIXTURE = Path(__file__).resolve().parents[1] / "jetson" / "fixtures" / "bundle"


def _request(model, windows_s, spec, max_batch=1, **settings):
    """What TensorRT 10.3 would be asked to build of a Whisper."""
    return engine_request(
        engine_graphs(
            model=model_constants(model),
            windows_s=windows_s,
            n_prompt=len(spec["prompt_ids"]),
            max_new_tokens=spec["max_new_tokens"],
            max_batch=max_batch,
        ),
        max_batch=max_batch,
        **{"precisions": ["fp32"], "tensorrt": "10.3", **settings},
    )


@pytest.fixture(scope="module")
def trt():
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (pip install tensorrt-rtx-cu12)")


@pytest.fixture(scope="module")
def exported(tokenizer, tmp_path_factory):
    """A tiny Whisper with two layers at opset 13 and 17, and the manifest's parts that the check reads."""
    model = tiny_whisper()
    spec = decoding_spec(model, tokenizer, tiny_generation_config(), [1.0, 2.0])
    request = _request(model, [1.0, 2.0], spec, max_batch=4, precisions=["fp16", "fp32"], workspace_mib=64)
    out = {}
    for opset in (13, 17):
        folder = tmp_path_factory.mktemp(f"opset{opset}")
        paths = export_whisper(model, folder, opset)
        manifest = {"graphs": {graph: {"file": path.name, "precision": "fp32"} for graph, path in paths.items()}}
        out[opset] = (folder, manifest, request)
    return out


@pytest.mark.parametrize("opset", [13, 17])
def test_both_graphs_compile_with_every_shape_asked_for(trt, exported, opset):
    said = []
    gate = compile_gate(*exported[opset], compute_capability="8.7", say=said.append)
    compiler = f"TensorRT-RTX {trt.__version__} for SM86"
    for line, graph in zip(said, ("decoder", "encoder"), strict=True):
        assert line.startswith(f"{graph}: {compiler} compiles it, optimization profiles: 2, products: ")
        figures = gate["graphs"][graph]
        assert line.endswith(f"{figures['seconds']:.1f} s, {figures['peak_rss_mib']:.0f} MiB")
        assert 0 < figures["seconds"] < 600
        assert figures["peak_rss_mib"] > 100, "the compiler's own memory"
        assert figures["plan_bytes"] > 1000
        assert figures["n_profiles"] == 2
    assert gate["passed"]
    assert gate["detail"].startswith(f"graphs refused by {compiler}, 4 optimization profiles")


def test_the_boards_tiny_bundle_compiles(trt):
    bundle = Bundle.load(FIXTURE)
    request = json.loads((FIXTURE.parent / "engine_request.json").read_text())
    assert compile_gate(bundle.folder, bundle.manifest, request)["passed"]


def test_what_stays_fp32_is_every_layer_norm_and_softmax(trt, exported):
    """Found in the network that NVIDIA's parser makes, by type and neighbours: 6 parts a layer norm, 1 a softmax."""
    folder, _, _ = exported[13]
    counts = {}
    for graph in ("encoder", "decoder"):
        logger = make_logger(trt)
        builder = trt.Builder(logger)
        network, parser = trt_builder.parse_network(trt, builder, str(folder / f"{graph}.onnx"), logger)
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        chosen = trt_builder._sensitive(trt, layers, set())
        counts[graph] = len(chosen)
        assert all("norm" in layer.name.lower() or "softmax" in layer.name.lower() for layer in chosen)
        del parser
    # encoder: 2 norms a layer and one last, 1 softmax a layer; decoder: 3 norms a layer and one last, 2 softmaxes.
    assert counts == {"encoder": 6 * (2 * 2 + 1) + 2, "decoder": 6 * (3 * 2 + 1) + 4}


def test_from_opset_17_on_a_layer_norm_is_one_layer(trt, exported):
    folder, _, _ = exported[17]
    logger = make_logger(trt)
    network, _parser = trt_builder.parse_network(trt, trt.Builder(logger), str(folder / "decoder.onnx"), logger)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    chosen = trt_builder._sensitive(trt, layers, set())
    kinds = [str(layer.type).removeprefix("LayerType.") for layer in chosen]
    assert sorted(set(kinds)) == ["NORMALIZATION", "SOFTMAX"]
    assert (kinds.count("NORMALIZATION"), kinds.count("SOFTMAX")) == (3 * 2 + 1, 4)


def test_the_check_is_a_gate_of_the_bundle(trt, merged, clips, tmp_path):
    export_bundle(
        merged,
        tmp_path / "bundle",
        opset=13,
        windows_s=[1.0],
        profile={"name": "nano", "tensorrt": "8.2"},
        clips=clips,
        compile_check=True,
    )
    gate = Bundle.load(tmp_path / "bundle").manifest["gates"][-1]
    assert (gate["name"], gate["passed"], gate["measured"]) == ("compile", True, 0.0)
    assert "TensorRT-RTX" in gate["detail"]
    assert "nothing was run on hardware" in gate["detail"]


def test_fp16_is_refused_politely_without_precision_flags(trt, exported):
    folder, _, request = exported[13]
    profiles = optimization_profiles(request, "encoder")

    def target(config):
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM86, 0)
        assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 64 << 20
        assert config.num_optimization_profiles == 2

    built = trt_builder.build_plan(trt, str(folder / "encoder.onnx"), profiles, "fp16", 64, configure=target)
    assert built.precision == "fp32"
    assert built.fp32_layers == []
    assert "has no precision flags" in built.notes[0]


def test_a_shape_that_the_graph_cannot_have_is_refused(trt, exported):
    folder, _, request = exported[13]
    profile = optimization_profiles(request, "encoder")[0]
    wrong = OptimizationProfile("wrong", {"mel": dict.fromkeys(("min", "opt", "max"), (1, 81, 100))})
    with pytest.raises(UserError, match=r"cannot build this engine: .*mel|refuses optimization profile 'wrong'"):
        trt_builder.build_plan(trt, str(folder / "encoder.onnx"), [wrong])
    with pytest.raises(UserError, match=r"differs from the graph's inputs in .*tokens"):
        trt_builder.build_plan(trt, str(folder / "decoder.onnx"), [profile])


def test_an_operator_it_does_not_know_is_named(trt, tmp_path):
    x = helper.make_tensor_value_info("mel", TensorProto.FLOAT, ["batch", 4, "n_frames"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node("DynamicQuantizeLinear", ["mel"], ["q", "scale", "zero"])
    cast = helper.make_node("Cast", ["q"], ["y"], to=TensorProto.FLOAT)
    graph = helper.make_graph([node, cast], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    onnx.save(model, tmp_path / "encoder.onnx")
    profile = OptimizationProfile("p", {"mel": dict.fromkeys(("min", "opt", "max"), (1, 4, 8))})
    with pytest.raises(UserError, match=r"encoder.onnx: TensorRT .* cannot read this graph: .*DynamicQuantizeLinear"):
        trt_builder.build_plan(trt, str(tmp_path / "encoder.onnx"), [profile])


def test_without_the_compiler_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(UserError, match=r"python -m pip install 'edgeqlora\[trt-check\]'"):
        import_compiler()


def test_a_graph_that_the_compiler_refuses_is_said_in_its_words(trt, exported, tmp_path):
    """Through the process of its own: an operator that it does not read."""
    folder, _, request = exported[13]
    graph = onnx.load(str(folder / "encoder.onnx"))
    node = next(node for node in graph.graph.node if node.op_type == "Erf")
    node.op_type = "DynamicQuantizeLinear"
    onnx.save(graph, str(tmp_path / "encoder.onnx"))
    alone = {"graphs": {"encoder": {"file": "encoder.onnx", "precision": "fp32"}}}
    with pytest.raises(UserError, match=r"encoder.onnx: TensorRT .* cannot read this graph: .*DynamicQuantizeLinear"):
        compile_gate(tmp_path, alone, request)


def test_a_compiler_that_crashes_takes_nothing_with_it(trt, exported, monkeypatch):
    monkeypatch.setattr(compile_check.sys, "executable", "/bin/false")
    with pytest.raises(
        UserError,
        match=r"decoder.onnx: the compiler of TensorRT-RTX crashed \(exit code 1\): it said nothing\. Export without --compile-check",
    ):
        compile_gate(*exported[13])


def test_what_fp32_graphs_are_compiled_for():
    """Its compiler has no products of fp32 for Turing."""
    assert [target_of(cc, "fp32") for cc in ("5.3", "7.2", "8.7", "11.0")] == ["SM86", "SM86", "SM86", "SM120"]


@pytest.mark.parametrize(
    ("compute_capability", "target"),
    [("5.3", "SM75"), ("7.2", "SM75"), ("8.7", "SM86"), ("8.9", "SM89"), ("11.0", "SM120"), (None, "SM86")],
)
def test_the_nearest_gpu_is_compiled_for(compute_capability, target):
    assert target_of(compute_capability) == target


def test_the_compiler_knows_every_target(trt):
    assert all(hasattr(trt.ComputeCapability, name) for name in TARGETS.values())


@pytest.fixture(scope="module")
def tiny_en(shared, tmp_path_factory):
    """The fp32 graphs of whisper-tiny.en at opset 13 and 17, and the request for 2 and 30 s."""
    model = WhisperForConditionalGeneration.from_pretrained(shared / "models" / "whisper-tiny.en", dtype=torch.float32)
    spec = {"prompt_ids": [50257, 50362], "max_new_tokens": {"2.0": 60, "30.0": 224}}
    paths = {opset: export_whisper(model, tmp_path_factory.mktemp(f"tiny{opset}"), opset) for opset in (13, 17)}
    return paths, _request(model, [2.0, 30.0], spec)


@pytest.mark.real
@pytest.mark.parametrize(
    ("compute_capability", "opset", "precision"),
    [("5.3", 13, "fp16"), ("7.2", 13, "int8"), ("8.7", 17, "fp16"), ("8.7", 17, "int8"), ("11.0", 17, "int8")],
)
def test_whisper_tiny_compiles(trt, tiny_en, tmp_path, compute_capability, opset, precision):
    """For Nano, Xavier, Orin and Thor, with products of the type that the graph has."""
    paths, request = tiny_en[0][opset], tiny_en[1]
    for graph, path in paths.items():
        model = onnx.load(str(path))
        inputs, fp32 = inputs_of(model), set()
        if precision == "int8":
            widths = {x: len(weights) for x, weights in weights_of(model).items()}
            roundings = {x: Rounding(np.ones(n, dtype=np.float32), 0.05) for x, n in widths.items()}
            fp32 = quantise_static(model, set(inputs), roundings, from_fp32=opset == 13)
        to_types(model, fp32, "fp16", request["graphs"][graph]["on_device"])
        onnx.save(model, str(tmp_path / path.name))
    manifest = {"graphs": {graph: {"file": path.name, "precision": precision} for graph, path in paths.items()}}
    gate = compile_gate(tmp_path, manifest, request, compute_capability)
    for figures in gate["graphs"].values():
        assert figures["target"] == target_of(compute_capability)
        assert set(figures["products"]) == ({"fp16"} if precision == "fp16" else {"int8", "fp16"})
