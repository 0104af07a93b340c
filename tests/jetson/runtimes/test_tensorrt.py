"""The TensorRT runtime over stand-ins of four releases: the same tokens as a numpy model, and no misuse of the API."""

import inspect
import sys
import types

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from fakes.cuda import FakeCuda, HostMemory, Misuse
from fakes.cudart_library import compile_cudart
from fakes.tensorrt import VERSIONS, make_tensorrt
from fixtures.engines import ask_for_engines, build_all

from edgeqlora_jetson.decoders import KeyValueDecoder
from edgeqlora_jetson.engines.request import optimization_profiles
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.files import write_text
from edgeqlora_jetson.runtimes import open_runtime
from edgeqlora_jetson.runtimes.cudart import Cudart
from edgeqlora_jetson.runtimes.tensorrt import TensorRt, describe_engines
from edgeqlora_jetson.runtimes.trt_adapters import make_logger, numpy_dtype
from edgeqlora_jetson.runtimes.trt_builder import build_plan
from edgeqlora_jetson.runtimes.trt_engine import TrtEngine
from edgeqlora_jetson.transcribe import Transcriber


@pytest.fixture
def bundle(bundle_copy):
    return ask_for_engines(bundle_copy)


@pytest.fixture
def opened(bundle, tmp_path):
    """Function that opens the bundle in a release's stand-in, its engines built before."""

    def open_it(release, integrated=True, precision="fp32", compute_capability="8.7", **changes):
        cuda = FakeCuda(integrated=integrated, compute_capability=compute_capability)
        trt = make_tensorrt(release, cuda)
        cache_dir, root = str(tmp_path / ("engines" + release)), str(tmp_path)
        build_all(bundle, cache_dir, trt, cuda, root, precision)
        cuda.n_allocations = 0
        return TensorRt(bundle, trt=trt, cuda=cuda, cache_dir=cache_dir, root=root, **changes), cuda

    return open_it


@pytest.mark.parametrize("integrated", [True, False], ids=["jetson", "desktop"])
@pytest.mark.parametrize("release", sorted(VERSIONS))
def test_the_same_tokens_as_the_numpy_model(opened, bundle, clips, expected, release, integrated):
    runtime, _ = opened(release, integrated)
    transcriber = Transcriber(bundle, runtime)
    alone = [transcriber.transcribe(clip) for clip in clips]
    together = transcriber.transcribe_batch(clips)
    for transcripts in (alone, together):
        assert [t.tokens for t in transcripts] == expected["tokens"]
        assert [t.text for t in transcripts] == expected["texts"]
    assert runtime.api == ("bindings" if release == "8.2" else "tensors")
    assert (runtime.name, runtime.providers, runtime.threads) == ("tensorrt", ["TensorRT"], 1)
    assert runtime.version == VERSIONS[release]


def test_logits_are_those_of_onnxruntime(opened, bundle):
    runtime, _ = opened("8.2")
    other = open_runtime(bundle, "onnxruntime", threads=1)
    mel = np.random.RandomState(0).normal(0, 1, (3, 16, 100)).astype(np.float32)
    decoders = [KeyValueDecoder(r, bundle.manifest) for r in (runtime, other)]
    states = [d.start(d.encode(mel)) for d in decoders]
    for tokens in ([[36, 37]] * 3, [[1], [2], [3]], [[4], [5], [6]]):
        ours, theirs = (state.step(np.array(tokens, dtype=np.int32)) for state in states)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert states[0].n_past == 4


def test_nothing_is_allocated_while_decoding_and_only_logits_come_back(opened, bundle, clips):
    runtime, cuda = opened("10", integrated=False)
    at_start, copies = cuda.n_allocations, cuda.n_copies
    transcript = Transcriber(bundle, runtime).transcribe(clips[2])
    assert cuda.n_allocations == at_start
    # Mel up; then for each run tokens up and logits down. Keys and values never move.
    assert cuda.n_copies - copies == 1 + 2 * transcript.n_steps
    runtime, cuda = opened("10", integrated=True)
    Transcriber(bundle, runtime).transcribe(clips[2])
    assert runtime.zero_copy
    assert cuda.n_copies == 0


