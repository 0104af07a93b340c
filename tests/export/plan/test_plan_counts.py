"""Counts of a model's graphs against the formulas of its layers, and what is concluded from them."""

import pytest
from transformers import Wav2Vec2Config, WhisperConfig

from edgeqlora_export.plan.estimate import estimate
from edgeqlora_export.plan.skeletons import Found, Sizes, look_at, read_sizes
from edgeqlora_export.plan.work import Work

D, FFN, V, POSITIONS = 64, 160, 700, 40


@pytest.fixture(scope="module")
def sizes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    WhisperConfig(
        d_model=D, encoder_layers=4, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=FFN,
        decoder_ffn_dim=FFN, vocab_size=V, max_source_positions=200, max_target_positions=POSITIONS, num_mel_bins=80,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0,
    ).save_pretrained(folder)  # fmt: skip
    return read_sizes(folder)


def look(sizes, folder, **changed):
    asked = {
        "opset": 13, "for_cpu": False, "int8": False, "windows_s": [1.0, 2.0], "threads": 1, "say": lambda text: None,
    }  # fmt: skip
    return look_at(sizes, folder, **{**asked, **changed})


def encoder_flop(window_s):
    n = int(window_s * 50)
    conv = 2 * n * 3 * 80 * D + n * 3 * D * D
    layer = n * (4 * D * D + 2 * D * FFN) + 2 * n * n * D
    return 2 * (conv + 4 * layer + 2 * 2 * n * D * D)


def test_sizes_are_read_without_weights(sizes):
    assert (sizes.model_type, sizes.encoder_layers, sizes.decoder_layers, sizes.longest_window_s) == (
        "whisper",
        4,
        2,
        4.0,
    )
    attention, mlp = 4 * D * D + 3 * D, 2 * D * FFN + D + FFN
    own = 4 * (attention + mlp + 4 * D) + 2 * (2 * attention + mlp + 6 * D) + (V + POSITIONS + 200) * D + 4 * D
    assert sizes.parameters == own + 80 * D * 3 + D + D * D * 3 + D


@pytest.mark.parametrize("for_cpu", [False, True])
def test_the_work_is_that_of_the_layers_in_both_forms_of_the_graphs(sizes, tmp_path, for_cpu):
    found = look(sizes, tmp_path, for_cpu=for_cpu)
    for window_s, one in found.items():
        assert one.work["encoder"].flop == encoder_flop(window_s)
        n, n_past = int(window_s * 50), 32 if for_cpu else 2  # a buffer of 32, or the prompt
        token = 2 * (6 * D * D + 2 * D * FFN + 2 * n * D + 2 * (n_past + 1) * D) + V * D
        assert one.work["decoder"].flop == 2 * token
        assert (one.encoder_ms is not None) == for_cpu
    assert found[1.0].weight_bytes == found[2.0].weight_bytes
    assert 4 * sizes.parameters < found[1.0].weight_bytes < 4 * sizes.parameters + 100_000, (
        "and tables, and the graphs themselves"
    )


def test_few_layers_tell_of_all(sizes, tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "few").mkdir()
    whole, few = look(sizes, tmp_path / "whole"), look(sizes, tmp_path / "few", whole_parameters=0)
    for window_s in (1.0, 2.0):
        a, b = whole[window_s], few[window_s]
        assert b.work["encoder"].flop == a.work["encoder"].flop
        assert b.work["decoder"].flop == a.work["decoder"].flop
        assert b.work["encoder"].moved_bytes == pytest.approx(a.work["encoder"].moved_bytes)
        assert b.weight_bytes == pytest.approx(a.weight_bytes, rel=0.01)


