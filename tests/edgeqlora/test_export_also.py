"""`export --also`: the model for other runtimes, each heard by that runtime for real."""

import json
import struct
import sys

import numpy as np
import onnx
import onnxruntime
import pytest

from edgeqlora.demo import model_dir, speech_dir
from edgeqlora.evaluation.scores import score_texts
from edgeqlora_export import also
from edgeqlora_export.family import load_exporter
from edgeqlora_export.whisper.also import WRITERS, ggml, sherpa
from edgeqlora_jetson.audio.load import load_audio
from edgeqlora_jetson.errors import UserError

TYPED = (
    "-d", speech_dir() / "dev.jsonl", "--window-s", "3", "--eval-clips", 1, "--margin-s", "off", "--precision", "fp32",
)  # fmt: skip


def test_faster_whisper_and_sherpa_onnx_hear_what_was_written(command, tmp_path):
    pytest.importorskip("faster_whisper")
    pytest.importorskip("sherpa_onnx")
    out = tmp_path / "b"
    code, said = command("export", model_dir(), *TYPED, "-o", out, "--also", "ct2", "--also", "sherpa-onnx")
    assert code == 0, said
    for kind, package in (("ct2", "faster-whisper"), ("sherpa-onnx", "sherpa-onnx")):
        assert f"writing {out}-{kind}" in said
        assert f"{package} " in said.split(f"writing {out}-{kind}")[1].split("\n")[1]
    assert "hears 8 clips: " in said
    files = {path.name for path in (tmp_path / "b-ct2").iterdir()}
    assert {"model.bin", "config.json", "tokenizer.json", "preprocessor_config.json"} <= files
    assert {path.name for path in (tmp_path / "b-sherpa-onnx").iterdir()} == {
        "encoder.onnx", "decoder.onnx", "tokens.txt", "edgeqlora.json",
    }  # fmt: skip
    code, said = command("export", model_dir(), *TYPED, "-o", out, "--also", "ct2", "--overwrite")
    assert code == 0, said
    known = json.loads((tmp_path / "b-ct2" / "edgeqlora.json").read_text())
    assert known["schema"] == "edgeqlora.also/1"
    assert known["n_clips"] == 8
    (tmp_path / "e-ct2").mkdir()
    (tmp_path / "e-ct2" / "mine.txt").write_text("mine")
    code, said = command("export", model_dir(), *TYPED, "-o", tmp_path / "e", "--also", "ct2")
    assert code == 2
    assert "e-ct2" in said
    assert not (tmp_path / "e").exists(), "before any work"


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        ("whisper", "gguf", "also='gguf': allowed are ct2, ggml, sherpa-onnx"),
        ("whisper", "ggml", "whisper.cpp knows models with OpenAI's vocabularies (51864, 51865, 51866 tokens)"),
        ("wav2vec2", "ct2", "--also ct2: models of this family have none: leave it away"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(command, tmp_path, model, kind, message):
    code, said = command("export", model_dir(model), *TYPED, "-o", tmp_path / "b", "--also", kind)
    assert code == 2
    assert message in " ".join(said.split())
    assert not list(tmp_path.iterdir())


def test_bf16_has_no_texts_to_compare_with(command, tmp_path):
    flags = ("-t", "jetson-orin-nano", "--precision", "bf16", "--also", "ct2")
    code, said = command("export", model_dir(), *TYPED, "-o", tmp_path / "b", *flags)
    assert code == 2
    assert "also=ct2: its texts are compared with those of the bundle, which needs TensorRT in bf16" in " ".join(
        said.split()
    )
    assert "pass --precision fp16" in " ".join(said.split())
    assert not list(tmp_path.iterdir())


def test_what_a_format_cannot_hold_is_said(monkeypatch, tmp_path):
    exporter = load_exporter(model_dir())
    monkeypatch.setattr(also, "frames_of", lambda model: object())
    with pytest.raises(UserError, match=r"--also ct2: this model has gates in time, .*: merge without --keep-gates"):
        also.check_also(["ct2"], exporter)
    exporter.folder = tmp_path
    with pytest.raises(UserError, match=r"--also ct2 needs .*/tokenizer\.json, which is not there: merge again"):
        WRITERS["ct2"].check(exporter)
    monkeypatch.setattr(ggml, "VOCABULARIES", (exporter.base_model.config.vocab_size,))
    weight = exporter.base_model.proj_out.weight
    exporter.base_model.proj_out.weight = type(weight)(weight.detach().clone())
    with pytest.raises(
        UserError, match="one matrix for embedding and vocabulary, and this model has two: leave it away"
    ):
        ggml.check(exporter)


def test_a_runtime_that_is_not_there_is_named_with_the_pip_line(command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sherpa_onnx", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, said = command("export", model_dir(), *TYPED, "-o", tmp_path / "b", "--also", "sherpa-onnx")
    assert code == 2
    assert "python -m pip install 'edgeqlora[also]'" in said
    assert not list(tmp_path.iterdir())


def test_a_runtime_that_cannot_read_it_leaves_the_bundle(command, tmp_path, monkeypatch):
    def refuse(folder, spec, threads):
        raise RuntimeError("unknown format")

    monkeypatch.setattr(sherpa, "reader", refuse)
    code, said = command("export", model_dir(), *TYPED, "-o", tmp_path / "b", "--also", "sherpa-onnx")
    assert code == 2
    assert "cannot read what was written for it: unknown format. The bundle in" in " ".join(said.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b"]


def test_the_decoder_of_sherpa_onnx_steps_as_from_scratch(tmp_path):
    """One cache for all layers, filled from an offset on: a prompt and steps give the logits of all tokens at once."""
    exporter = load_exporter(model_dir())
    spec = exporter.describe([3.0], None, None)["decoder"]
    sherpa.write(exporter, tmp_path, spec)
    encoder, decoder = (
        onnxruntime.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"])
        for name in (sherpa.ENCODER, sherpa.DECODER)
    )
    config = exporter.base_model.config
    mel = np.random.default_rng(0).normal(0, 0.5, (1, config.num_mel_bins, 300)).astype(np.float32)
    audio = encoder.run(None, {"mel": mel})
    assert audio[0].shape == (config.decoder_layers, 1, 150, config.d_model)

    def run(tokens, past, offset):
        return decoder.run(
            None,
            {
                "tokens": np.array([tokens]), "in_n_layer_self_k_cache": past[0], "in_n_layer_self_v_cache": past[1],
                "n_layer_cross_k": audio[0], "n_layer_cross_v": audio[1], "offset": np.array([offset]),
            },
        )  # fmt: skip

    empty = [np.zeros((config.decoder_layers, 1, config.max_target_positions, config.d_model), np.float32)] * 2
    tokens = [*spec["prompt_ids"], 5, 9, 7]
    whole = run(tokens, empty, 0)[0][0]
    logits, *past = run(tokens[:3], empty, 0)
    found = list(logits[0])
    for i, token in enumerate(tokens[3:], start=3):
        logits, *past = run([token], past, i)
        found.append(logits[0, 0])
    np.testing.assert_allclose(np.array(found), whole, atol=1e-4)
    known = {entry.key: entry.value for entry in onnx.load(str(tmp_path / sherpa.ENCODER)).metadata_props}
    assert int(known["n_text_layer"]) == config.decoder_layers
    assert known["sot_sequence"] == ",".join(map(str, spec["prompt_ids"][:-1]))
    assert int(known["no_timestamps"]) == spec["prompt_ids"][-1]


@pytest.mark.real
@pytest.mark.parametrize("kind", ["ct2", "ggml", "sherpa-onnx"])
def test_each_runtime_hears_real_speech(shared, tmp_path, kind):
    pytest.importorskip(WRITERS[kind].PACKAGE[0])
    exporter = load_exporter(shared / "models" / "whisper-tiny.en")
    spec = exporter.describe([30.0], None, None)["decoder"]
    WRITERS[kind].check(exporter)
    WRITERS[kind].write(exporter, tmp_path, spec)
    folder = shared / "data" / "librispeech-sample"
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()][:3]
    read = WRITERS[kind].reader(tmp_path, spec, 1)
    said = [read(load_audio(folder / row["audio"])) for row in rows]
    scores = score_texts([row["text"] for row in rows], said, ["whisper-english"])
    assert scores["wer"]["whisper-english"]["value"] < 15, said
    if kind == "ggml":
        with open(tmp_path / ggml.FILE, "rb") as file:
            assert struct.unpack("<3i", file.read(12)) == (ggml.MAGIC, exporter.base_model.config.vocab_size, 1500)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("model.encoder.layers.0.fc1.weight", "encoder.blocks.0.mlp.0.weight"),
        ("model.decoder.layers.11.encoder_attn.k_proj.weight", "decoder.blocks.11.cross_attn.key.weight"),
        ("model.decoder.layers.3.self_attn_layer_norm.bias", "decoder.blocks.3.attn_ln.bias"),
        ("model.encoder.conv1.bias", "encoder.conv1.bias"),
        ("model.encoder.layer_norm.weight", "encoder.ln_post.weight"),
        ("model.decoder.embed_positions.weight", "decoder.positional_embedding"),
    ],
)
def test_tensors_have_openais_names(theirs, ours):
    assert ggml.name_of(theirs) == ours
