"""The whole search on a tiny Whisper whose vocabulary is large enough to be turned, and what it does where int8 goes wrong."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from edgeqlora_export import onnx_graph
from edgeqlora_export.precision import PrecisionSettings, choose_for_cpu
from edgeqlora_export.precision import search as module
from edgeqlora_export.whisper.graphs import export_whisper
from edgeqlora_export.whisper.skeleton import skeleton
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.errors import NotFiniteError, UserError
from edgeqlora_jetson.files import write_json
from edgeqlora_jetson.runtimes import open_runtime
from edgeqlora_jetson.transcribe import Transcriber

V = 4200


@pytest.fixture
def bundle(tmp_path):
    """Graphs for a CPU of a random Whisper, 64 wide, with 4200 tokens, and what a transcriber needs beside them."""
    config = WhisperConfig(
        vocab_size=V, d_model=64, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=96,
        decoder_ffn_dim=96, num_mel_bins=80, max_source_positions=100, max_target_positions=24, pad_token_id=0, bos_token_id=0,
        eos_token_id=0, decoder_start_token_id=0, init_std=0.2,
    )  # fmt: skip
    found = skeleton(config, 1, 1, tmp_path, 13, for_cpu=True)
    np.save(tmp_path / "mel.npy", np.abs(np.random.default_rng(0).normal(0, 0.01, (201, 80))).astype(np.float32))
    write_json(tmp_path / "words.json", [f" w{i}" for i in range(V)])
    found.manifest["features"]["mel_filters"] = "mel.npy"
    found.manifest["decoder"] |= {"detokenizer": "words.json", "max_new_tokens": {"2.0": 12}, "language": "en"}
    found.manifest["profile"] = {"note": "the graphs are fp32; engine_request is null"}
    found.manifest["gates"] = [{"name": "texts", "passed": True, "measured": 0.0, "limit": 0.0, "detail": "all equal"}]
    return found


@pytest.fixture
def clips(bundle):
    """Noises, the last longer than a window, with what fp32 makes of them as text."""
    draw, transcriber = np.random.default_rng(1), Transcriber(bundle, open_runtime(bundle, threads=1))
    audios = [draw.normal(0, 0.05 * (i + 1), n).astype(np.float32) for i, n in enumerate((16000, 24000, 30000, 80000))]
    return [(audio, transcriber.transcribe(audio).text) for audio in audios]


def choose(bundle, clips, asked="auto", allowed=100.0, said=lambda text: None):
    graphs = {graph: (Path(bundle.graph_path(graph))) for graph in bundle.graphs}
    return choose_for_cpu(bundle, graphs, clips, PrecisionSettings(asked, allowed), said)


def files(bundle):
    return sorted(path.name for path in Path(bundle.folder).iterdir())


def test_all_parts_are_int8_and_the_vocabulary_gives_its_best(bundle, clips, monkeypatch):
    monkeypatch.setattr(module, "cost", lambda *args: {**cost(*args), "refused": None})
    manifest = choose(bundle, clips, asked="int8")
    assert manifest["precision"]["fp32"] == []
    assert "decoder/vocabulary" in manifest["precision"]["int8"]
    assert manifest["decoder"]["n_candidates"] == 192
    assert manifest["precision"]["vocabulary"]["n_lead"] == 32
    assert manifest["graphs"]["decoder"]["outputs"][-1] == "candidates"
    assert manifest["gates"][0]["detail"] == "all equal; of the fp32 graphs that those in int8 were made of"
    assert files(bundle) == ["decoder.onnx", "encoder.onnx", "mel.npy", "precision.png", "words.json"]
    json.dumps(manifest, allow_nan=False)
    int8 = Bundle(bundle.folder, manifest)
    assert [
        one.tokens != [] for one in map(Transcriber(int8, open_runtime(int8, threads=1)).transcribe, [clips[0][0]])
    ] == [True]


cost = module.cost


def test_a_mix_that_answers_nan_is_refused_and_its_part_stays_in_fp32(bundle, clips, monkeypatch):
    hear, choices = module.hear, module.choices

    def broken(transcriber):
        file = transcriber.bundle.manifest["graphs"]["encoder"]["file"]
        graph = onnx.load(str(Path(transcriber.bundle.folder) / file))
        return any(node.op_type == "MatMulInteger" and "mlp" in node.name for node in graph.graph.node)

    def hear_or_break(transcriber, some):
        if broken(transcriber):
            raise NotFiniteError("the encoder answers NaN")
        return hear(transcriber, some)

    def choices_or_nan(transcriber, audios, texts):
        found = choices(transcriber, audios, texts)
        return [(row * np.nan, ids) for row, ids in found] if broken(transcriber) else found

    monkeypatch.setattr(module, "hear", hear_or_break)
    monkeypatch.setattr(module, "choices", choices_or_nan)
    monkeypatch.setattr(
        module,
        "cost",
        lambda plain, mix, allowed: {
            **cost(plain, mix, allowed),
            "refused": "it breaks" if not any(mix.texts) else None,
        },
    )
    manifest = choose(bundle, [(audio, "a " * 300) for audio, _ in clips])
    found = manifest["precision"]
    assert found["sensitivity"]["encoder/layers.0/mlp"] is None
    assert sum(value is None for value in found["sensitivity"].values()) == 1
    assert found["fp32"] == ["encoder/layers.0/mlp"]
    assert found["tried"][1]["refused"] == "it breaks"
    json.dumps(manifest, allow_nan=False)


def test_nothing_is_int8_where_nothing_is_allowed(bundle, clips, monkeypatch):
    monkeypatch.setattr(module, "cost", lambda *args: {**cost(*args), "refused": "no"})
    before = {graph: Path(bundle.graph_path(graph)).read_bytes() for graph in bundle.graphs}
    said: list[str] = []
    manifest = choose(bundle, [(audio, "a " * 300) for audio, _ in clips], said=said.append)
    assert manifest["precision"]["int8"] == []
    assert "n_candidates" not in manifest["decoder"]
    assert {graph: Path(bundle.graph_path(graph)).read_bytes() for graph in bundle.graphs} == before
    assert files(bundle) == ["decoder.onnx", "encoder.onnx", "mel.npy", "precision.png", "words.json"]
    assert said[-1].startswith("parts: 11 fp32; ")


def test_weights_beside_a_graph_go_with_it(bundle, clips, monkeypatch):
    monkeypatch.setattr(onnx_graph, "INLINE_LIMIT_BYTES", 1000)
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=V, d_model=64, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=96, decoder_ffn_dim=96, num_mel_bins=80, max_source_positions=100, max_target_positions=24, pad_token_id=0,
            bos_token_id=0, eos_token_id=0, decoder_start_token_id=0, init_std=0.2,
        )
    ).eval()  # fmt: skip
    model.generation_config = GenerationConfig(eos_token_id=0)
    export_whisper(model, bundle.folder, 13, buffered=True)
    assert "decoder.onnx.data" in files(bundle)
    monkeypatch.setattr(module, "cost", lambda *args: {**cost(*args), "refused": None})
    manifest = choose(bundle, clips, asked="int8")
    assert files(bundle) == [
        "decoder.onnx", "decoder.onnx.data", "encoder.onnx", "encoder.onnx.data", "mel.npy", "precision.png", "words.json",
    ]  # fmt: skip
    int8 = Bundle(bundle.folder, manifest)
    assert Transcriber(int8, open_runtime(int8, threads=1)).transcribe(clips[0][0]).tokens


def test_clips_without_words_or_graphs_without_layers_are_said(bundle, clips, monkeypatch):
    asked = "precision int8 was asked for, and the "
    with pytest.raises(
        UserError, match=f"{asked}4 clips of --data have no words to count errors of: .* or pass --precision fp32"
    ):
        choose(bundle, [(audio, "") for audio, _ in clips], asked="int8")
    monkeypatch.setattr("edgeqlora_export.precision.cpu.form.parts_of", lambda graphs: [])
    with pytest.raises(
        UserError, match=f"{asked}graphs have no linear layer of at least 32 by 32: .* or pass --precision fp32"
    ):
        choose(bundle, clips, asked="int8")
    manifest = choose(bundle, [(audio, "a " * 300) for audio, _ in clips])
    assert manifest["precision"]["reason"].startswith("the graphs have no linear layer")
