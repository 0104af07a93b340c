"""Gates in the graphs of both families: equal to torch on different inputs, of operators that old parsers take."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_tiny import tiny_whisper
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from edgeqlora_export import wav2vec2, whisper
from edgeqlora_export.gates import (
    RECORD,
    GatedLinear,
    SavedGates,
    attach_gates,
    frames_of,
    gate,
    read_gates,
    write_gates,
)
from edgeqlora_export.lint import lint_graph, load_operators
from edgeqlora_export.wav2vec2.graphs import export_ctc
from edgeqlora_export.whisper.graphs import export_whisper
from edgeqlora_export.whisper.windowed import windowed
from edgeqlora_jetson.errors import UserError

LIMIT = 1e-4
FORBIDDEN = {"If", "Loop", "Scan", "Einsum", "Trilu", "AveragePool", "CumSum", "Where"}
assert whisper
assert wav2vec2


def gated(model, names, folder: Path, n_gates: int = 3, rank: int = 3):
    """The model with random adapters and gates on the named linears."""
    from edgeqlora_export.wav2vec2 import frames as of_ctc
    from edgeqlora_export.whisper import frames as of_whisper

    torch.manual_seed(1)
    linears = {}
    for name in names:
        linear = model.get_submodule(name)
        shapes = {
            "lora_A": (rank, linear.in_features), "lora_B": (linear.out_features, rank),
            "weight": (n_gates, 4), "bias": (n_gates,),
        }  # fmt: skip
        linears[name] = {part: torch.randn(shape) * (2 if part == "weight" else 0.3) for part, shape in shapes.items()}
    model.save_pretrained(folder)
    write_gates(folder, SavedGates("rank" if n_gates > 1 else "layer", linears), beside="model.safetensors")
    family = of_ctc if hasattr(model, "lm_head") else of_whisper
    assert attach_gates(model, folder, *family.frame_parts(model))
    return model.eval()


def operators(path):
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("buffered", [False, True], ids=["for TensorRT", "for a CPU"])
@pytest.mark.parametrize("n_gates", [1, 3])
def test_whispers_encoder_graph_weighs_as_torch_does(n_gates, buffered, tmp_path):
    plain = tiny_whisper()
    encoder = [
        f"model.encoder.layers.{i}.{part}"
        for i in (0, 1)
        for part in ("self_attn.q_proj", "self_attn.k_proj", "fc1", "fc2")
    ]
    cross = [f"model.decoder.layers.{i}.encoder_attn.{part}_proj" for i in (0, 1) for part in "kv"]
    model = gated(tiny_whisper(), [*encoder, *cross], tmp_path, n_gates)
    graphs = export_whisper(model, tmp_path, opset=13, buffered=buffered)
    assert not FORBIDDEN & set(operators(graphs["encoder"]))
    assert operators(graphs["encoder"])["Sigmoid"] == 12
    lint_graph(graphs["encoder"], load_operators("8.2"))
    session = onnxruntime.InferenceSession(str(graphs["encoder"]), providers=["CPUExecutionProvider"])
    far = 0.0
    for seed, (batch, n_frames) in enumerate([(1, 60), (3, 152)]):
        mel = np.random.default_rng(seed).normal(0, 0.5, (batch, 80, n_frames)).astype(np.float32)
        mel[:, :, n_frames // 2 :] = mel.min()
        found = session.run(None, {"mel": mel})
        for which, reference in (("gated", model), ("plain", plain)):
            with torch.no_grad(), windowed(reference, n_frames / 100):
                heard = reference.model.encoder(torch.from_numpy(mel)).last_hidden_state
                for i, layer in enumerate(reference.model.decoder.layers):
                    for got, linear, axes in (
                        (found[2 * i], layer.encoder_attn.k_proj, (0, 3, 1, 2)),
                        (found[2 * i + 1], layer.encoder_attn.v_proj, (0, 2, 1, 3)),
                    ):
                        wanted = linear(heard).numpy()
                        difference = np.abs(got.transpose(axes).reshape(wanted.shape) - wanted).max()
                        if which == "gated":
                            assert difference < LIMIT * max(1.0, np.abs(wanted).max())
                        else:
                            far = max(far, difference)
    assert far > 0.1


@pytest.mark.parametrize("mask", [True, False])
def test_the_ctc_graph_weighs_as_torch_does(mask, tmp_path):
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=12, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, feat_extract_norm="layer",
        do_stable_layer_norm=True, conv_bias=True, initializer_range=0.2,
    )  # fmt: skip
    parts = ("attention.q_proj", "attention.v_proj", "feed_forward.intermediate_dense", "feed_forward.output_dense")
    names = [f"wav2vec2.encoder.layers.{i}.{part}" for i in (0, 1) for part in parts]
    model = gated(Wav2Vec2ForCTC(config).eval(), names, tmp_path)
    path = tmp_path / "ctc.onnx"
    export_ctc(model, path, attention_mask=mask, opset=13)
    assert not FORBIDDEN & set(operators(path))
    lint_graph(path, load_operators("8.2"))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for seed, (batch, n_samples) in enumerate([(1, 8000), (2, 20007)]):
        audio = np.random.default_rng(seed).normal(0, 1, (batch, n_samples)).astype(np.float32)
        audio[:, n_samples // 2 :] = 0
        inputs, feed = {"input_values": torch.from_numpy(audio)}, {"audio": audio}
        n_valid = (n_samples - 400) // 320 + 1
        if mask:
            n_valid = (n_samples // 2 - 400) // 320 + 1
            inputs["attention_mask"] = (torch.arange(n_samples) < n_samples // 2).long().repeat(batch, 1)
            n_frames = (n_samples - 400) // 320 + 1
            feed["frame_mask"] = np.tile((np.arange(n_frames) < n_valid).astype(np.float32), (batch, 1))
        with torch.no_grad():
            wanted = model(**inputs).logits.numpy()[:, :n_valid]
        assert np.abs(session.run(None, feed)[0][:, :n_valid] - wanted).max() < LIMIT * max(1.0, np.abs(wanted).max())


def test_a_gate_is_between_0_and_2_and_exactly_1_at_the_start():
    z = torch.randn(2, 7, 4)
    assert torch.equal(gate(z, torch.zeros(3, 4), torch.zeros(3)), torch.ones(2, 7, 3))
    extreme = gate(1000 * z, torch.ones(1, 4), torch.zeros(1))
    assert extreme.min() == pytest.approx(2 / (1 + np.exp(4)))
    assert extreme.max() == pytest.approx(2 / (1 + np.exp(-4)))


def test_gates_of_another_model_are_refused(tmp_path):
    model = gated(tiny_whisper(), ["model.encoder.layers.0.fc1"], tmp_path)
    assert isinstance(model.model.encoder.layers[0].fc1, GatedLinear)
    assert frames_of(model) is not None
    other = tiny_whisper(encoder_ffn_dim=48)
    from edgeqlora_export.whisper.frames import frame_parts

    with pytest.raises(UserError, match=r"its adapter on model.encoder.layers.0.fc1 \(.*\) does not fit the model"):
        attach_gates(other, tmp_path, *frame_parts(other))
    (tmp_path / RECORD).write_text('{"schema": "edgeqlora.lora.temporal_gate/2"}')
    with pytest.raises(UserError, match=r"expected schema 'edgeqlora\.lora\.temporal_gate/1'"):
        read_gates(tmp_path)
