"""Building engines in processes of their own: what they leave, and what is said when they are killed.

The worker processes import a stand-in of TensorRT and load a C library as libcudart; everything between is real.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("onnxruntime")

from fakes.cudart_library import HERE, compile_cudart
from fakes.tensorrt import make_tensorrt
from fixtures.engines import ask_for_engines, load_request

from edgeqlora_jetson.engine_build.run import (
    FreeMemory,
    build_engines,
    estimate_build_mib,
    explain_death,
    format_engines,
    read_free_memory,
    verify_memory,
)
from edgeqlora_jetson.engine_build.worker import worker_command
from edgeqlora_jetson.engines.cache import default_cache_dir, explain_missing, read_engine, read_power_mode
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.files import read_json, write_json, write_text
from edgeqlora_jetson.pyz import build_pyz
from edgeqlora_jetson.runtimes.cudart import Cudart
from edgeqlora_jetson.runtimes.tensorrt import TensorRt
from edgeqlora_jetson.runtimes.trt_builder import build_plan
from edgeqlora_jetson.transcribe import Transcriber

STAND_IN = """
import os, signal, sys, time
sys.path.insert(0, {tests!r})
from fakes import tensorrt as fake_tensorrt
from fakes.cuda import HostMemory
module = fake_tensorrt.make_tensorrt(os.environ.get("FAKE_TRT", "8.5"), HostMemory())
build = module.Builder.build_serialized_network
def build_or_die(self, network, config):
    death = os.environ.get("FAKE_TRT_DEATH")
    if death == "oom":
        os.kill(os.getpid(), signal.SIGKILL)
    if death == "alloc":
        sys.stderr.write("terminate called after throwing an instance of 'std::bad_alloc'\\n")
        sys.stderr.flush()
        os.abort()
    if death in ("gpu", "nvmap"):
        text = "1: [defaultAllocator.cpp::allocate] Error Code 1: Cuda Runtime (out of memory)"
        if death == "nvmap":
            sys.stderr.write("NvMapMemAllocInternalTagged: 1075072515 error 12\\n")
            text = "10: could not find any implementation for node MatMul"
        self._logger.log(module.ILogger.ERROR, text)
        return None
    if death == "sleep":
        with open(os.environ["FAKE_TRT_PID"], "w") as file:
            file.write(str(os.getpid()))
        time.sleep(600)
    return build(self, network, config)
module.Builder.build_serialized_network = build_or_die
sys.modules[__name__] = module
"""


@pytest.fixture(scope="module")
def library_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("libraries")
    compile_cudart(folder)
    write_text(folder / "tensorrt.py", STAND_IN.format(tests=os.path.dirname(HERE)))
    return folder


@pytest.fixture
def machine(library_folder, tmp_path, monkeypatch):
    """A machine with TensorRT 8.5 and a GPU, as worker processes see it; gives its root and cache folder."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library_folder))
    monkeypatch.setenv("PYTHONPATH", str(library_folder))
    root = tmp_path / "root"
    (root / "proc").mkdir(parents=True)
    write_text(root / "proc" / "meminfo", "MemAvailable: 3000000 kB\nSwapFree: 2000000 kB\n")
    return {"root": str(root), "cache_dir": str(tmp_path / "engines")}


@pytest.fixture
def bundle(bundle_copy):
    return ask_for_engines(bundle_copy)


