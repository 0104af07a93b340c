"""The CTC graph: equal to transformers on padded batches in every variant, and of operators that old parsers take."""

import itertools
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

from edgeqlora_export import onnx_graph
from edgeqlora_export.compile_check import set_target
from edgeqlora_export.lint import lint_graph, load_operators
from edgeqlora_export.onnx_graph import graph_names
from edgeqlora_export.wav2vec2.graphs import _n_samples_needed, export_ctc
from edgeqlora_jetson.audio.features import n_outputs
from edgeqlora_jetson.engines.request import OptimizationProfile
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.runtimes import trt_builder
from edgeqlora_jetson.runtimes.trt_adapters import make_logger

FORBIDDEN = {"If", "Loop", "Scan", "Einsum", "Trilu", "LayerNormalization", "InstanceNormalization", "Gelu", "Range"}
VARIANTS = list(itertools.product(("layer", "group"), (True, False), (True, False)))
"""(feat_extract_norm, do_stable_layer_norm, conv_bias)"""
RELEASED = [("layer", True, True, True), ("group", False, False, False)]
"""With the mask: wav2vec2-large-960h-lv60-self, XLS-R and MMS; wav2vec2-base-960h."""
LIMIT = 1e-4
WINDOW_SAMPLES = (2000, 4007, 8000)


