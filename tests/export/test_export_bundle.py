"""From a merged folder to a bundle that the runner reads: whole and proven, or absent."""

import json
import shutil
import wave

import numpy as np
import onnx
import pytest
from export_tiny import (
    EOS,
    NO_TIMESTAMPS,
    SOT,
    TIME_0,
    VOCAB_SIZE,
    tiny_generation_config,
    tiny_tokenizer,
    tiny_whisper,
)
from onnx import numpy_helper

from edgeqlora_export import run
from edgeqlora_export.family import load_exporter, verify_gates
from edgeqlora_export.onnx_graph import graph_names
from edgeqlora_export.run import export_bundle
from edgeqlora_export.whisper import exporter as whisper_exporter
from edgeqlora_export.whisper.decoding import decoding_spec, torch_greedy
from edgeqlora_export.whisper.detokenizer import added_tokens_gate, detokenizer_table
from edgeqlora_export.whisper.graphs import export_whisper
from edgeqlora_export.whisper.graphs.modules import model_constants
from edgeqlora_export.whisper.parity import measure_parity
from edgeqlora_jetson.audio.load import load_audio
from edgeqlora_jetson.audio.wav import write_wav
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.decoders import Detokenizer
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.runtimes import open_runtime
from edgeqlora_jetson.transcribe import Transcriber

PROFILE = {"name": "jetson-nano", "tensorrt": "8.2", "threads": 1, "max_batch": 4}


def _manifest(model, spec, graphs):
    """Of a manifest, what decoder and runtime read."""
    return {
        "model": model_constants(model),
        "decoder": {"kind": "greedy", **spec},
        "graphs": {
            key: {"file": path.name, **dict(zip(("inputs", "outputs"), graph_names(path), strict=True))}
            for key, path in graphs.items()
        },
    }


def _export(merged, out, clips, **changes):
    settings = {"opset": 13, "windows_s": [2.0, 1.0], "profile": PROFILE, "clips": clips, "n_eval": 2, **changes}
    return export_bundle(merged, out, **settings)