def test_build_then_run(bundle, machine, library_folder, clips, expected, monkeypatch):
    seen = []
    monkeypatch.setattr("edgeqlora_jetson.engine_build.run._POLL_S", 0.05)
    records = build_engines(bundle, precision="fp32", progress=lambda what, s: seen.append((what, s)), **machine)
    assert [record["key"]["graph"] for record in records] == ["encoder", "decoder"]
    assert all(record["is_new"] for record in records)
    assert {what for what, _ in seen} >= {"looking for TensorRT and the GPU", "encoder: building in fp32"}
    assert all(seconds >= 0 for _, seconds in seen)
    key = records[0]["key"]
    assert (key["tensorrt"], key["gpu"], key["compute_capability"], key["n_sms"]) == ("8.5.2.2", "Fake Orin", "8.7", 8)

    from fakes.cuda import HostMemory

    trt = make_tensorrt("8.5", HostMemory())
    cuda = Cudart(str(library_folder / "libcudart.so"))
    runtime = TensorRt(
        bundle, trt=trt, cuda=cuda, precision="fp32", cache_dir=machine["cache_dir"], root=machine["root"]
    )
    assert [t.tokens for t in Transcriber(bundle, runtime).transcribe_batch(clips)] == expected["tokens"]

    again = build_engines(bundle, precision="fp32", **machine)
    assert [record["is_new"] for record in again] == [False, False]
    assert "was there already" in format_engines(again)
    forced = build_engines(bundle, precision="fp32", force=True, **machine)
    assert [record["is_new"] for record in forced] == [True, True]
    caches = [name for name in os.listdir(machine["cache_dir"]) if name.startswith("timing-")]
    assert len(caches) == 1
    # The decoder began with what the encoder measured, and the second build with all of that.
    with open(os.path.join(machine["cache_dir"], caches[0]), "rb") as file:
        assert file.read() == b"8.5.2.2" + b"+measured" * 4


def test_the_first_preference_is_fp16_and_a_smaller_workspace_builds_again(bundle, machine):
    records = build_engines(bundle, **machine)
    assert [record["precision"] for record in records] == ["fp16", "fp16"]
    assert records[0]["workspace_mib"] == 64
    assert records[0]["tf32"] is True
    assert records[0]["fp32_layers"] == [
        "norm/ReduceMean", "norm/Pow", "norm/ReduceMean_1", "norm/Add", "norm/Sqrt", "norm/Div", "Softmax",
    ]  # fmt: skip
    text = format_engines(records)
    assert "encoder  fp16" in text
    assert "7 layers kept in fp32" in text
    assert [record["is_new"] for record in build_engines(bundle, workspace_mib=32, **machine)] == [True, True]
    # The engine is found whatever its workspace was.
    assert [record["workspace_mib"] for record in build_engines(bundle, **machine)] == [32, 32]


def test_tensorrt_11_says_that_the_graph_decides(bundle, machine, monkeypatch):
    monkeypatch.setenv("FAKE_TRT", "11")
    records = build_engines(bundle, **machine)
    assert [record["precision"] for record in records] == ["fp32", "fp32"]
    assert "note: TensorRT 11.4.1.5 has no precision flags: the engine has the graph's own precision, fp32" in (
        format_engines(records)
    )


def test_killed_for_memory(bundle, machine, monkeypatch):
    monkeypatch.setenv("FAKE_TRT_DEATH", "oom")
    with pytest.raises(UserError) as caught:
        build_engines(bundle, **machine)
    text = str(caught.value)
    assert "encoder: the build was killed (exit code 137): the system ran out of memory" in text
    assert "2930 MiB of memory and 1953 MiB of swap were free, the workspace cap was 64 MiB" in text
    for advice in ("swapon", "multi-user.target", "--workspace-mib 32", "smaller batch"):
        assert advice in text
    assert not os.path.exists(machine["cache_dir"])  # nothing half-made is left


def test_the_host_side_ran_out_of_memory(bundle, machine, monkeypatch):
    monkeypatch.setenv("FAKE_TRT_DEATH", "alloc")
    with pytest.raises(UserError, match=r"(?s)died \(signal 6\).*say that memory ran out.*std::bad_alloc"):
        build_engines(bundle, **machine)


@pytest.mark.parametrize(
    ("how", "reason"), [("gpu", r"Cuda Runtime \(out of memory\)"), ("nvmap", "could not find any implementation")]
)
def test_the_gpu_ran_out_of_memory(bundle, machine, monkeypatch, how, reason):
    monkeypatch.setenv("FAKE_TRT_DEATH", how)
    with pytest.raises(UserError, match=reason + r".*Memory ran out. Do one of these: .*--workspace-mib 32\)"):
        build_engines(bundle, **machine)


