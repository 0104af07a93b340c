"""Graphs with types, as export gives them to a board: on every stand-in of TensorRT, and on every onnxruntime there is."""

import os

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from fakes.cuda import FakeCuda
from fakes.tensorrt import VERSIONS, make_tensorrt
from fixtures.engines import build_all, with_types

from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.commands.transcribe import format_info
from edgeqlora_jetson.decoders import KeyValueDecoder
from edgeqlora_jetson.engine_build.run import build_engines
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.files import read_json, write_json
from edgeqlora_jetson.runtimes import open_runtime
from edgeqlora_jetson.runtimes.tensorrt import TensorRt
from edgeqlora_jetson.transcribe import Transcriber


@pytest.fixture
def bundle(bundle_copy):
    return with_types(bundle_copy)


@pytest.mark.parametrize("release", sorted(VERSIONS))
def test_every_tensorrt_gives_the_same_tokens(bundle, clips, expected, tmp_path, release):
    cuda = FakeCuda()
    trt = make_tensorrt(release, cuda)
    built = build_all(bundle, str(tmp_path), trt, cuda, str(tmp_path), "fp16")
    network, config = trt.Builder.last
    runtime = TensorRt(bundle, trt=trt, cuda=cuda, cache_dir=str(tmp_path), root=str(tmp_path))
    said = [Transcriber(bundle, runtime).transcribe(clip).tokens for clip in clips]
    assert said[:2] == expected["tokens"][:2], "of random weights in the third clip, two choices are near"
    other = Transcriber(bundle, open_runtime(bundle, threads=1))
    assert said == [other.transcribe(clip).tokens for clip in clips]
    assert runtime.precision == built["decoder"].precision == "fp16"
    cross = runtime._device["encoder", "cross_k_0"][0]
    assert cross.dtype == np.float16, "keys and values take half of the memory"
    if release.startswith("8"):
        assert "FP16" in config.flags_set
        assert "norm/Sqrt" in built["decoder"].fp32_layers
    else:
        flag = int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        assert network.flags & (1 << flag)
        assert built["decoder"].fp32_layers == []
        assert built["decoder"].notes == []


def test_an_old_tensorrt_is_told_which_nodes_stay_fp32(bundle, tmp_path):
    """It chooses precisions itself; parts of one node have its name with something after it."""
    trt, cuda = make_tensorrt("8.2", FakeCuda()), FakeCuda()
    names = [layer.name for layer in trt.Builder(None).create_network(1).layers]
    product = next(name for name in names if "MatMul" in name)
    bundle.manifest["graphs"]["decoder"]["fp32_nodes"] = [product]
    built = build_all(bundle, str(tmp_path), trt, cuda, str(tmp_path), "fp16")
    assert product in built["decoder"].fp32_layers
    assert product not in built["encoder"].fp32_layers


def test_int8_sets_both_flags_of_an_old_tensorrt(bundle, tmp_path):
    for entry in bundle.manifest["graphs"].values():
        entry["precision"] = "int8"
    bundle.manifest["engine_request"]["precisions"] = ["int8"]
    trt, cuda = make_tensorrt("8.5", FakeCuda()), FakeCuda()
    built = build_all(bundle, str(tmp_path), trt, cuda, str(tmp_path), "int8")
    assert {"FP16", "INT8"} <= set(trt.Builder.last[1].flags_set)
    assert built["encoder"].precision == "int8"


@pytest.mark.parametrize("release", sorted(VERSIONS))
def test_bf16_needs_a_tensorrt_that_keeps_types(bundle, tmp_path, release):
    """The graphs are those of fp16: what is tested is the way they are built."""
    for entry in bundle.manifest["graphs"].values():
        entry["precision"] = "bf16"
    bundle.manifest["engine_request"]["precisions"] = ["bf16"]
    trt, cuda = make_tensorrt(release, FakeCuda()), FakeCuda()
    if release.startswith("8"):
        with pytest.raises(
            UserError, match=r"TensorRT 8.* does not keep the types of a graph, which bf16 needs .*--precision fp16"
        ):
            build_all(bundle, str(tmp_path), trt, cuda, str(tmp_path), "bf16")
        return
    assert build_all(bundle, str(tmp_path), trt, cuda, str(tmp_path), "bf16")["encoder"].precision == "bf16"
    with pytest.raises(UserError, match="onnxruntime runs no bf16 graphs here: build this bundle's engines"):
        open_runtime(bundle, threads=1)


def test_int8_for_a_board_is_no_work_for_cuda(bundle, monkeypatch):
    for entry in bundle.manifest["graphs"].values():
        entry["precision"] = "int8"
    monkeypatch.setattr(
        "onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    with pytest.raises(
        UserError, match=r"has no products of integers, .*allowed: tensorrt, cpu. Or export again with --precision fp16"
    ):
        open_runtime(bundle, providers=["cuda"])
    assert open_runtime(bundle, providers=["auto"], threads=1).providers == ["CPUExecutionProvider"]


def test_onnxruntime_computes_nearly_the_same_and_says_that_it_converts(bundle, fixture_folder, clips, expected):
    plain = Bundle.load(fixture_folder)
    runtime = open_runtime(bundle, threads=1)
    transcriber = Transcriber(bundle, runtime)
    assert [one.tokens for one in transcriber.transcribe_batch(clips)][:2] == expected["tokens"][:2]
    states, mel = [], np.random.RandomState(0).normal(0, 1, (3, 16, 100)).astype(np.float32)
    for one, runs in ((bundle, runtime), (plain, open_runtime(plain, threads=1))):
        decoder = KeyValueDecoder(runs, one.manifest)
        states.append(decoder.start(decoder.encode(mel)))
    for tokens in ([[36, 37]] * 3, [[1], [2], [3]], [[4], [5], [6]]):
        ours, theirs = (state.step(np.array(tokens, dtype=np.int32)) for state in states)
        assert ours.dtype == np.float32
        assert 0 < np.abs(ours - theirs).max() < 0.05 * np.abs(theirs).max(), "large random weights"
    assert runtime.precision == "fp16"
    assert runtime.notes[0].startswith("onnxruntime's CPU provider has no fp16: it computes in fp32 and converts")
    decoder = transcriber._decoder
    mel = np.zeros((2, 16, 50), dtype=np.float32)
    assert {value.dtype for value in decoder.read_cross(mel).values()} == {np.dtype(np.float32)}


def test_another_precision_needs_another_export(bundle, tmp_path):
    with pytest.raises(
        UserError,
        match=r"precision .fp32.: engines of this bundle can be fp16; for another one export it again with --precision",
    ):
        build_engines(bundle, cache_dir=str(tmp_path), precision="fp32")
    assert os.listdir(str(tmp_path)) == ["bundle"]


def test_info_says_the_mix(bundle):
    said = "Precision   2 fp16; error rate +0.00 points over fp32 on 3 clips of the export, computed with the same roundings there"
    assert said in format_info(bundle)


def test_a_mix_comes_with_its_row(bundle_copy):
    with_types(bundle_copy)
    path = os.path.join(bundle_copy, "manifest.json")
    manifest = read_json(path, "manifest")
    manifest["precision"]["tried"][0]["fp16"] = ["encoder/x"]
    write_json(path, manifest)
    with pytest.raises(
        UserError, match="precision needs fp32, n_clips, and a row of tried with the same int8, fp16 and bf16"
    ):
        Bundle.load(bundle_copy)
