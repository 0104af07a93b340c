"""The ONNX files: operators an old parser takes, weights stored once, any batch, window and past length."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from export_tiny import tiny_whisper

from edgeqlora_export import onnx_graph
from edgeqlora_export.whisper.graphs import export_whisper
from edgeqlora_export.whisper.graphs.modules import WhisperDecoderExport, WhisperEncoderExport, model_constants
from edgeqlora_jetson.errors import UserError

FORBIDDEN = {"If", "Loop", "Scan", "Einsum", "Trilu", "LayerNormalization", "Gelu", "ScatterND"}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    return export_whisper(tiny_whisper(), tmp_path_factory.mktemp("graphs"), opset=13)


def _operators(path):
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_opset_13_has_only_operators_that_tensorrt_8_2_and_onnxruntime_1_10_take(graphs):
    for path in graphs.values():
        model = onnx.load(path)
        onnx.checker.check_model(model)
        assert model.ir_version <= 7
        assert [opset.version for opset in model.opset_import] == [13]
        assert not FORBIDDEN & set(_operators(path))
    convolutions = [node for node in onnx.load(graphs["encoder"]).graph.node if node.op_type == "Conv"]
    weights = {t.name: list(t.dims) for t in onnx.load(graphs["encoder"]).graph.initializer}
    assert [weights[node.input[1]] for node in convolutions] == [[32, 80, 1, 3], [32, 32, 1, 3]]


def test_interface_is_the_contract(graphs):
    def axes(values):
        return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}

    encoder, decoder = onnx.load(graphs["encoder"]).graph, onnx.load(graphs["decoder"]).graph
    assert axes(encoder.input) == {"mel": ["batch", 80, "n_frames"]}
    assert axes(encoder.output) == {
        "cross_k_0": ["batch", 2, 16, "n_audio"],
        "cross_v_0": ["batch", 2, "n_audio", 16],
        "cross_k_1": ["batch", 2, 16, "n_audio"],
        "cross_v_1": ["batch", 2, "n_audio", 16],
    }
    past = {f"past_{which}_{i}": ["batch", 2, "n_past", 16] for i in (0, 1) for which in ("k", "v")}
    assert axes(decoder.input) == {"tokens": ["batch", "n_new"], **past, **axes(encoder.output)}
    assert next(v for v in decoder.input if v.name == "tokens").type.tensor_type.elem_type == onnx.TensorProto.INT32
    present = {f"present_{which}_{i}": ["batch", 2, "n_total", 16] for i in (0, 1) for which in ("k", "v")}
    assert axes(decoder.output) == {"logits": ["batch", 270], **present}


def test_opset_17_takes_layer_normalization_as_one_operator(tmp_path):
    graphs = export_whisper(tiny_whisper(), tmp_path, opset=17)
    assert _operators(graphs["decoder"])["LayerNormalization"] == 7  # three a layer, one at the end


@pytest.mark.parametrize("tied", [True, False])
def test_each_weight_is_stored_once(tmp_path, tied):
    model = tiny_whisper(vocab_size=2000, tie_word_embeddings=tied)
    graphs = export_whisper(model, tmp_path, opset=13)
    decoder = onnx.load(graphs["decoder"]).graph
    vocabulary = [t for t in decoder.initializer if 2000 in t.dims]
    assert [list(t.dims) for t in vocabulary] == [[2000, 32]] * (1 if tied else 2)
    weights = sum(p.numel() for p in model.model.decoder.parameters()) + (0 if tied else 2000 * 32)
    mask = 64 * 64
    assert graphs["decoder"].stat().st_size < 4 * (weights + mask) + 80_000
    encoder_weights = sum(p.numel() for p in model.model.encoder.parameters())
    assert graphs["encoder"].stat().st_size < 4 * (encoder_weights + 4 * 32 * 33) + 60_000


def test_large_weights_go_to_one_file_beside_the_graph(tmp_path, graphs, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx_graph, "INLINE_LIMIT_BYTES", 1000)
    split = export_whisper(tiny_whisper(), tmp_path, opset=13)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "decoder.onnx", "decoder.onnx.data", "encoder.onnx", "encoder.onnx.data",
    ]  # fmt: skip
    assert (tmp_path / "decoder.onnx.data").stat().st_mode == split["decoder"].stat().st_mode
    mel = {"mel": np.ones((1, 80, 60), dtype=np.float32)}
    one, two = (
        onnxruntime.InferenceSession(str(g["encoder"]), providers=["CPUExecutionProvider"]).run(None, mel)
        for g in (graphs, split)
    )
    np.testing.assert_array_equal(one[0], two[0])


def test_the_modules_equal_transformers_before_any_export():
    model = tiny_whisper(seed=3)
    mel = torch.randn(2, 80, 200)
    tokens = torch.tensor([[257, 263, 5, 6], [257, 263, 7, 8]])
    with torch.no_grad():
        cross = WhisperEncoderExport(model).eval()(mel)
        decoder = WhisperDecoderExport(model).eval()
        empty = [torch.zeros(2, 2, 0, 16)] * 4
        logits, *present = decoder(tokens[:, :3].int(), *empty, *cross)
        stepped, *_ = decoder(tokens[:, 3:].int(), *present, *cross)
        reference = model(mel, decoder_input_ids=tokens).logits
    torch.testing.assert_close(logits, reference[:, 2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(stepped, reference[:, 3], atol=1e-4, rtol=1e-4)


def test_the_model_is_left_as_it_was():
    model = tiny_whisper().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    WhisperEncoderExport(model), WhisperDecoderExport(model)
    assert model.training
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert model_constants(model)["head_dim"] == 16


def test_opset_and_dtype_out_of_range_are_named(tmp_path):
    with pytest.raises(UserError, match="opset=12 cannot be exported: allowed are 13 to 20"):
        export_whisper(tiny_whisper(), tmp_path, opset=12)
    with pytest.raises(UserError, match="dtype=float16: export needs a model in float32"):
        export_whisper(tiny_whisper().half(), tmp_path, opset=13)
    assert list(tmp_path.iterdir()) == []
