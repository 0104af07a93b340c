"""onnxruntime's providers: what is asked for, what really ran, and what is said when the two differ."""

import os
import sys

import pytest

pytest.importorskip("onnxruntime")

from engine_fixture import ask_for_engines, load_request
from fake_onnxruntime import CPU, CUDA, OLD_OPTIONS, TENSORRT, make_onnxruntime

from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.runtimes import open_runtime
from edgeqlora_jetson.runtimes.onnxruntime import OnnxRuntime
from edgeqlora_jetson.runtimes.providers import (
    choose_providers,
    explain_idle,
    format_placement,
    heard_stderr,
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
    assert choose_providers(["auto"], available) == [TENSORRT, CUDA, CPU]
    assert choose_providers(["auto"], [CPU]) == [CPU]
    with pytest.raises(UserError, match=r"'cuda' is not in this onnxruntime, allowed: CPUEx.*onnxruntime-gpu wheel"):
        choose_providers(["cuda"], [CPU])


def test_the_real_placement_on_cpu(fixture_folder, clips, expected, capfd):
    """Not a stand-in: onnxruntime's own profile of its own run, on every release that these tests run on."""
    bundle = Bundle.load(fixture_folder)
    runtime = open_runtime(bundle, threads=1, place_nodes=True)
    placement = runtime.node_placement()
    assert sorted(placement) == ["decoder", "encoder"]
    assert [list(nodes) for nodes in placement.values()] == [[CPU], [CPU]]
    assert 20 <= placement["encoder"][CPU] <= 250
    assert 20 <= placement["decoder"][CPU] <= 400
    assert [t.tokens for t in Transcriber(bundle, runtime).transcribe_batch(clips)] == expected["tokens"]
    assert capfd.readouterr() == ("", "")
    assert open_runtime(bundle, threads=1).node_placement() is None
    assert open_runtime(bundle, threads=1, providers=["auto"]).providers == [CPU]


def test_cuda_runs_what_it_can(board, bundle, clips, expected):
    board([CUDA], placed={"*": CUDA, "Gather": CPU})
    runtime = OnnxRuntime(bundle, providers=["cuda"])
    assert runtime.providers == [CUDA, CPU]
    placement = runtime.node_placement()
    assert placement["decoder"][CUDA] > placement["decoder"][CPU] >= 1
    assert "nodes on cuda" in format_placement(placement)
    assert [t.tokens for t in Transcriber(bundle, runtime).transcribe_batch(clips)] == expected["tokens"]


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


def test_tensorrt_engines_are_never_built_silently(board, bundle, tmp_path):
    module = board([TENSORRT, CUDA])
    with pytest.raises(
        UserError, match=r"would be built now, for minutes. Build it first: .*build .*--runtime onnxrun"
    ):
        OnnxRuntime(bundle, providers=["tensorrt"], cache_dir=str(tmp_path))
    assert module.opened == []
    built = OnnxRuntime(bundle, providers=["tensorrt"], cache_dir=str(tmp_path), allow_build=True)
    assert (built.precision, built.providers) == ("fp16", [TENSORRT, CPU])
    again = OnnxRuntime(bundle, providers=["tensorrt", "cuda"], cache_dir=str(tmp_path))
    assert list(again.node_placement()["encoder"]) == [TENSORRT]
    with pytest.raises(UserError, match="would be built now"):
        OnnxRuntime(bundle, providers=["tensorrt"], cache_dir=str(tmp_path), precision="fp32")
    options = module.opened[0][2][0]
    assert options["trt_fp16_enable"] == options["trt_layer_norm_fp32_fallback"] == "True"
    assert os.path.isdir(options["trt_engine_cache_path"])
    assert module.opened[0][2][1] == {}


def test_auto_without_engines_goes_on_with_cuda(board, bundle, tmp_path):
    board([TENSORRT, CUDA])
    runtime = OnnxRuntime(bundle, providers=["auto"], cache_dir=str(tmp_path))
    assert (runtime.providers, runtime.precision) == ([CUDA, CPU], "fp32")
    assert "would be built now" in runtime.notes[0]


def test_an_old_release_gets_only_the_options_it_knows(board, bundle, tmp_path):
    module = board([TENSORRT], options=OLD_OPTIONS)
    OnnxRuntime(bundle, providers=["tensorrt"], cache_dir=str(tmp_path), allow_build=True)
    assert set(module.opened[0][2][0]) == OLD_OPTIONS
    assert module.opened[0][1] == [TENSORRT, CPU]


def test_options_of_the_tensorrt_provider():
    options = tensorrt_options(load_request(), "decoder", "fp32", "/engines")
    assert options["trt_max_workspace_size"] == str(64 * 2**20)
    assert (options["trt_fp16_enable"], options["trt_engine_cache_path"]) == ("False", "/engines")
    # One range over prefill and steps: tokens 1 to 2, past 0 to 11, both windows.
    assert options["trt_profile_min_shapes"] == (
        "cross_k_0:1x2x4x25,cross_v_0:1x2x25x4,past_k_0:1x2x0x4,past_v_0:1x2x0x4,tokens:1x1"
    )
    assert options["trt_profile_max_shapes"] == (
        "cross_k_0:4x2x4x50,cross_v_0:4x2x50x4,past_k_0:4x2x11x4,past_v_0:4x2x11x4,tokens:4x2"
    )
    assert "trt_profile_min_shapes" not in tensorrt_options(None, "decoder", "fp32", "/engines")


def test_precision_belongs_to_tensorrt(bundle, board):
    board([CUDA])
    with pytest.raises(UserError, match="precision 'fp16' is TensorRT's to give"):
        OnnxRuntime(bundle, providers=["cuda"], precision="fp16")
    board([TENSORRT])
    with pytest.raises(UserError, match="precision 'int8' is not known, allowed: fp32, fp16"):
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
    assert format_placement(None) == "not looked at"


def test_what_is_written_to_stderr_is_heard_and_put_back(capfd):
    with heard_stderr() as heard:
        os.write(2, b"from C++\n")
    os.write(2, b"after\n")
    assert heard == ["from C++\n"]
    assert capfd.readouterr().err == "after\n"
    assert "onnxruntime gave no reason" in explain_idle(CUDA, "")


def test_build_for_the_provider_in_a_process(bundle, tmp_path, monkeypatch):
    from edgeqlora_jetson.build import build_provider_engines
    from edgeqlora_jetson.files import write_text

    here = os.path.dirname(os.path.abspath(__file__))
    # A package of that name in front of the real one, which it needs itself.
    write_text(
        tmp_path / "front" / "onnxruntime.py",
        "import sys\nfront = sys.path.pop(sys.path.index({front!r}))\ndel sys.modules['onnxruntime']\n"
        "sys.path.insert(0, {here!r})\nimport fake_onnxruntime\n"
        "sys.modules['onnxruntime'] = fake_onnxruntime.make_onnxruntime([fake_onnxruntime.TENSORRT])\n".format(
            front=str(tmp_path / "front"), here=here
        ),
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "front"))
    result = build_provider_engines(bundle, cache_dir=str(tmp_path / "engines"), check_memory=False)
    assert (result["onnxruntime"], result["precision"]) == ("1.23.0", "fp16")
    assert "nodes on tensorrt" in result["placement_text"]
    assert len(os.listdir(str(tmp_path / "engines"))) == 2
    with pytest.raises(UserError, match="precision 'bf16' is not known"):
        build_provider_engines(bundle, precision="bf16")
