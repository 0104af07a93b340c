"""Graphs made for a CPU: buffers that the runner keeps, int8, and the best few tokens. Run on every onnxruntime there is."""

import json
import os
import shutil

import numpy as np
import pytest

from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.bundle.manifest import check_manifest
from edgeqlora_jetson.decoders import open_decoder
from edgeqlora_jetson.decoders.buffered import BLOCK
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.runtimes import open_runtime
from edgeqlora_jetson.transcribe import Transcriber

FIXTURES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures")


@pytest.fixture(scope="module")
def bundle():
    return Bundle.load(os.path.join(FIXTURES, "bundle-int8"))


@pytest.fixture(scope="module")
def runtime(bundle):
    pytest.importorskip("onnxruntime")
    return open_runtime(bundle, threads=1)


@pytest.fixture(scope="module")
def sounds():
    """The clips of make_int8_bundle.py."""
    draws = [np.random.RandomState(i).normal(0, 0.1 + 0.1 * i, 12000) for i in range(3)]
    return [np.clip(draw, -1, 1).astype(np.float32) for draw in draws]


def expected():
    with open(os.path.join(FIXTURES, "expected-int8.json")) as file:
        return json.load(file)["tokens"]


def test_tokens_equal_those_of_fp32_in_torch(bundle, runtime, sounds):
    found = [Transcriber(bundle, runtime).transcribe(clip).tokens for clip in sounds]
    assert found == expected()
    assert max(map(len, found)) > BLOCK, "the buffers grew"


@pytest.mark.parametrize("streams", [1, 2, 3])
def test_one_after_the_other_in_a_stream_since_they_would_share_a_scale(bundle, runtime, sounds, streams):
    transcriber = Transcriber(bundle, runtime, streams)
    for _ in range(5):
        together = transcriber.transcribe_batch(sounds * 4)
        assert [one.tokens for one in together] == expected() * 4
    assert len({one.total_ms for one in together}) == 1, "all carry the time of the batch"
    assert sum(together[0].phases_ms.values()) == pytest.approx(together[0].total_ms, rel=0.2)


def test_steps_equal_running_from_scratch_across_the_growth_of_buffers(bundle, runtime, sounds):
    decoder = open_decoder(bundle, runtime)
    features = Transcriber(bundle, runtime)._features(sounds[:1], 1.0)
    encoded = decoder.encode(features)
    tokens = np.random.RandomState(0).randint(0, 4000, size=(1, BLOCK + 4)).astype(np.int32)
    state = decoder.start(encoded)
    for n in range(1, BLOCK + 5):
        logits, ids = state.step(tokens[:, n - 1 : n]), state.candidates.copy()
        assert state.n_past == n
        if n in (1, 2, 7, BLOCK, BLOCK + 4):
            # Rounded to 8 bits in one batch of tokens or alone: near, not equal.
            whole = decoder.start(encoded)
            at_once, same = whole.step(tokens[:, :n]), whole.candidates
            mine, theirs = dict(zip(ids[0], logits[0])), dict(zip(same[0], at_once[0]))
            shared = sorted(set(mine) & set(theirs))
            assert len(shared) > 0.6 * len(mine)
            far = max(abs(mine[i] - theirs[i]) for i in shared)
            assert far < 0.1 * max(abs(value) for value in mine.values())


def test_a_hidden_token_is_never_chosen(bundle, runtime, sounds, tmp_path):
    first = expected()[0][0]
    spec = dict(bundle.manifest["decoder"], suppress_ids=[first])
    other = Bundle(bundle.folder, dict(bundle.manifest, decoder=spec))
    assert first not in Transcriber(other, runtime).transcribe(sounds[0]).tokens


@pytest.mark.parametrize("asked", [["cuda"], ["tensorrt", "cpu"]])
def test_a_gpu_is_refused_with_the_reason_and_auto_takes_the_cpu(bundle, monkeypatch, asked):
    onnxruntime = pytest.importorskip("onnxruntime")
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    with pytest.raises(UserError, match="the graphs of this bundle are made for a CPU \\(int8\\), allowed: cpu"):
        open_runtime(bundle, providers=asked)
    runtime = open_runtime(bundle, providers=["auto"])
    assert (runtime.providers, runtime.precision) == (["CPUExecutionProvider"], "int8")


def test_another_precision_than_that_of_the_graphs_is_refused(bundle):
    pytest.importorskip("onnxruntime")
    with pytest.raises(UserError, match=r"precision .fp16. is for TensorRT only: the graphs are int8\. Leave it away"):
        open_runtime(bundle, precision="fp16")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "n_candidates",
            4,
            "decoder.n_candidates is 4, allowed: 5 (more than the suppressed tokens) to 4096 (all tokens)",
        ),
        ("n_candidates", 5000, "decoder.n_candidates is 5000, allowed"),
        ("n_candidates", "64", "field decoder.n_candidates is '64', needed: a whole number"),
        ("kind", "greedy-banked", "field decoder.kind is 'greedy-banked', this runner knows"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path, field, value, message):
    folder = str(tmp_path / "bundle")
    shutil.copytree(os.path.join(FIXTURES, "bundle-int8"), folder)
    path = os.path.join(folder, "manifest.json")
    with open(path) as file:
        manifest = json.load(file)
    manifest["decoder"][field] = value
    with open(path, "w") as file:
        json.dump(manifest, file)
    with pytest.raises(UserError) as error:
        Bundle.load(folder)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"precision": {"int8": ["decoder/x"], "fp32": [], "n_clips": 4, "tried": [{"int8": [], "increase": 0.1}]}},
            "precision needs fp32, n_clips, and a row of tried with the same int8, fp16 and bf16 and its increase: export the bundle again",
        ),
        ({"engine_request": {}}, "engine_request is not null, and decoder.kind greedy-buffered has no engines"),
    ],
)
def test_what_a_manifest_says_of_int8_and_engines_belongs_together(bundle, changed, message):
    with pytest.raises(UserError) as error:
        check_manifest(dict(bundle.manifest, **changed), "manifest.json")
    assert message in str(error.value)