def tiny_ctc(norm="layer", stable=True, bias=True, **changes):
    """Random weights; every bias and norm weight is random too, so that one forgotten shows."""
    settings = {
        "vocab_size": 12,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "conv_dim": (16, 16, 24, 24, 24, 24, 24),
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "feat_extract_norm": norm,
        "do_stable_layer_norm": stable,
        "conv_bias": bias,
        "initializer_range": 0.2,
        **changes,
    }
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(Wav2Vec2Config(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
        # The magnitudes of the weight norm, which otherwise equal the norms of the directions they multiply.
        model.wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original0 *= 1.5
    return model


def padded(batch, n_samples, masked):
    """Clips of falling length in one window: audio as the model's extractor gives it, sample mask, lengths."""
    rng = np.random.default_rng(batch * n_samples)
    lengths = [n_samples - i * n_samples // 5 for i in range(batch)]
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=masked)
    clips = [rng.normal(0.1, 0.3, n).astype(np.float32) for n in lengths]
    out = extractor(clips, sampling_rate=16000, padding="max_length", max_length=n_samples, return_tensors="np")
    return out["input_values"], out.get("attention_mask"), lengths


def n_frames(n_samples, config):
    return n_outputs(n_samples, config.conv_kernel, config.conv_stride)


def feed(config, audio, sample_mask):
    """The graph's inputs."""
    if sample_mask is None:
        return {"audio": audio}
    mask = np.zeros((len(audio), n_frames(audio.shape[1], config)), np.float32)
    for row, n in zip(mask, sample_mask.sum(-1), strict=True):
        row[: n_frames(int(n), config)] = 1
    return {"audio": audio, "frame_mask": mask}


def reference(model, audio, sample_mask=None):
    with torch.no_grad():
        mask = None if sample_mask is None else torch.from_numpy(sample_mask)
        return model(torch.from_numpy(audio), attention_mask=mask).logits.numpy()


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(model, path) of a variant, exported once."""
    folder, made = tmp_path_factory.mktemp("ctc"), {}

    def get(norm, stable, bias, masked):
        key = (norm, stable, bias, masked)
        if key not in made:
            path = folder / ("-".join(map(str, key)) + ".onnx")
            model = tiny_ctc(norm, stable, bias)
            export_ctc(model, path, attention_mask=masked)
            made[key] = (model, path)
        return made[key]

    return get


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("norm", "stable", "bias"), VARIANTS)
def test_padded_batches_have_transformers_logits(exported, norm, stable, bias, masked):
    model, path = exported(norm, stable, bias, masked)
    graph, worst = session(path), 0.0
    for batch, n_samples in itertools.product((1, 2, 4), WINDOW_SAMPLES):
        audio, sample_mask, _ = padded(batch, n_samples, masked)
        wanted = reference(model, audio, sample_mask)
        (found,) = graph.run(None, feed(model.config, audio, sample_mask))
        assert found.shape == wanted.shape == (batch, n_frames(n_samples, model.config), 12)
        assert np.abs(wanted).max() > 1  # logits near zero would agree by chance
        worst = max(worst, float(np.abs(found - wanted).max()))
    assert worst <= LIMIT


@pytest.mark.parametrize("stable", [True, False])
def test_the_mask_makes_padding_harmless_where_it_does_in_transformers(exported, stable):
    model, path = exported("layer", stable, True, True)
    audio, sample_mask, lengths = padded(4, 8000, True)
    (found,) = session(path).run(None, feed(model.config, audio, sample_mask))
    for row, clip, n in zip(found, audio, lengths, strict=True):
        alone = reference(model, clip[None, :n])[0]
        np.testing.assert_allclose(row[: len(alone)], alone, atol=LIMIT, rtol=0)


def test_a_group_norm_sees_the_padding_with_and_without_mask(exported):
    """Not wanted but so in transformers: statistics over time are the padding's too. The graph must not mend it."""
    for masked in (True, False):
        model, path = exported("group", False, False, masked)
        audio, sample_mask, lengths = padded(4, 8000, masked)
        (found,) = session(path).run(None, feed(model.config, audio, sample_mask))
        alone = reference(model, audio[3:, : lengths[3]])[0]
        assert np.abs(found[3, : len(alone)] - alone).max() > 100 * LIMIT


def test_a_clip_without_a_frame_gives_numbers(exported):
    model, path = exported("layer", True, True, True)
    audio = np.zeros((1, 2000), np.float32)
    (found,) = session(path).run(None, feed(model.config, audio, np.zeros((1, 2000), np.int32)))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("norm", "stable", "bias"), VARIANTS)
def test_operators_and_format_are_those_of_old_boards(exported, norm, stable, bias, masked):
    _, path = exported(norm, stable, bias, masked)
    graph = onnx.load(path)
    onnx.checker.check_model(graph, full_check=True)
    assert graph.ir_version <= 8  # onnxruntime 1.10, the last for JetPack 4's Python 3.6
    assert [opset.version for opset in graph.opset_import] == [13]
    assert not FORBIDDEN & {node.op_type for node in graph.graph.node}
    for version in ("8.2", "8.5", "10.3"):
        assert lint_graph(path, load_operators(version)) == len(graph.graph.node)


def test_the_weight_norm_is_folded_into_a_grouped_2d_convolution(exported):
    model, path = exported("layer", True, True, True)
    graph = onnx.load(path).graph
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    found = weights[convolutions[-1].input[1]]
    assert found.shape == (32, 8, 1, 16)  # 32 channels in 4 groups
    np.testing.assert_allclose(found[:, :, 0], model.wav2vec2.encoder.pos_conv_embed.conv.weight.detach(), atol=1e-6)
    assert [len(weights[node.input[1]].shape) for node in convolutions] == [4] * 8
    parameters = sum(p.numel() for p in model.parameters())
    assert path.stat().st_size < 4 * parameters + 60_000  # each weight once


def test_axes_of_any_size_have_names(exported):
    for masked, names in ((True, ["audio", "frame_mask"]), (False, ["audio"])):
        _, path = exported("layer", True, True, masked)
        assert graph_names(path) == (names, ["logits"])
        graph = onnx.load(path).graph
        shapes = {
            value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in [*graph.input, *graph.output]
        }
        expected = {"audio": ["batch", "n_samples"], "frame_mask": ["batch", "n_frames"]}
        assert shapes == {**{name: expected[name] for name in names}, "logits": ["batch", "n_frames", 12]}


@pytest.mark.parametrize(
    "changes",
    [
        {"num_conv_pos_embeddings": 15},  # odd: no frame too many
        {"adapter_attn_dim": 8},  # MMS
        {"conv_dim": (16, 24), "conv_kernel": (10, 4), "conv_stride": (5, 3)},
        {"hidden_act": "relu", "feat_extract_activation": "relu"},
    ],
)
def test_other_shapes_of_the_family(tmp_path, changes):
    model = tiny_ctc(**changes)
    export_ctc(model, tmp_path / "ctc.onnx", attention_mask=True)
    audio, sample_mask, _ = padded(2, 4007, True)
    (found,) = session(tmp_path / "ctc.onnx").run(None, feed(model.config, audio, sample_mask))
    np.testing.assert_allclose(found, reference(model, audio, sample_mask), atol=LIMIT, rtol=0)
    lint_graph(tmp_path / "ctc.onnx", load_operators("8.2"))


@pytest.mark.parametrize("opset", [17, 20])
def test_newer_opsets_are_equal_and_fit_tensorrt_10(tmp_path, opset):
    model = tiny_ctc()
    export_ctc(model, tmp_path / "ctc.onnx", attention_mask=True, opset=opset)
    audio, sample_mask, _ = padded(2, 4007, True)
    (found,) = session(tmp_path / "ctc.onnx").run(None, feed(model.config, audio, sample_mask))
    np.testing.assert_allclose(found, reference(model, audio, sample_mask), atol=LIMIT, rtol=0)
    lint_graph(tmp_path / "ctc.onnx", load_operators("10.3"))
    counts = Counter(node.op_type for node in onnx.load(tmp_path / "ctc.onnx").graph.node)
    assert counts["LayerNormalization"] == 2 * 2 + 2  # two a layer, the projection's, the last; none among features


def test_frames_are_those_of_transformers():
    model = tiny_ctc()
    for n in (400, 401, 719, 720, 16000, 33333):
        assert n_frames(n, model.config) == int(model._get_feat_extract_output_lengths(n))
    assert [n_frames(n, model.config) for n in (0, 1, 399, 400, 720, 16000)] == [0, 0, 0, 1, 2, 49]
    assert [_n_samples_needed(n, model.config) for n in (1, 2, 49)] == [400, 720, 15760]


def test_the_model_is_left_as_it_was(tmp_path):
    model = tiny_ctc().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_ctc(model, tmp_path / "ctc.onnx", attention_mask=True)
    assert model.training
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_large_weights_go_beside_the_graph_and_an_old_file_of_them_goes(tmp_path, exported, monkeypatch):
    model, whole = exported("layer", True, True, True)
    monkeypatch.setattr(onnx_graph, "INLINE_LIMIT_BYTES", 1000)
    export_ctc(model, tmp_path / "ctc.onnx", attention_mask=True)
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ctc.onnx", "ctc.onnx.data"]
    audio, sample_mask, _ = padded(1, 2000, True)
    inputs = feed(model.config, audio, sample_mask)
    np.testing.assert_array_equal(*(session(p).run(None, inputs)[0] for p in (whole, tmp_path / "ctc.onnx")))
    export_ctc(model, tmp_path / "ctc.onnx", attention_mask=True)
    assert [p.name for p in tmp_path.iterdir()] == ["ctc.onnx"]


def test_what_cannot_be_exported_is_named(tmp_path, whisper):
    path = tmp_path / "new" / "ctc.onnx"
    for model, opset, message in (
        (tiny_ctc(), 12, "opset=12 cannot be exported: allowed are 13 to 20; change"),
        (whisper, 13, "model is a WhisperForConditionalGeneration: allowed is Wav2Vec2ForCTC; merge"),
        (tiny_ctc(add_adapter=True), 13, "add_adapter=True cannot be exported: allowed is False, .*; take a model"),
        (tiny_ctc().half(), 13, "dtype=float16: export needs a model in float32; load"),
    ):
        with pytest.raises(UserError, match=message):
            export_ctc(model, path, attention_mask=True, opset=opset)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def trt():
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (pip install tensorrt-rtx-cu12)")


@pytest.mark.parametrize("variant", RELEASED)
def test_tensorrt_rtx_compiles_it_with_a_profile_for_each_window(trt, exported, variant):
    model, path = exported(*variant)
    profiles = []
    for n_samples in WINDOW_SAMPLES:
        sizes = {"audio": n_samples, "frame_mask": n_frames(n_samples, model.config)}
        shapes = {
            name: {bound: (batch, sizes[name]) for bound, batch in (("min", 1), ("opt", 1), ("max", 4))}
            for name in graph_names(path)[0]
        }
        profiles.append(OptimizationProfile(f"{n_samples} samples", shapes))
    built = trt_builder.build_plan(trt, str(path), profiles, configure=lambda config: set_target(trt, config))
    assert memoryview(built.plan).nbytes > 10_000


@pytest.mark.parametrize(("variant", "n_norms"), [(RELEASED[0], 7 + 1 + 5), (RELEASED[1], 1 + 1 + 5)])
def test_every_norm_and_softmax_would_stay_fp32_in_an_fp16_engine(trt, exported, variant, n_norms):
    """Norms: those of the features, the projection's, two a layer and one; 6 parts each. One softmax a layer."""
    _, path = exported(*variant)
    logger = make_logger(trt)
    network, _parser = trt_builder.parse_network(trt, trt.Builder(logger), str(path), logger)
    chosen = trt_builder._sensitive(trt, [network.get_layer(i) for i in range(network.num_layers)], set())
    assert len(chosen) == 6 * n_norms + 2