@pytest.mark.parametrize(
    ("integrated", "compute_capability", "memory", "n_pinned"),
    [
        (True, "5.3", "pageable host memory, copied", 0),  # Nano: its processor would read pinned memory uncached
        (True, "6.2", "pageable host memory, copied", 0),  # TX2
        (True, "7.2", "mapped host memory, zero-copy", 3),  # Xavier
        (True, "11.0", "mapped host memory, zero-copy", 3),  # Thor
        (False, "6.1", "pinned host memory, copied", 3),
    ],
)
def test_zero_copy_only_where_the_processor_caches_it(
    opened, bundle, clips, expected, integrated, compute_capability, memory, n_pinned
):
    runtime, cuda = opened("8.5", integrated, compute_capability=compute_capability)
    assert Transcriber(bundle, runtime).transcribe(clips[2]).tokens == expected["tokens"][2]
    assert runtime.notes[-1].startswith("mel, tokens and logits in " + memory)
    assert cuda.n_pinned == n_pinned
    assert (cuda.n_copies == 0) == runtime.zero_copy == ("zero-copy" in memory)


def test_logits_are_ones_own(opened, bundle):
    runtime = KeyValueDecoder(opened("8.5")[0], bundle.manifest)
    state = runtime.start(runtime.encode(np.zeros((1, 16, 50), dtype=np.float32)))
    first = state.step(np.array([[36, 37]], dtype=np.int32))
    kept = first.copy()
    first[:] = -np.inf  # as greedy decoding does with suppressed tokens
    assert np.isfinite(state.step(np.array([[1]], dtype=np.int32))).all()
    assert not np.isfinite(first).any()  # the next step did not write over what was given out
    again = runtime.start(runtime.encode(np.zeros((1, 16, 50), dtype=np.float32)))
    np.testing.assert_array_equal(again.step(np.array([[36, 37]], dtype=np.int32)), kept)


@pytest.mark.parametrize("release", ["8.2", "10"])
def test_the_largest_batch_to_the_last_position(opened, bundle, release):
    """Buffers are made for exactly this: one byte less and the stand-in's memory ends."""
    runtime, _ = opened(release, integrated=False)
    other = open_runtime(bundle, "onnxruntime", threads=1)
    mel = np.random.RandomState(1).normal(0, 1, (4, 16, 100)).astype(np.float32)
    decoders = [KeyValueDecoder(r, bundle.manifest) for r in (runtime, other)]
    states = [d.start(d.encode(mel)) for d in decoders]
    for n in range(11):
        tokens = np.array([[36, 37]] * 4 if n == 0 else [[n]] * 4, dtype=np.int32)
        ours, theirs = (state.step(tokens) for state in states)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert states[0].n_past == 12


def test_encode_waits_for_the_encoder(opened, bundle):
    """Else its time would be counted as the decoder's."""
    runtime, cuda = opened("10")
    encoded = KeyValueDecoder(runtime, bundle.manifest).encode(np.zeros((1, 16, 50), dtype=np.float32))
    assert not cuda.is_pending(runtime._io["encoder", "mel"]._host)
    assert np.isfinite(cuda.resolve(encoded.tensors["cross_k_0"].address, 4 * 8 * 25).view(np.float32)).all()


def test_a_batch_or_window_that_was_not_asked_for(opened, bundle):
    runtime = KeyValueDecoder(opened("8.2")[0], bundle.manifest)
    with pytest.raises(
        UserError, match=r"input mel has shape \(5, 16, 50\), this engine takes window 0.5 s: \(1, 16, 50"
    ):
        runtime.encode(np.zeros((5, 16, 50), dtype=np.float32))
    with pytest.raises(UserError, match=r"\(1, 16, 60\).*Export with a larger batch, window or limit of tokens"):
        runtime.encode(np.zeros((1, 16, 60), dtype=np.float32))