def test_a_ctc_model_has_one_graph(tmp_path):
    (tmp_path / "config").mkdir()
    Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=5, num_attention_heads=2, intermediate_size=64, vocab_size=30, conv_dim=(16, 16), conv_kernel=(10, 3),
        conv_stride=(5, 2), num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, num_feat_extract_layers=2,
    ).save_pretrained(tmp_path / "config")  # fmt: skip
    sizes = read_sizes(tmp_path / "config")
    assert (sizes.encoder_layers, sizes.decoder_layers) == (5, 0)
    for name, whole in (("whole", 1e9), ("few", 0)):
        (tmp_path / name).mkdir()
        found = look(sizes, tmp_path / name, windows_s=[1.0], whole_parameters=whole)
        if name == "whole":
            wanted = found[1.0].work["ctc"].flop
    assert found[1.0].work["ctc"].flop == wanted > 0


PROFILE = {
    "name": "board", "memory_budget_mib": 1000, "workspace_mib": 256, "gpu_cores": 128, "memory_bandwidth_gbs": 25.0,
    "default_power_mode": "MAXN", "power_modes": [{"name": "5W", "gpu_max_mhz": 640}, {"name": "MAXN", "gpu_max_mhz": 1000}],
}  # fmt: skip


def sized(weight_bytes=40e6):
    class Config:
        d_model, max_source_positions, max_target_positions = 64, 200, 40

    work = {"encoder": Work(7e9, 1e8, 3e6), "decoder": Work(1e7, 6e7, 1e5)}
    return Sizes("whisper", Config, 4, 2, 10_000_000, 4.0), Found(weight_bytes, work, None, None, None)


def test_a_boards_time_is_that_of_the_nearer_limit():
    row = estimate(*sized(), PROFILE, 4.0, "fp16", 1)
    assert row["peak_gflops"] == 2 * 2 * 128
    assert row["encoder_ms"] == pytest.approx(1e3 * 7e9 / (0.35 * 512e9))
    assert row["token_ms"] == pytest.approx(1e3 * 3e7 / (0.6 * 25e9))
    assert row["limits"] == {"encoder": "arithmetic", "token": "memory bandwidth"}
    assert row["memory"]["weights"] == pytest.approx(20e6 / 2**20)
    assert row["memory"]["keys and values"] == pytest.approx(2 * 2 * 2 * 64 * 240 / 2**20)
    assert row["memory_mib"] == pytest.approx(sum(row["memory"].values()))
    assert (row["fits"], row["n_tokens"]) == (True, 12)
    assert row["real_time_factor"] == pytest.approx((row["encoder_ms"] + 12 * row["token_ms"]) / 4000)
    short = estimate(*sized(), PROFILE, 1.0, "fp16", 1)
    assert short["memory"]["keys and values"] == pytest.approx(2 * 2 * 2 * 64 * (50 + 40) / 2**20)
    single = estimate(*sized(), PROFILE, 4.0, "fp32", 1)
    assert single["encoder_ms"] == pytest.approx(2 * row["encoder_ms"])


def test_what_is_not_known_is_null_with_its_reason():
    few = {key: value for key, value in PROFILE.items() if key not in ("gpu_cores", "memory_budget_mib", "power_modes")}
    row = estimate(*sized(), few, 4.0, "fp16", 1)
    assert (row["encoder_ms"], row["fits"]) == (None, None)
    assert row["reasons"]["encoder_ms"] == "the profile board has no gpu_cores and no gpu_max_mhz of its power mode"
    assert row["reasons"]["fits"] == "the profile board names no memory_budget_mib"


@pytest.mark.parametrize(
    ("weights", "precision", "batch", "advice"),
    [
        (4.4e9, "fp16", 1, "its weights alone do not: a smaller model"),
        (4.0e8, "fp32", 1, "--precision fp16 would fit"),
        (1.2e9, "fp32", 1, "its weights alone do not"),
        (7.2e8, "fp16", 1, "a shorter --window-s takes less"),
    ],
)
def test_what_does_not_fit_comes_with_a_way_out(weights, precision, batch, advice):
    row = estimate(*sized(weights), PROFILE, 4.0, precision, batch)
    assert row["fits"] is False
    assert row["advice"].startswith(advice)
