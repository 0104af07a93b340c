"""onnxruntime's providers: what is asked for, what really ran, and what is said when the two differ."""

import os
import sys

import pytest

pytest.importorskip("onnxruntime")

from fakes.onnxruntime import CPU, CUDA, OPTIONS, TENSORRT, make_onnxruntime
from fixtures.engines import ask_for_engines

from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.runtimes import open_runtime
from edgeqlora_jetson.runtimes.onnxruntime import OnnxRuntime
from edgeqlora_jetson.runtimes.providers import (
    choose_providers,
    explain_idle,
    format_placement,
    heard_output,
    parse_placement,
    tensorrt_options,
)
from edgeqlora_jetson.transcribe import Transcriber


@pytest.fixture
def board(monkeypatch):
    """Function that puts a stand-in of onnxruntime in place."""

    def put(*arguments, **changes):
        module = make_onnxruntime(*arguments, **changes)
        monkeypatch.setitem(sys.modules, "onnxruntime", module)
        return module

    return put


@pytest.fixture
def bundle(bundle_copy):
    return ask_for_engines(bundle_copy)


def test_which_providers_are_asked_for():
    available = [TENSORRT, CUDA, CPU]
    assert choose_providers(None, available) == [CPU]
    assert choose_providers(["cuda"], available) == [CUDA, CPU]
    assert choose_providers(["TensorRT", CUDA, "cuda"], available) == [TENSORRT, CUDA, CPU]
    assert choose_providers(["auto"], available) == [CUDA, CPU]
    assert choose_providers(["auto"], [CPU]) == [CPU]
    with pytest.raises(UserError, match=r"'cuda' is not in this onnxruntime, allowed: CPUEx.*onnxruntime-gpu wheel"):
        choose_providers(["cuda"], [CPU])


def test_on_cpu_alone_nothing_is_counted(fixture_folder, capfd):
    bundle = Bundle.load(fixture_folder)
    assert open_runtime(bundle, threads=1).node_placement() is None
    assert open_runtime(bundle, threads=1, providers=["auto"]).providers == [CPU]
    assert capfd.readouterr() == ("", "")


def test_cuda_runs_what_it_can(board, bundle, clips, expected, capfd):
    """The profile that is counted is onnxruntime's own, on every release that these tests run on."""
    board([CUDA], placed={"*": CUDA, "Gather": CPU})
    runtime = OnnxRuntime(bundle, providers=["cuda"])
    assert runtime.providers == [CUDA, CPU]
    placement = runtime.node_placement()
    assert sorted(placement) == ["decoder", "encoder"]
    assert 20 <= sum(placement["encoder"].values()) <= 250
    assert 20 <= sum(placement["decoder"].values()) <= 400
    assert placement["decoder"][CUDA] > placement["decoder"][CPU] >= 1
    assert "nodes on cuda" in format_placement(placement)
    assert [t.tokens for t in Transcriber(bundle, runtime).transcribe_batch(clips)] == expected["tokens"]
    assert capfd.readouterr() == ("", "")


def test_a_provider_that_runs_nothing_is_an_error_with_the_reason(board, bundle):
    log = (
        "2026-01-01 [W:onnxruntime:, session_state.cc] some nodes were not assigned\n"
        "2026-01-01 [E:onnxruntime:Default] Failed to load library libonnxruntime_providers_cuda.so with error: "
        "libcudnn.so.9: cannot open shared object file\n"
    )
    board([CUDA], placed={"*": CPU}, log=log)
    with pytest.raises(
        UserError, match=r"CUDAExecutionProvider was asked for and runs no node: .*libcudnn.so.9: cannot"
    ):
        OnnxRuntime(bundle, providers=["cuda"])


def test_auto_passes_over_what_does_not_work(board, bundle, clips, expected):
    board([CUDA], refused=[CUDA])
    runtime = OnnxRuntime(bundle, providers=["auto"])
    assert runtime.providers == [CPU]
    assert "CUDA failure 999" in runtime.notes[0]
    assert runtime.node_placement() is None
    assert [t.tokens for t in Transcriber(bundle, runtime).transcribe_batch(clips)] == expected["tokens"]
    with pytest.raises(UserError, match=r"CUDAExecutionProvider was asked for and runs no node: .*CUDA failure 999"):
        OnnxRuntime(bundle, providers=["cuda"])


def test_tensorrt_is_asked_with_its_options(board, bundle, clips, expected, tmp_path):
    module = board([TENSORRT, CUDA])
    runtime = OnnxRuntime(bundle, providers=["tensorrt", "cuda"], cache_dir=str(tmp_path))
    assert (runtime.precision, runtime.providers) == ("fp16", [TENSORRT, CUDA, CPU])
    assert list(runtime.node_placement()["encoder"]) == [TENSORRT]
    assert [t.tokens for t in Transcriber(bundle, runtime).transcribe_batch(clips)] == expected["tokens"]
    for graph, (path, _, options) in zip(bundle.graphs, module.opened):
        assert path == bundle.graph_path(graph)
        assert options == [tensorrt_options(bundle, graph, "fp16", module.__version__, str(tmp_path)), {}, {}]