def test_positions_that_were_not_asked_for(opened, bundle):
    runtime = KeyValueDecoder(opened("10")[0], bundle.manifest)
    state = runtime.start(runtime.encode(np.zeros((1, 16, 50), dtype=np.float32)))
    state.step(np.array([[36, 37]], dtype=np.int32))
    for _ in range(10):
        state.step(np.array([[1]], dtype=np.int32))
    with pytest.raises(
        UserError, match=r"input past_k_0 has shape \(1, 2, 12, 4\), this engine takes .*step: .*limit of tokens"
    ):
        state.step(np.array([[1]], dtype=np.int32))


def test_an_engine_that_answers_nan_is_not_believed(opened, bundle, monkeypatch):
    runtime, _ = opened("10", precision="fp16")
    logits = runtime._io["decoder", "logits"]
    monkeypatch.setattr(logits, "download", lambda shape: np.full(shape, np.nan, dtype=np.float32))
    with pytest.raises(UserError, match=r"the fp16 decoder in tensorrt 10.3.0.30 answers NaN .*build --precision fp32"):
        KeyValueDecoder(runtime, bundle.manifest).greedy(np.zeros((1, 16, 50), dtype=np.float32), 5)


def test_fp16_is_said_with_what_stayed_fp32(opened):
    runtime, _ = opened("10", precision="fp16")
    assert runtime.precision == "fp16"
    line = describe_engines(runtime)[0]
    assert line == "decoder: fp16, 7 layers kept in fp32, built 2026-01-01T00:00:00Z in 1 s"
    runtime, _ = opened("11", precision="fp16")
    assert runtime.precision == "fp32"
    assert runtime.notes[0] == "decoder: fp32 without TF32, built 2026-01-01T00:00:00Z in 1 s"


@pytest.mark.parametrize("release", sorted(VERSIONS))
def test_fp32_is_not_tf32(bundle, tmp_path, release):
    """On by default: from Ampere on products of an engine called fp32 would have 10 bits."""
    trt = make_tensorrt(release)
    built = build_all(bundle, str(tmp_path), trt, FakeCuda(), str(tmp_path), "fp32")
    assert "TF32" not in trt.Builder.last[1].flags_set
    assert built["decoder"].tf32 is False
    built = build_all(bundle, str(tmp_path), trt, FakeCuda(), str(tmp_path), "fp16")
    assert built["decoder"].tf32 is (built["decoder"].precision != "fp32")
    del trt.BuilderFlag.TF32
    assert build_all(bundle, str(tmp_path), trt, FakeCuda(), str(tmp_path))["decoder"].tf32 is None


def test_without_engines_the_build_command_is_said(bundle, tmp_path):
    cuda = FakeCuda()
    trt = make_tensorrt("8.2", cuda)
    with pytest.raises(
        UserError,
        match=r"no encoder engine for this bundle in .*: none was built yet. Build it .*: python3 .* build .*",
    ):
        TensorRt(bundle, trt=trt, cuda=cuda, cache_dir=str(tmp_path / "none"), root=str(tmp_path))
    assert not (tmp_path / "none").exists()


def test_an_engine_of_another_tensorrt_is_explained_not_run(bundle, tmp_path, opened):
    opened("8.2")
    cuda = FakeCuda(n_sms=4)
    with pytest.raises(UserError) as caught:
        TensorRt(
            bundle,
            trt=make_tensorrt("8.5", cuda),
            cuda=cuda,
            cache_dir=str(tmp_path / "engines8.2"),
            root=str(tmp_path),
            precision="fp32",
        )
    text = str(caught.value)
    assert "TensorRT 8.2.1.8, here it is 8.5.2.2" in text
    assert "streaming multiprocessors 8, here it is 4" in text
    assert "build" in text
    assert "--precision fp32 --cache " + str(tmp_path / "engines8.2") in text


def test_a_damaged_engine_is_named(bundle, tmp_path, opened):
    opened("8.2")
    path = next((tmp_path / "engines8.2").glob("decoder-*.engine"))
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    cuda = FakeCuda()
    arguments = {"cuda": cuda, "cache_dir": str(path.parent), "root": str(tmp_path)}
    with pytest.raises(UserError, match=r"decoder-fp32.*expected sha256 .*damaged. Build it again with --force"):
        TensorRt(bundle, trt=make_tensorrt("8.2", cuda), **arguments)


