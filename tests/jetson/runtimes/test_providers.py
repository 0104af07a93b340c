"""onnxruntime's providers: what is asked for, what really ran, and what is said when the two differ."""

import os
import sys
import types

import pytest

pytest.importorskip("onnxruntime")

from fakes.onnxruntime import CPU, CUDA, NEW_OPTIONS, OLD_OPTIONS, TENSORRT, make_onnxruntime
from fixtures.engines import ask_for_engines, load_request

from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.commands.setup import run_build
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.files import read_json, write_text
from edgeqlora_jetson.runtimes import open_runtime
from edgeqlora_jetson.runtimes.onnxruntime import OnnxRuntime
from edgeqlora_jetson.runtimes.provider_engines import ProviderBuild, engine_options, tensorrt_options
from edgeqlora_jetson.runtimes.providers import (
    choose_providers,
    explain_idle,
    format_placement,
    heard_stderr,
    parse_placement,
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
def build(tmp_path):
    """Leave to build, with a log; other settings may be given."""
    write_text(tmp_path / "log", "said before\n")
    return ProviderBuild(str(tmp_path / "log"))


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


def test_tensorrt_engines_are_never_built_silently(board, bundle, build, tmp_path):
    module = board([TENSORRT, CUDA])
    with pytest.raises(
        UserError, match=r"would be built now, for minutes. Build it first: .*build .*--runtime onnxrun"
    ):
        OnnxRuntime(bundle, providers=["tensorrt"], cache_dir=str(tmp_path))
    assert module.opened == []
    built = OnnxRuntime(bundle, providers=["tensorrt"], cache_dir=str(tmp_path), build=build)
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


@pytest.mark.parametrize("version", ["1.16.0", "1.23.0"])  # the older one falls back by itself before it is asked again
def test_an_old_release_gets_only_the_options_it_knows(board, bundle, build, tmp_path, capfd, version):
    known = NEW_OPTIONS - {"trt_layer_norm_fp32_fallback", "trt_timing_cache_enable"}
    module = board([TENSORRT], options=known, version=version)
    OnnxRuntime(bundle, providers=["tensorrt"], cache_dir=str(tmp_path), build=build)
    taken = [opened for opened in module.opened if TENSORRT in opened[1]]
    assert [set(options[0]) for _, _, options in taken] == [known, known]
    assert capfd.readouterr().out == ""


def test_a_release_without_shapes_is_refused(board, bundle, build, tmp_path):
    """It would take the other options, and build for minutes inside the measured run for every new length."""
    board([TENSORRT, CUDA], options=OLD_OPTIONS, version="1.14.1")
    refusal = (
        r"onnxruntime 1.14.1 \(< 1.15\) would rebuild its engine for every length; use the tensorrt runtime or cuda"
    )
    with pytest.raises(UserError, match="^" + refusal):
        OnnxRuntime(bundle, providers=["tensorrt"], cache_dir=str(tmp_path), build=build)
    runtime = OnnxRuntime(bundle, providers=["auto"], cache_dir=str(tmp_path), build=build)
    assert (runtime.providers, runtime.precision) == ([CUDA, CPU], "fp32")
    assert "would rebuild its engine for every length" in runtime.notes[0]


def test_a_bundle_without_shapes_is_refused(board, fixture_folder, build, tmp_path):
    board([TENSORRT])
    with pytest.raises(
        UserError, match=r"engine_request is null\): onnxruntime would rebuild its engine for every leng"
    ):
        OnnxRuntime(Bundle.load(fixture_folder), providers=["tensorrt"], cache_dir=str(tmp_path), build=build)


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


def folders_of(*arguments):
    return {options["trt_engine_cache_path"] for options in engine_options(*arguments).values()}


def test_the_folder_of_engines_is_that_of_all_they_depend_on(bundle, build, tmp_path, monkeypatch):
    def folders():
        return folders_of(bundle, "fp16", "1.23.0", str(tmp_path), build)

    seen = [folders()]
    assert folders() == seen[0]
    assert all(os.path.dirname(folder) == str(tmp_path) for folder in seen[0])
    bundle.manifest["engine_request"]["workspace_mib"] = 32
    seen.append(folders())
    for graph in bundle.manifest["engine_request"]["graphs"].values():
        for inputs in (profile["inputs"] for profile in graph["optimization_profiles"]):
            for shapes in inputs.values():
                shapes["max"][0] = 8
    seen.append(folders())
    for graph in ("encoder", "decoder"):
        bundle.manifest["files"][bundle.manifest["graphs"][graph]["file"] + ".data"] = {"sha256": "0" * 64}
    seen.append(folders())
    tensorrt = types.ModuleType("tensorrt")
    tensorrt.__version__, tensorrt.Builder = "10.3.0.30", object
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    seen.append(folders())
    monkeypatch.setattr(tensorrt, "__version__", "10.13.3.9")
    seen.append(folders())
    seen.append(folders_of(bundle, "fp32", "1.23.0", str(tmp_path), build))
    seen.append(folders_of(bundle, "fp32", "1.24.0", str(tmp_path), build))
    assert len(set.union(*seen)) == 2 * len(seen)


def test_force_and_another_workspace_build_again(board, bundle, build, tmp_path):
    module = board([TENSORRT])
    cache_dir = str(tmp_path / "engines")

    def open_it(**settings):
        del module.opened[:]
        order = build._replace(**settings) if settings else None
        OnnxRuntime(bundle, providers=["tensorrt"], cache_dir=cache_dir, build=order)
        options = module.opened[0][2][0]
        kept = os.path.join(options["trt_engine_cache_path"], "kept")
        was_kept = os.path.isfile(kept)
        write_text(kept, "")
        return int(options["trt_max_workspace_size"]) >> 20, was_kept

    assert open_it(force=False) == (64, False)
    assert open_it(force=False) == (64, True)
    assert open_it(workspace_mib=32) == (32, False)
    assert open_it(workspace_mib=32) == (32, True)
    assert open_it() == (32, True)  # a run finds it, whatever its workspace was
    assert open_it(force=False) == (32, True)
    assert open_it(force=True) == (64, False)
    assert len(os.listdir(cache_dir)) == 2


def test_the_reason_of_a_build_is_read_from_its_log(board, bundle, build, tmp_path):
    """stderr is not taken away while engines are built: what it says must outlive the process."""
    saved = os.dup(2)
    log = os.open(build.log, os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 2)
    try:
        board([TENSORRT], placed={"*": CPU}, log="[E:onnxruntime] Failed to load libnvinfer.so.10\n")
        with pytest.raises(UserError, match=r"runs no node: \[E:onnxruntime\] Failed to load libnvinfer.so.10"):
            OnnxRuntime(bundle, providers=["tensorrt"], cache_dir=str(tmp_path), build=build)
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(log)
    with open(build.log) as file:
        assert file.read().startswith("said before\n[E:onnxruntime] Failed")


def test_options_of_the_tensorrt_provider():
    options = tensorrt_options(load_request(), "decoder", "fp32")
    assert options["trt_max_workspace_size"] == str(64 * 2**20)
    assert options["trt_fp16_enable"] == "False"
    # One range over prefill and steps: tokens 1 to 2, past 0 to 11, both windows.
    assert options["trt_profile_min_shapes"] == (
        "cross_k_0:1x2x4x25,cross_v_0:1x2x25x4,past_k_0:1x2x0x4,past_v_0:1x2x0x4,tokens:1x1"
    )
    assert options["trt_profile_max_shapes"] == (
        "cross_k_0:4x2x4x50,cross_v_0:4x2x50x4,past_k_0:4x2x11x4,past_v_0:4x2x11x4,tokens:4x2"
    )


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


def test_build_for_the_provider_in_a_process(bundle, tmp_path, monkeypatch, capsys):
    from edgeqlora_jetson.engine_build.run import build_provider_engines

    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # A package of that name in front of the real one, which it needs itself.
    write_text(
        tmp_path / "front" / "onnxruntime.py",
        "import sys\nfront = sys.path.pop(sys.path.index({front!r}))\ndel sys.modules['onnxruntime']\n"
        "sys.path.insert(0, {here!r})\nfrom fakes import onnxruntime as fake_onnxruntime\n"
        "import os\nsys.modules['onnxruntime'] = fake_onnxruntime.make_onnxruntime(\n"
        "    [fake_onnxruntime.TENSORRT], last_words=os.environ.get('FAKE_LAST_WORDS', ''))\n".format(
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
    with pytest.raises(UserError, match="workspace_mib=0, allowed 1 to 65536"):
        build_provider_engines(bundle, workspace_mib=0)

    # The command gives all its flags on: engines are built again, with the workspace asked for.
    marks = [tmp_path / "engines" / name / "old" for name in os.listdir(str(tmp_path / "engines"))]
    for settings in ({"workspace_mib": 32}, {"workspace_mib": 32, "force": True}):
        for mark in marks:
            write_text(mark, "")
        arguments = dict({"precision": None, "workspace_mib": None}, **settings)
        run_build(
            bundle.folder, cache=str(tmp_path / "engines"), check_memory=False, runtime="onnxruntime", **arguments
        )
        assert "onnxruntime 1.23.0, fp16, built in" in capsys.readouterr().out
        assert not any(mark.exists() for mark in marks)
        assert read_json(marks[0].parent / "built.json", "note")["workspace"] == str(32 << 20)

    monkeypatch.setenv("FAKE_LAST_WORDS", "NvMapMemAllocInternalTagged: 1075072515 error 12\n")
    with pytest.raises(
        UserError, match=r"(?s)onnxruntime: the build died \(signal 6\).*lines:.*NvMapMemAlloc.* error 12"
    ):
        build_provider_engines(bundle, cache_dir=str(tmp_path / "engines"), force=True, check_memory=False)