def test_a_release_that_does_not_know_an_option_is_an_error(board, bundle, tmp_path):
    board([TENSORRT], options=OPTIONS - {"trt_profile_min_shapes"}, version="1.14.1")
    with pytest.raises(UserError, match=r"runs no node: .*Invalid TensorRT EP option: trt_profile_min_shapes"):
        OnnxRuntime(bundle, providers=["tensorrt"], cache_dir=str(tmp_path))


def test_a_bundle_without_shapes_is_refused(board, fixture_folder, tmp_path):
    board([TENSORRT])
    with pytest.raises(
        UserError, match=r"engine_request is null\): onnxruntime would rebuild its engine for every leng"
    ):
        OnnxRuntime(Bundle.load(fixture_folder), providers=["tensorrt"], cache_dir=str(tmp_path))


def test_a_release_that_falls_back_by_itself_is_heard(board, bundle, capfd):
    """Up to 1.22 onnxruntime does not look at enable_fallback: it prints a banner and goes on with CPU."""
    board([CUDA], refused=[CUDA], version="1.22.0")
    with pytest.raises(UserError, match=r"CUDAExecutionProvider was asked .*EP Error CUDA failure 999: .* when using"):
        OnnxRuntime(bundle, providers=["cuda"])
    runtime = OnnxRuntime(bundle, providers=["auto"])
    assert runtime.providers == [CPU]
    assert "CUDA failure 999" in runtime.notes[0]
    assert "****" not in runtime.notes[0]
    assert capfd.readouterr().out == ""


def test_options_of_the_tensorrt_provider(bundle, tmp_path):
    options = tensorrt_options(bundle, "decoder", "fp32", "1.23.0", str(tmp_path))
    assert options["trt_max_workspace_size"] == str(64 * 2**20)
    assert options["trt_fp16_enable"] == "False"
    # One range over prefill and steps: tokens 1 to 2, past 0 to 11, both windows.
    assert options["trt_profile_min_shapes"] == (
        "cross_k_0:1x2x4x25,cross_v_0:1x2x25x4,past_k_0:1x2x0x4,past_v_0:1x2x0x4,tokens:1x1"
    )
    assert options["trt_profile_max_shapes"] == (
        "cross_k_0:4x2x4x50,cross_v_0:4x2x50x4,past_k_0:4x2x11x4,past_v_0:4x2x11x4,tokens:4x2"
    )
    half = tensorrt_options(bundle, "decoder", "fp16", "1.23.0", str(tmp_path))
    assert half["trt_fp16_enable"] == half["trt_layer_norm_fp32_fallback"] == "True"


def test_the_folder_of_engines_is_that_of_graph_options_and_release(bundle, tmp_path):
    def folder(graph="encoder", precision="fp16", version="1.23.0"):
        path = tensorrt_options(bundle, graph, precision, version, str(tmp_path))["trt_engine_cache_path"]
        assert os.path.isdir(path)
        return path

    seen = [folder(), folder("decoder"), folder(precision="fp32"), folder(version="1.24.0")]
    assert folder() == seen[0]
    bundle.manifest["files"]["encoder.onnx"]["sha256"] = "0" * 64
    seen.append(folder())
    assert len(set(seen)) == len(seen)
    assert {os.path.dirname(path) for path in seen} == {str(tmp_path)}


def test_precision_belongs_to_tensorrt(bundle, board):
    board([CUDA])
    with pytest.raises(UserError, match="precision 'fp16' is for TensorRT only"):
        OnnxRuntime(bundle, providers=["cuda"], precision="fp16")
    board([TENSORRT])
    with pytest.raises(UserError, match="precision 'int8': engines of this bundle can be fp16 or fp32; for another"):
        OnnxRuntime(bundle, providers=["tensorrt"], precision="int8")


def test_a_profile_of_an_old_release():
    """As 1.10 writes it: fences without a provider beside each kernel; a node that ran twice counts once."""
    kernel = {
        "cat": "Node",
        "name": "Conv_kernel_time",
        "args": {"provider": CUDA, "op_name": "Conv", "graph_index": "2"},
    }
    fence = {"cat": "Node", "name": "Conv_fence_before", "args": {"op_name": "Conv"}}
    other = {"cat": "Node", "name": "Add_kernel_time", "args": {"provider": CPU, "op_name": "Add", "graph_index": "3"}}
    session = {"cat": "Session", "name": "model_run", "args": {}}
    assert parse_placement([session, fence, kernel, fence, kernel, other]) == {CPU: 1, CUDA: 1}
    assert format_placement({"encoder": {CPU: 1, TENSORRT: 2}}) == "encoder: 1 nodes on cpu, 2 nodes on tensorrt"


def test_what_is_written_is_heard_and_put_back(capfd):
    with heard_output() as heard:
        os.write(2, b"from C++\n")
        print("from Python")
    os.write(2, b"after\n")
    assert sorted(heard[0].splitlines()) == ["from C++", "from Python"]
    assert capfd.readouterr() == ("", "after\n")
    assert "onnxruntime gave no reason" in explain_idle(CUDA, "")