def test_a_bundle_without_request_and_providers(fixture_folder, bundle):
    from edgeqlora_jetson.bundle import Bundle

    with pytest.raises(UserError, match=r"asks for no TensorRT engines \(engine_request is null\)"):
        open_runtime(Bundle.load(fixture_folder), "tensorrt")
    with pytest.raises(UserError, match=r"providers=CUDAExecutionProvider belong to the onnxruntime runtime"):
        open_runtime(bundle, "tensorrt", providers=["CUDAExecutionProvider"])


def test_without_tensorrt_the_package_is_named(bundle, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UserError, match=r"sudo apt install python3-libnvinfer"):
        open_runtime(bundle, "tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", types.ModuleType("tensorrt"))  # a file, which has no __path__
    with pytest.raises(UserError, match=r"no Builder: <module 'tensorrt'>.*sudo apt install"):
        open_runtime(bundle, "tensorrt")
    monkeypatch.delitem(sys.modules, "tensorrt")
    write_text(tmp_path / "tensorrt" / "__init__.py", "import ctypes\nctypes.CDLL('libnvinfer.so.none')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"cannot be imported \(libnvinfer.so.none: .*sudo apt install"):
        open_runtime(bundle, "tensorrt")


def test_the_stand_in_of_cuda_has_the_methods_of_the_real_one():
    def methods(cls):
        return {
            name: list(inspect.signature(function).parameters)
            for name, function in vars(cls).items()
            if inspect.isfunction(function) and not name.startswith("_")
        }

    real, fake = methods(Cudart), methods(FakeCuda)
    assert {name: fake.get(name) for name in real} == real


class Spoiled(object):
    """A FakeCuda in which one method does nothing."""

    def __init__(self, cuda, method):
        self._cuda, self._method = cuda, method

    def __getattr__(self, name):
        if name == self._method:
            return lambda *arguments: None
        return getattr(self._cuda, name)


@pytest.mark.parametrize(
    ("method", "integrated", "message"),
    [
        ("synchronize", True, "used while work on it is pending"),
        ("synchronize", False, "used while work on it is pending"),
        ("copy_to_device", False, "input mel was never written"),
    ],
)
def test_the_stand_in_notices_what_is_left_out(bundle, tmp_path, clips, method, integrated, message):
    """The tests above prove something only if misuse is seen: leave a call out, and it must be."""
    cuda = FakeCuda(integrated=integrated)
    trt = make_tensorrt("10", cuda)
    build_all(bundle, str(tmp_path / "e"), trt, cuda, str(tmp_path))
    runtime = TensorRt(
        bundle, trt=trt, cuda=Spoiled(cuda, method), cache_dir=str(tmp_path / "e"), root=str(tmp_path), precision="fp32"
    )
    with pytest.raises(Misuse, match=message):
        Transcriber(bundle, runtime).transcribe(clips[0])


@pytest.mark.parametrize(
    ("release", "left_out", "message"),
    [
        ("8.2", "set_shape", "before the shape of"),
        ("10", "set_shape", "before the shape of"),
        ("8.2", "set_address", "before the address of"),
        ("10", "set_address", "before the address of"),
        ("8.2", "select", "is outside"),
        ("10", "select", "is outside"),
    ],
)
def test_the_stand_in_notices_what_the_adapter_leaves_out(
    opened, monkeypatch, clips, bundle, release, left_out, message
):
    runtime, _ = opened(release)
    for context in runtime._contexts["encoder"] + runtime._contexts["decoder"]:
        monkeypatch.setattr(context._context, left_out, lambda *arguments: None)
    with pytest.raises(Misuse, match=message):
        Transcriber(bundle, runtime).transcribe(clips[2])


def test_what_tensorrt_refuses_is_an_error_with_its_words(opened, bundle, monkeypatch):
    runtime, _ = opened("10")
    context = runtime._contexts["encoder"][0]._context._context
    monkeypatch.setattr(context, "execute_async_v3", lambda stream: False)
    runtime._contexts["encoder"][0]._context._logger.errors.append("3: [executionContext.cpp] out of memory\nmore")
    with pytest.raises(UserError, match=r"TensorRT refused the execution: 3: \[executionContext.cpp\] out of memory"):
        KeyValueDecoder(runtime, bundle.manifest).encode(np.zeros((1, 16, 50), dtype=np.float32))


def test_the_last_errors_are_told_not_the_first(opened, bundle, monkeypatch):
    runtime, _ = opened("10")
    logger = runtime._contexts["encoder"][0]._context._logger
    for n in range(30):
        logger.log(make_tensorrt("10").ILogger.ERROR, "error {}".format(n))
    assert len(logger.errors) == 20
    monkeypatch.setattr(runtime._contexts["encoder"][0]._context._context, "execute_async_v3", lambda stream: False)
    with pytest.raises(UserError, match=r"refused the execution: error 27; error 28; error 29\. If .*build --force"):
        KeyValueDecoder(runtime, bundle.manifest).encode(np.zeros((1, 16, 50), dtype=np.float32))


def test_a_refused_timing_cache_is_not_the_reason(bundle, monkeypatch):
    trt = make_tensorrt("8.5")
    monkeypatch.setattr(trt.Builder, "build_serialized_network", lambda self, network, config: None)
    profiles = optimization_profiles(bundle.manifest["engine_request"], "encoder")
    with pytest.raises(UserError, match="cannot build this engine: TensorRT gave no reason"):
        build_plan(trt, bundle.graph_path("encoder"), profiles, timing_cache=b"8.2.1.8 of another TensorRT")


@pytest.mark.parametrize("release", ["8.2", "10"])
def test_an_optimization_profile_in_use_is_a_message(opened, release):
    runtime, _ = opened(release)
    with pytest.raises(UserError, match=r"TensorRT refused the optimization profile 0: .*is in use by another context"):
        runtime._contexts["decoder"][1]._context.select(0, runtime._stream)


def test_a_type_that_inference_does_not_use():
    trt = make_tensorrt("10")
    assert [numpy_dtype(trt, kind, "x") for kind in (trt.float32, trt.float16, trt.int32)] == ["f4", "f2", "i4"]
    with pytest.raises(
        UserError, match=r"logits: the engine has it in DataType.INT8, allowed: float32, float16, int32"
    ):
        numpy_dtype(trt, trt.DataType.INT8, "logits")


def test_an_engine_that_does_not_fit_leads_to_force(bundle):
    """Plain build would answer "was there already"."""
    trt = make_tensorrt("10", FakeCuda())
    profiles = optimization_profiles(bundle.manifest["engine_request"], "encoder")
    plan = build_plan(trt, bundle.graph_path("encoder"), profiles).plan
    for bad, wanted, reason in (
        (b"x", profiles, "cannot load this engine"),
        (plan, profiles[:1], "the bundle asks for 1"),
    ):
        with pytest.raises(UserError, match=reason + r".*\(build --force\)"):
            TrtEngine(trt, bad, "e.engine", wanted, make_logger(trt), 0)
    context = TrtEngine(trt, plan, "e.engine", profiles, make_logger(trt), 0).open()
    with pytest.raises(UserError, match=r"differs in mel, tokens: build it again \(build --force\)"):
        context.check_names(["tokens"], ["cross_k_0", "cross_v_0"])


def test_over_the_real_cuda_calls(bundle, tmp_path, clips, expected):
    """The runtime, Cudart by ctypes and a C library: no stand-in between them."""
    trt = make_tensorrt("10", HostMemory())
    cuda = Cudart(compile_cudart(tmp_path))
    build_all(bundle, str(tmp_path / "e"), trt, cuda, str(tmp_path))
    runtime = TensorRt(bundle, trt=trt, cuda=cuda, cache_dir=str(tmp_path / "e"), root=str(tmp_path))
    transcriber = Transcriber(bundle, runtime)
    assert [t.tokens for t in transcriber.transcribe_batch(clips)] == expected["tokens"]
