"""Entropy of adapters against the singular values it stands for, its gradient against torch's, and runs with it."""

import json
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model

from edgeqlora.lora.entropy import CAP, GATE, AdapterEntropy
from edgeqlora.models.family import load_learner


@pytest.fixture
def model(tiny_model):
    torch.manual_seed(0)
    model = load_learner(str(tiny_model)).model
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "fc2"], rank_pattern={"fc2": 6})
    model = get_peft_model(model, config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.copy_(0.1 * torch.randn(p.shape))
    return model


def entropy_of(update):
    shares = torch.linalg.svdvals(update.double()) ** 2
    shares = shares / shares.sum()
    return -math.log(float((shares**2).sum()))


def test_entropy_and_size_are_those_of_the_singular_values(model):
    states = {state.name: state for state in AdapterEntropy(model).states()}
    modules = dict(model.get_base_model().named_modules())
    assert len(states) == 6 + 4
    for name, state in states.items():
        module = modules[name]
        update = module.get_delta_weight("default").detach()
        assert state.entropy == pytest.approx(entropy_of(update), abs=1e-4)
        assert state.rank == (6 if name.endswith("fc2") else 4)
        assert 1 <= state.effective_rank <= state.rank
        assert state.relative_size == pytest.approx(
            float(update.norm() / module.get_base_layer().weight.norm()), rel=1e-4
        )


def test_before_training_there_is_no_entropy_and_no_push(tiny_model):
    model = get_peft_model(load_learner(str(tiny_model)).model, LoraConfig(r=4, target_modules=["q_proj"]))
    entropy = AdapterEntropy(model)
    assert {(state.entropy, state.relative_size) for state in entropy.states()} == {(0.0, 0.0)}
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    assert entropy.add_gradient(1.0, 2.0) == 0.0


@pytest.mark.parametrize("weight", [1e-6, -1e-6])
def test_the_gradient_is_that_of_the_formula(model, weight):
    """torch differentiates the penalty, the gates held fixed; both signs, below the cap."""
    adapters = [(n, m) for n, m in model.get_base_model().named_modules() if "default" in getattr(m, "lora_A", {})]
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = sum(p.numel() for p in parameters)
    penalty = 0.0
    for _, module in adapters:
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        product = (a @ a.T) @ (b.T @ b)
        t1 = product.trace()
        u = float(module.scaling["default"] * t1.detach().sqrt() / module.get_base_layer().weight.norm())
        entropy = 2 * t1.log() - (product * product.T).sum().log()
        if weight > 0:
            entropy = torch.relu(entropy - math.log(2.0))
        penalty = penalty + (a.numel() + b.numel()) / total * u * u / (u * u + GATE**2) * entropy
    wanted = torch.autograd.grad(weight * penalty, parameters)
    for p in parameters:
        p.grad = torch.ones_like(p)
    share = AdapterEntropy(model).add_gradient(weight, 2.0)
    assert 0 < share < CAP
    for p, gradient in zip(parameters, wanted, strict=True):
        assert torch.allclose(p.grad - 1.0, gradient, rtol=1e-3, atol=2e-7)


def test_its_gradient_is_held_to_a_share_of_the_loss(model):
    parameters = [p for p in model.parameters() if p.requires_grad]
    for p in parameters:
        p.grad = torch.full_like(p, 1e-3)
    before = math.sqrt(sum(float(p.grad.square().sum()) for p in parameters))
    share = AdapterEntropy(model).add_gradient(1.0, 2.0)
    added = math.sqrt(sum(float((p.grad - 1e-3).square().sum()) for p in parameters))
    assert share == pytest.approx(CAP, rel=1e-4)
    assert added == pytest.approx(CAP * before, rel=1e-3)


@pytest.mark.parametrize(("weight", "rises"), [(1.0, False), (-1.0, True)])
def test_descent_moves_entropy_the_way_that_was_asked(model, weight, rises):
    entropy = AdapterEntropy(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    before = [state.entropy for state in entropy.states()]
    sizes = [state.relative_size for state in entropy.states()]
    for _ in range(200):
        for p in parameters:
            p.grad = torch.full_like(p, 1e-9)  # so that there is something to be a share of
        entropy.add_gradient(weight, 2.0)
        added = [p.grad - 1e-9 for p in parameters]
        norm = max(math.sqrt(sum(float(step.square().sum()) for step in added)), 1e-30)
        with torch.no_grad():
            for p, step in zip(parameters, added, strict=True):
                p -= 0.05 * step / norm
    after = [state.entropy for state in entropy.states()]
    assert (sum(after) > sum(before) + 0.1) if rises else (sum(after) < sum(before) - 0.1)
    if not rises:
        assert min(after) > math.log(2.0) - 0.15, "no further than two directions"
    # Scale-invariant: sizes move little.
    for one, other in zip(sizes, [state.relative_size for state in entropy.states()], strict=True):
        assert other == pytest.approx(one, rel=0.35)


def test_a_run_pushes_entropy_and_writes_what_became_of_it(with_pictures, tiny_model, clips, command, tmp_path):
    line = ["train", "-m", tiny_model, "--train", clips, "--dev", clips.parent / "dev.jsonl", "--language", "en"]
    line += ["--cache", "none", "--steps", 20, "--eval-every", 10, "--batch-size", 4, "--learning-rate", "1e-2"]
    ends = {}
    for name, weight in (("spread", -1), ("plain", 0), ("narrow", 1)):
        code, said = command(*line, "--entropy-weight", weight, "-o", tmp_path / name)
        assert code == 0, said
        rows = [json.loads(text) for text in (tmp_path / name / "adapters.jsonl").read_text().splitlines()]
        assert {row["step"] for row in rows} == {10, 20}
        assert {row["group"] for row in rows} == {"encoder", "decoder", "cross"}
        assert len(rows) == 2 * 32
        assert (tmp_path / name / "adapters.png").stat().st_size > 5000
        ends[name] = sum(row["entropy"] for row in rows if row["step"] == 20)
    assert ends["narrow"] < ends["plain"] < ends["spread"]
    code, said = command(*line, "--entropy-weight", 1, "--method", "full", "-o", tmp_path / "x")
    assert (code, "entropy_weight=1 is of LoRA adapters" in said) == (2, True), said
