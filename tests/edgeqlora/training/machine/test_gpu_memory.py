"""The formula of GPU memory against what can be counted without a GPU: parameters, packed weights, optimiser states."""

import math

import pytest
import torch

from edgeqlora.lora.adapters import _stored_bytes, with_adapters
from edgeqlora.models.family import load_learner
from edgeqlora.settings import make_settings
from edgeqlora.training.machine.gpu_memory import (
    Sizes,
    activation_bytes,
    adapter_bytes,
    base_bytes,
    n_parameters,
    step_bytes,
)

SMALL = Sizes(768, 12, 12, 3072, 80, 51865)
LARGE_V3 = Sizes(1280, 32, 32, 5120, 128, 51866)


@pytest.fixture(scope="module")
def sizes(tiny_model) -> Sizes:
    from transformers import AutoConfig

    c = AutoConfig.from_pretrained(tiny_model)
    return Sizes(
        c.d_model, c.encoder_layers, c.decoder_layers, c.encoder_ffn_dim, c.num_mel_bins, c.vocab_size,
        c.max_source_positions, c.max_target_positions,
    )  # fmt: skip


@pytest.mark.parametrize(("model", "n"), [(SMALL, 241_734_912), (LARGE_V3, 1_543_490_560)])
def test_parameters_of_the_published_models(model: Sizes, n: int) -> None:
    assert n_parameters(model) == n


def test_base_and_adapters_are_what_the_modules_hold(tiny_model, sizes, tmp_path) -> None:
    learner = load_learner(str(tiny_model), quantise=True, dtype="bfloat16")
    assert base_bytes(sizes) == pytest.approx(_stored_bytes(learner.model), rel=1e-3)
    given = {"base_model": str(tiny_model), "train": "x", "output": "y", "ranks": "uniform:4"}
    with_adapters(make_settings(given), learner, 10)
    adapters = [p for p in learner.model.parameters() if p.requires_grad]
    assert sum(n_in * 4 + 4 * n_out for n_in, n_out in sizes.linears()) == sum(p.numel() for p in adapters)


@pytest.mark.parametrize("n_in", [256, 512, 4100])  # of rank 8: states in fp32, from 4096 numbers on in 8 bits
def test_optimiser_states_are_those_of_bitsandbytes(n_in: int) -> None:
    import bitsandbytes

    weight = torch.nn.Parameter(torch.randn(8, n_in))
    optimiser = bitsandbytes.optim.AdamW8bit([weight])
    weight.grad = torch.randn_like(weight)
    optimiser.step()
    own = [v for k, v in optimiser.state[weight].items() if isinstance(v, torch.Tensor) and not k.startswith("qmap")]
    held = sum(state.numel() * state.element_size() for state in own)
    # Six linears of n_in x n_in have two such matrices each.
    one = Sizes(n_in, 1, 0, n_in, 80, 100)
    assert adapter_bytes(one, 8) == 6 * 2 * (10 * weight.numel() + held)


def test_states_of_large_matrices_are_paged() -> None:
    n = 1280 * 128  # 163,840 numbers, rank 128
    sizes = Sizes(1280, 1, 0, 1280, 80, 100)
    assert adapter_bytes(sizes, 128) - adapter_bytes(sizes, 128, paged=True) == 6 * 2 * 2 * n
    assert adapter_bytes(SMALL, 8) == adapter_bytes(SMALL, 8, paged=True)


def test_activations_by_hand() -> None:
    """width 4, ffn 8, rank 1, one encoder layer, one position: the sum of docs/training.md."""
    sizes = Sizes(4, 1, 0, 8, 80, 100)
    norms, bf16, gelu, second = 3 * 4 * 4, (3 + 4 + 1) * 2 * 4, 4 * 8, 2 * 8
    assert activation_bytes(sizes, 1, 1, 0) == norms + bf16 + gelu + second + 6 * 2 * 1


def test_what_the_memory_grows_with() -> None:
    a = step_bytes(SMALL, batch=8, window_s=2, n_tokens=20)
    b = step_bytes(SMALL, batch=16, window_s=2, n_tokens=20)
    c = step_bytes(SMALL, batch=8, window_s=30, n_tokens=20)
    d = step_bytes(SMALL, batch=8, window_s=30, n_tokens=20, checkpointing=True)
    assert b.base == a.base
    assert b.activations == 2 * a.activations
    assert 10 < c.activations / a.activations < 15
    assert d.activations < 0.25 * c.activations
    assert a.logits == 8 * 20 * 51865 * 12
    assert a.total == sum(a)
    assert math.isclose(base_bytes(SMALL) / 2**20, 181, abs_tol=1)


def test_activations_are_what_autograd_keeps(tiny_model, sizes, monkeypatch) -> None:
    """Of the real training model under bf16 autocast; on CUDA that computes norms in fp32, so here they are made to."""
    rank, batch, window_s, n_tokens = 8, 2, 4.0, 30
    learner = load_learner(str(tiny_model), quantise=True, dtype="bfloat16")
    with_adapters(make_settings({"base_model": str(tiny_model), "train": "x", "output": "y"}), learner, 10)
    layer_norm = torch.nn.functional.layer_norm

    def in_fp32(x, shape, weight, bias, eps):
        with torch.autocast("cpu", enabled=False):
            return layer_norm(x.float(), shape, weight.float(), bias.float(), eps)

    monkeypatch.setattr(torch.nn.functional, "layer_norm", in_fp32)
    parameters = {p.untyped_storage().data_ptr() for p in learner.model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # by address: alive as long as they are here

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (address := tensor.untyped_storage().data_ptr()) not in parameters:
            kept[address] = tensor
        return tensor

    inputs = {
        "input_features": torch.randn(batch, sizes.n_mels, round(100 * window_s)),
        "decoder_input_ids": torch.zeros(batch, n_tokens, dtype=torch.long),
    }
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with learner.window(inputs), torch.autocast("cpu", dtype=torch.bfloat16), hooks:
        learner.model.train()(**inputs)
    copies = 2 * sum(p.numel() for p in learner.model.parameters() if p.requires_grad)  # counted with the adapters
    counted = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) - copies
    formula = batch * activation_bytes(sizes, rank, round(50 * window_s), n_tokens)
    assert counted == pytest.approx(formula, rel=0.06)