@pytest.fixture(scope="module")
def exported(merged, clips, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "bundle"
    messages = []
    # Whole windows, as torch hears them: random weights loop in any.
    summary = _export(
        merged, out, clips, parents={"merged": "abc"}, name="tiny", margins_s=(), progress=messages.append
    )
    return out, summary, messages


def test_the_runner_reads_the_bundle_and_every_gate_passed(exported):
    out, summary, messages = exported
    bundle = Bundle.load(out)
    manifest = bundle.manifest
    assert bundle.windows_s == [1.0, 2.0] == summary["windows_s"]
    assert [gate["name"] for gate in manifest["gates"]] == [
        "log-mel",
        "encoder parity at 1 s",
        "decoder parity at 1 s",
        "greedy tokens at 1 s",
        "texts at 1 s",
        "encoder parity at 2 s",
        "decoder parity at 2 s",
        "greedy tokens at 2 s",
        "texts at 2 s",
        "added tokens",
    ]
    assert all(gate["passed"] and gate["measured"] <= gate["limit"] for gate in manifest["gates"])
    assert "past 0/1/7; past 200 skipped: the model holds 64 positions" in manifest["gates"][2]["detail"]
    assert manifest["gates"][3]["detail"].startswith("4 clips, ")
    assert manifest["decoder"]["prompt_ids"] == [SOT, NO_TIMESTAMPS]
    assert (manifest["parents"], manifest["name"]) == ({"merged": "abc"}, "tiny")
    request = manifest["engine_request"]
    assert (request["tensorrt"], request["precisions"], request["max_batch"]) == ("8.2", ["fp32"], 4)
    assert [p["name"] for p in request["graphs"]["encoder"]["optimization_profiles"]] == ["window 1 s", "window 2 s"]
    assert "the board builds them for TensorRT 8.2 (fp32)" in manifest["profile"]["note"]
    assert summary["bytes"] == sum(entry["bytes"] for entry in manifest["files"].values())
    assert any("TensorRT 8.2's operator table" in message for message in messages)
    assert sorted(p.name for p in out.parent.iterdir()) == ["bundle"]


def test_no_path_of_this_machine_travels():
    assert run._public_name("openai/whisper-tiny.en") == "openai/whisper-tiny.en"
    assert run._public_name("/somewhere/models/whisper-tiny.en") == "whisper-tiny.en"


def test_the_files_are_those_of_the_contract(exported):
    out, _, _ = exported
    names = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert names == {
        "manifest.json", "encoder.onnx", "decoder.onnx", "mel_filters.npy", "detokenizer.json",
        "edgeqlora-jetson.pyz", "README.txt", "eval/manifest.jsonl", "eval/0001.wav", "eval/0002.wav",
    }  # fmt: skip
    filters = np.load(out / "mel_filters.npy", allow_pickle=False)
    assert (filters.shape, filters.dtype) == ((201, 80), np.float32)
    readme = (out / "README.txt").read_text()
    assert "python3 edgeqlora-jetson.pyz bench\n" in readme
    assert "With TensorRT 8.2 (once, minutes" in readme
    assert "python3 edgeqlora-jetson.pyz build\n" in readme
    assert "This was not run on the board itself" in readme


def test_a_profile_without_tensorrt_asks_for_no_engines(merged, clips, tmp_path):
    _export(merged, tmp_path / "bundle", clips, windows_s=[1.0], profile={"name": "cpu", "threads": 1})
    manifest = Bundle.load(tmp_path / "bundle").manifest
    assert manifest["engine_request"] is None
    assert "engine_request is null: the profile names no TensorRT" in manifest["profile"]["note"]
    assert "TensorRT" not in (tmp_path / "bundle" / "README.txt").read_text()


def test_eval_clips_are_what_was_given(exported, clips):
    out, _, _ = exported
    rows = [json.loads(line) for line in (out / "eval" / "manifest.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == ["clip 0", "clip 1"]
    assert rows[1] == {"audio": "0002.wav", "text": "clip 1", "duration": 0.75}
    audio = load_audio(str(out / "eval" / "0001.wav"))
    assert np.abs(audio - clips[0][0]).max() <= 1 / 32768


def test_the_runner_says_what_torch_says(exported, whisper, tokenizer, clips, merged):
    out, _, _ = exported
    bundle = Bundle.load(out)
    transcriber = Transcriber(bundle, open_runtime(bundle))
    extractor = load_exporter(merged).extractor
    for audio, _ in clips:
        transcript = transcriber.transcribe(audio)
        mel = whisper_exporter.extract_mel(extractor, [audio], round(transcript.window_s * 100))
        limit = bundle.max_new_tokens(transcript.window_s)
        expected = torch_greedy(whisper, mel, bundle.manifest["decoder"], limit)[0][0]
        assert transcript.text == Detokenizer(bundle.load_detokenizer())(expected)


def test_a_wrong_weight_in_the_graph_fails_the_gate(whisper, tokenizer, tmp_path):
    spec = decoding_spec(whisper, tokenizer, tiny_generation_config(), [1.0])
    mels = {1.0: np.random.default_rng(0).normal(0, 1, (3, 80, 100)).astype(np.float32)}
    graphs = export_whisper(whisper, tmp_path)
    manifest = _manifest(whisper, spec, graphs)

    def gates():
        return measure_parity(
            whisper, open_runtime(Bundle(str(tmp_path), manifest), threads=1), mels, manifest, str, str
        )

    verify_gates(gates())
    for which, kind in (("decoder", "decoder parity at 1 s"), ("encoder", "encoder parity at 1 s")):
        whole = graphs[which].read_bytes()
        model = onnx.load(graphs[which])
        tensor = next(t for t in model.graph.initializer if len(t.dims) == 2 and 64 in t.dims and 32 in t.dims)
        value = numpy_helper.to_array(tensor).copy()
        value[3, 5] += 0.05
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        onnx.save(model, graphs[which])
        with pytest.raises(UserError, match=rf"gate failed: {kind}: .*allowed at most .*batch .*No bundle was written"):
            verify_gates(gates())
        graphs[which].write_bytes(whole)


def test_wrong_tokens_alone_fail_the_gate_and_name_the_clip(whisper, tokenizer, tmp_path):
    spec = decoding_spec(whisper, tokenizer, tiny_generation_config(), [1.0])
    mels = {1.0: np.random.default_rng(0).normal(0, 1, (2, 80, 100)).astype(np.float32)}
    graphs = export_whisper(whisper, tmp_path)
    manifest = _manifest(whisper, spec, graphs)
    runtime = open_runtime(Bundle(str(tmp_path), manifest), threads=1)

    class LastTokenLost:
        """A runtime that repeats itself from the second step on, as a stale cache would."""

        def run(self, graph, inputs, shapes, keep=()):
            outputs = runtime.run(graph, inputs, shapes, keep)
            if graph == "decoder":
                is_start = isinstance(inputs["past_k_0"], np.ndarray)
                self.seen = [*([] if is_start else self.seen), outputs["logits"].copy()]
                outputs["logits"] = self.seen[0 if len(self.seen) > 2 else -1].copy()
            return outputs

    gates = measure_parity(whisper, LastTokenLost(), mels, manifest, str, str)
    assert [gate["passed"] for gate in gates] == [True, True, False, False]
    with pytest.raises(
        UserError, match=r"greedy tokens at 1 s: 1, allowed at most 0 \(2 clips.*clip 0 from token 2: torch \["
    ):
        verify_gates(gates)


def test_a_failed_gate_writes_no_bundle(merged, clips, tmp_path, monkeypatch):
    monkeypatch.setattr(whisper_exporter, "MEL_LIMIT", -1.0)
    with pytest.raises(UserError, match="gate failed: log-mel"):
        _export(merged, tmp_path / "bundle", clips, windows_s=[1.0])
    assert list(tmp_path.iterdir()) == []


def test_an_operator_outside_the_table_stops_the_export(merged, clips, tmp_path):
    with pytest.raises(UserError, match=r"encoder\.onnx is outside the operator table of TensorRT 8\.2"):
        _export(merged, tmp_path / "bundle", clips, opset=17)
    assert list(tmp_path.iterdir()) == []


def test_bad_settings_are_named_before_the_work(merged, clips, tmp_path):
    with pytest.raises(UserError, match=r"window_s=3 is out of range: allowed are 0.02 to 2 s"):
        _export(merged, tmp_path / "bundle", clips, windows_s=[3])
    with pytest.raises(UserError, match="windows_s is empty"):
        _export(merged, tmp_path / "bundle", clips, windows_s=[])
    with pytest.raises(UserError, match="0 clips"):
        _export(merged, tmp_path / "bundle", [])
    with pytest.raises(
        UserError, match=r"is not a merged folder: it has no config\.json and no preprocessor_config\.json"
    ):
        _export(tmp_path, tmp_path / "bundle", clips)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="exists and is not empty"):
        _export(merged, tmp_path / "full", clips)
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


def test_broken_weights_are_a_clear_error(merged, clips, tmp_path):
    broken = tmp_path / "merged"
    broken.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (broken / name).write_bytes((merged / name).read_bytes())
    with pytest.raises(UserError, match="the weights cannot be read"):
        _export(broken, tmp_path / "bundle", clips)


def test_detokenizer_gives_the_tokenizers_text(tokenizer):
    table = detokenizer_table(tokenizer, VOCAB_SIZE)
    assert len(table) == VOCAB_SIZE
    assert table[EOS] is table[TIME_0] is table[VOCAB_SIZE - 1] is None
    text = " Größe 漢字 it's\n\t§"
    assert Detokenizer(table)(tokenizer.encode(text)) == text.strip()
    assert sorted(ord(c) for entry in table if entry for c in entry) == list(range(256))


def test_a_table_that_reads_otherwise_fails_the_gates(merged, clips, tmp_path, monkeypatch):
    """Tokens are equal, and still the board would say something else."""

    def write_tables(self, folder, manifest):
        real(self, folder, manifest)
        path = folder / manifest["decoder"]["detokenizer"]
        path.write_text(json.dumps(["?" if entry else entry for entry in json.loads(path.read_text())]))

    real = whisper_exporter.WhisperExporter.write_tables
    monkeypatch.setattr(whisper_exporter.WhisperExporter, "write_tables", write_tables)
    with pytest.raises(
        UserError, match=r"gate failed: texts at 1 s: 1, allowed at most 0 \(4 clips.*clip 0: torch .*\?"
    ):
        _export(merged, tmp_path / "bundle", clips, windows_s=[1.0])


@pytest.mark.parametrize("word", ["Z\u00fcrich", "\u0111em", "\u6771\u4eac", "two words"])
def test_added_tokens_are_read_as_they_are_written(word):
    """Their letters may be signs that stand for bytes (U+00A1 to U+0143): transformers' own decode misreads them."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([word])
    (number,) = tokenizer.encode(word, add_special_tokens=False)
    good, bad = (Detokenizer(detokenizer_table(tokenizer, VOCAB_SIZE)) for _ in range(2))
    assert good([number]) == word
    assert added_tokens_gate(tokenizer, good)["passed"]
    bad._table[number] = "other"
    gate = added_tokens_gate(tokenizer, bad)
    assert not gate["passed"]
    assert f"{word!r} is read 'other'" in gate["detail"]


def test_wav_clips_at_full_scale(tmp_path):
    write_wav(tmp_path / "a.wav", np.array([2.0, -2.0, 0.5], dtype=np.float32))
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16000)
        assert np.frombuffer(file.readframes(3), "<i2").tolist() == [32767, -32768, 16384]


def test_a_model_of_another_shape_and_128_mels(tokenizer, tmp_path):
    """The shape of large-v3-turbo: more encoder than decoder layers, 128 mels, head_dim unlike a power of two."""
    model = tiny_whisper(num_mel_bins=128, encoder_layers=3, decoder_layers=1, d_model=24, decoder_attention_heads=4)
    spec = decoding_spec(model, tokenizer, tiny_generation_config(is_multilingual=True), [1.0], "de")
    graphs = export_whisper(model, tmp_path)
    manifest = _manifest(model, spec, graphs)
    runtime = open_runtime(Bundle(str(tmp_path), manifest), threads=1)
    mels = {1.0: np.random.default_rng(0).normal(0, 1, (1, 128, 100)).astype(np.float32)}
    verify_gates(measure_parity(model, runtime, mels, manifest, str, str))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model_type": "bert"}', r"holds a 'bert' model: export has graphs of wav2vec2 and whisper models"),
        ('{"d_model": 8}', r"config.json names no model_type \('model_type'\): merge again"),
        ("[1]", r"config.json names no model_type .*: merge again"),
    ],
)
def test_a_folder_of_no_known_family(merged, tmp_path, config, message):
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(UserError, match=message):
        load_exporter(tmp_path)


def test_audio_constants_that_are_not_whispers(merged, tmp_path):
    folder = tmp_path / "merged"
    shutil.copytree(merged, folder)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hop_length": 200}))
    with pytest.raises(UserError, match="hop_length=200, and a Whisper model has 160"):
        load_exporter(folder)