def test_ctrl_c_ends_the_worker(bundle, machine, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_TRT_DEATH", "sleep")
    monkeypatch.setenv("FAKE_TRT_PID", str(tmp_path / "pid"))
    monkeypatch.setattr("edgeqlora_jetson.engine_build.run._POLL_S", 0.05)

    def interrupt(what, seconds):
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            raise KeyboardInterrupt

    start_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        build_engines(bundle, progress=interrupt, **machine)
    assert time.monotonic() - start_s < 300.0  # the worker sleeps for 600
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_graph_that_tensorrt_cannot_read(bundle, machine):
    with open(bundle.graph_path("decoder"), "wb") as file:
        file.write(b"no graph")
    with pytest.raises(
        UserError, match=r"decoder.onnx: TensorRT 8.5.2.2 cannot read this graph: node 3: Failed to parse"
    ):
        build_engines(bundle, **machine)


def test_a_request_for_other_inputs(bundle, tmp_path):
    from edgeqlora_jetson.engines.request import optimization_profiles

    profiles = optimization_profiles(load_request(), "decoder")
    with pytest.raises(UserError, match=r"'prefill' differs from the graph's inputs in .*mel"):
        build_plan(make_tensorrt("10"), bundle.graph_path("encoder"), profiles)


def test_no_tensorrt_and_no_gpu(bundle, machine, library_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_CUDA_GPUS", "0")
    with pytest.raises(UserError, match="no CUDA GPU 0 here"):
        build_engines(bundle, **machine)
    empty = tmp_path / "empty"
    empty.mkdir()
    write_text(empty / "tensorrt.py", "raise ImportError('libnvinfer.so.8: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(empty))
    with pytest.raises(UserError, match=r"libnvinfer.so.8: cannot open .*sudo apt install python3-libnvinfer"):
        build_engines(bundle, **machine)


def test_bad_settings(bundle, fixture_folder, machine):
    from edgeqlora_jetson.bundle import Bundle

    with pytest.raises(UserError, match="precision 'int8': engines of this bundle can be fp16 or fp32; for another"):
        build_engines(bundle, precision="int8", **machine)
    with pytest.raises(UserError, match="workspace_mib=0, allowed 1 to 65536"):
        build_engines(bundle, workspace_mib=0, **machine)
    with pytest.raises(UserError, match="asks for no TensorRT engines"):
        build_engines(Bundle.load(fixture_folder), **machine)


def test_memory_is_looked_at_before(bundle, machine):
    needed_mib = estimate_build_mib(bundle, "decoder", 64)
    assert needed_mib == pytest.approx(600 + 64 + 4 * os.path.getsize(bundle.graph_path("decoder")) / 2.0**20)
    verify_memory("decoder", needed_mib, FreeMemory(400.0, 300.0), 64)
    verify_memory("decoder", needed_mib, FreeMemory(None, None), 64)
    with pytest.raises(
        UserError, match=r"may take 664 MiB \(estimate\), free are 300 MiB of memory and 200 MiB of swap"
    ):
        verify_memory("decoder", needed_mib, FreeMemory(300.0, 200.0), 64)
    for workspace, smaller in ((None, 128), (64, 32), (20, 16)):
        with pytest.raises(UserError, match=r"a smaller workspace \(--workspace-mib {}\)".format(smaller)):
            verify_memory("decoder", needed_mib, FreeMemory(300.0, 200.0), workspace)
    with pytest.raises(UserError) as caught:
        verify_memory("decoder", needed_mib, FreeMemory(300.0, 200.0), 16)
    assert "workspace" not in str(caught.value)  # 16 MiB is the least: there is no smaller one to ask for
    write_text(os.path.join(machine["root"], "proc/meminfo"), "MemAvailable: 102400 kB\nSwapFree: 0 kB\n")
    assert read_free_memory(machine["root"]) == FreeMemory(100.0, 0.0)
    with pytest.raises(UserError, match="--no-memory-check"):
        build_engines(bundle, **machine)
    assert build_engines(bundle, check_memory=False, **machine)[0]["is_new"]


def test_other_deaths():
    memory = FreeMemory(None, None)
    assert "exit code 137" in explain_death("encoder", memory, None, 128 + signal.SIGKILL)
    assert "an unknown amount of memory" in explain_death("encoder", memory, None, -signal.SIGKILL)
    assert "TensorRT's own" in explain_death("encoder", memory, None, -signal.SIGKILL)
    assert "died (signal 11)" in explain_death("encoder", memory, None, -signal.SIGSEGV)
    assert "died (exit code 1)" in explain_death("encoder", memory, None, 1)


def test_the_worker_runs_from_the_pyz(bundle, machine, tmp_path):
    """On a board there is the .pyz and nothing else: the worker starts from inside it, in any folder."""
    pyz = tmp_path / "edgeqlora-jetson.pyz"
    build_pyz(pyz)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from edgeqlora_jetson.bundle import Bundle; "
        "from edgeqlora_jetson.engine_build.run import build_engines; from edgeqlora_jetson.pyz import find_pyz; "
        "print(find_pyz()); "
        "print([r['is_new'] for r in build_engines(Bundle.load(sys.argv[2]), cache_dir=sys.argv[3], root=sys.argv[4])])"
    )
    arguments = [sys.executable, "-c", script, str(pyz), bundle.folder, machine["cache_dir"], machine["root"]]
    output = subprocess.check_output(arguments, cwd=str(tmp_path)).decode()
    assert output.split() == [str(pyz), "[True,", "True]"]


def test_a_tensorrt_py_in_the_current_folder_is_not_taken(machine, tmp_path):
    write_text(tmp_path / "tensorrt.py", "raise SystemExit('the wrong one')")
    job = {"do": "probe", "result": str(tmp_path / "result.json")}
    write_json(tmp_path / "job.json", job)
    assert subprocess.call(worker_command(str(tmp_path / "job.json")), cwd=str(tmp_path)) == 0
    assert read_json(tmp_path / "result.json", "result")["tensorrt"] == "8.5.2.2"


def test_explanations_name_the_nearest():
    here = {
        "graph": "encoder",
        "tensorrt": "8.5",
        "gpu": "a",
        "n_sms": 8,
        "power_mode": "25W",
        "onnx_sha256": {"e": "1"},
    }
    here.update(compute_capability="8.7", optimization_profiles=[], precision="fp16")
    far = dict(here, tensorrt="8.2", gpu="b", n_sms=4)
    near = dict(here, power_mode="15W", onnx_sha256={"e": "2"})
    other = dict(here, graph="decoder")
    records = [{"key": key} for key in (near, far, other)]
    text = explain_missing(here, records)
    assert text == "the nearest of 2 was built for power mode 15W, here it is 25W; another graph"
    assert explain_missing(dict(here, power_mode=None), records[:1]).endswith("15W, here it is unknown; another graph")
    assert explain_missing(here, [{"key": other}]) == "none was built yet"


def test_a_broken_record_is_as_good_as_none(bundle, machine):
    records = build_engines(bundle, **machine)
    assert len(read_engine(records[0])) == records[0]["bytes"]
    write_text(records[0]["path"] + ".json", "{")
    write_text(records[1]["path"] + ".json", '{"schema": "edgeqlora.engine/1", "key": {}, "sha256": "x"}')
    assert [record["is_new"] for record in build_engines(bundle, **machine)] == [True, True]


def test_where_engines_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache_dir() == "/somewhere/edgeqlora/engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_cache_dir() == "/home/me/.cache/edgeqlora/engines"
    assert read_power_mode(str(tmp_path)) is None


def test_an_unwritable_place_is_said_before_the_build(bundle, machine, tmp_path, monkeypatch):
    write_text(tmp_path / "file", "")
    monkeypatch.setattr("edgeqlora_jetson.engine_build.run._wait", lambda *args: pytest.fail("a worker was started"))
    with pytest.raises(UserError, match="is a file, not a folder"):
        build_engines(bundle, cache_dir=str(tmp_path / "file" / "engines"), root=machine["root"])
