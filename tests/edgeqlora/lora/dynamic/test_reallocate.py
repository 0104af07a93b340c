"""Ranks that move in training: nothing else changes, the optimiser follows, and a run goes on after a stop."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from edgeqlora.lora.dynamic.reallocate import Reallocation, ranks_in
from edgeqlora.lora.ranks import Ranks
from edgeqlora.models.family import load_learner
from edgeqlora.settings import make_settings
from edgeqlora.train import train
from edgeqlora_export.whisper.windowed import windowed

INPUTS = {
    "input_features": torch.randn(2, 80, 100, generator=torch.Generator().manual_seed(0)),
    "decoder_input_ids": torch.tensor([[1, 2, 3, 400]] * 2),
}


class To:
    """A rule that gives these ranks."""

    def __init__(self, ranks, kept_by="values"):
        self.ranks_now, self.kept_by = ranks, kept_by

    def steps(self, n_steps):
        return [5]

    def ranks(self, adapters, budget, progress):
        self.seen = {one.layer.name: one for one in adapters}
        return {one.layer.name: self.ranks_now.get(one.layer.name, one.rank) for one in adapters}


@pytest.fixture
def run(tiny_model):
    """A model after five steps of Adam: (model, optimiser, ranks, a function that gives its loss)."""
    torch.manual_seed(0)
    model = get_peft_model(
        load_learner(str(tiny_model)).model, LoraConfig(r=4, lora_alpha=8, target_modules=["fc1", "q_proj"])
    )
    names = [n for n, m in model.get_base_model().named_modules() if hasattr(m, "lora_A")]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)

    def loss():
        with windowed(model.get_base_model(), 1.0):
            logits = model.get_base_model()(**INPUTS).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.arange(8))

    for _ in range(5):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    optimizer.zero_grad()
    ranks = Ranks(dict.fromkeys(names, 4), dict.fromkeys(names, 8.0), "")
    return model, optimizer, ranks, loss


def mover(model, rule, ranks):
    return Reallocation(model, rule, ranks, lambda name: "all", 25, 0, lambda step, lost: None)


def updates(model, ranks):
    modules = dict(model.get_base_model().named_modules())
    return {name: modules[name].get_delta_weight("default").detach().clone() for name in ranks.rank}


def test_equal_ranks_and_new_ones_change_nothing_that_the_model_says(run):
    model, optimizer, ranks, loss = run
    grown = dict(zip(ranks.rank, [4, 5, 7, 4, 9], strict=False))
    before, added = loss().item(), updates(model, ranks)
    lost = mover(model, To(grown), ranks).move(5, optimizer)
    assert set(lost.values()) == {0.0}
    assert loss().item() == pytest.approx(before, abs=1e-5)
    modules = dict(model.get_base_model().named_modules())
    for name, update in updates(model, ranks).items():
        assert torch.allclose(update, added[name], atol=1e-6)
        rank = grown.get(name, 4)
        a, b = (getattr(modules[name], part)["default"].weight.detach() for part in ("lora_A", "lora_B"))
        assert (a.shape[0], b.shape[1], modules[name].r["default"]) == (rank, rank, rank)
        gram = a @ a.T
        assert torch.allclose(gram, gram[0, 0] * torch.eye(rank), atol=1e-4 * float(gram[0, 0])), (
            "rows stand at right angles"
        )
        assert not b[:, 4:].any()
    loss().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters() if p.requires_grad)
    assert all(modules[n].lora_B["default"].weight.grad[:, 4:].abs().sum() > 0 for n, r in grown.items() if r > 4)
    optimizer.step()


def test_what_is_taken_out_is_the_smallest_directions_and_their_energy_is_told(run):
    model, optimizer, ranks, _ = run
    added = updates(model, ranks)
    lost = mover(model, To(dict.fromkeys(ranks.rank, 2)), ranks).move(5, optimizer)
    for name, update in updates(model, ranks).items():
        values = torch.linalg.svdvals(added[name].double())
        assert float((update - added[name]).norm()) == pytest.approx(float(values[2:4].norm()), rel=1e-3)
        assert lost[name] == pytest.approx(float(values[2:4].square().sum() / values.square().sum()), rel=1e-3)


def test_the_mean_gradient_of_adam_is_that_of_the_new_weights(run):
    """Where it was the gradient itself before the move, it is so after it."""
    model, optimizer, ranks, loss = run
    trained = [p for p in model.parameters() if p.requires_grad]
    for p, gradient in zip(trained, torch.autograd.grad(loss(), trained), strict=True):
        optimizer.state[p]["exp_avg"] = gradient.clone()
    rule = To({}, "importance")
    mover(model, rule, ranks).move(5, optimizer)
    for p, gradient in zip(trained, torch.autograd.grad(loss(), trained), strict=True):
        assert torch.allclose(optimizer.state[p]["exp_avg"], gradient, atol=1e-4 * float(gradient.abs().max()) + 1e-8)
        assert optimizer.state[p]["exp_avg_sq"].min() >= 0
    # Importance is the first-order change of the loss when a direction goes: here against a small step of it.
    name = "model.encoder.layers.1.fc1"
    module = dict(model.get_base_model().named_modules())[name]
    before, direction = loss().item(), 0
    with torch.no_grad():
        module.lora_B["default"].weight[:, direction] *= 1 - 1e-2
    change = (loss().item() - before) / -1e-2
    # Twice: the sum has the part of A and that of B, which are equal.
    assert rule.seen[name].importance[direction] == pytest.approx(2 * abs(change), rel=0.1)


LINE = ["--language", "en", "--cache", "none", "--steps", 25, "--batch-size", 4, "--learning-rate", "1e-2"]


@pytest.mark.parametrize("ranks", ["flex:4", "uniform:4"])
def test_a_run_moves_ranks_and_what_it_writes_is_a_plain_adapter(
    with_pictures, ranks, tiny_model, clips, command, tmp_path
):
    line = [
        "train",
        "-m",
        tiny_model,
        "--train",
        clips,
        "--dev",
        clips.parent / "dev.jsonl",
        *LINE,
        "-o",
        tmp_path / "a",
    ]
    code, said = command(*line, "--ranks", ranks, *(["--reallocate"] if ranks == "uniform:4" else []))
    assert code == 0, said
    written = json.loads((tmp_path / "a/ranks.json").read_text())
    rank = written["rank_pattern"]
    assert rank == ranks_in(tmp_path / "a")
    assert min(rank.values()) >= 2
    assert len(set(rank.values())) > 1
    saved = load_file(tmp_path / "a/adapter_model.safetensors")
    trained = json.loads((tmp_path / "a/card.json").read_text())["figures"]["trainable_parameters"]["value"]
    assert 0.999 * trained <= sum(weight.numel() for weight in saved.values()) <= trained
    assert all(written["alpha_pattern"][name] == 2 * value for name, value in rank.items())
    rows = [json.loads(text) for text in (tmp_path / "a/adapters.jsonl").read_text().splitlines()]
    moved = {row["step"] for row in rows if "taken_out" in row}
    assert moved == ({5, 10, 15} if ranks == "uniform:4" else {2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
    best = json.loads((tmp_path / "a/card.json").read_text())["best_step"]
    assert {row["name"]: row["rank"] for row in rows if row["step"] == best} == rank
    assert (tmp_path / "a/adapters-ranks.png").stat().st_size > 5000
    code, said = command("evaluate", tmp_path / "a", "-d", clips, "--worst", 0)
    assert code == 0, said
    code, said = command("merge", tmp_path / "a", "-o", tmp_path / "m", "--candidate", "dequantised")
    assert code == 0, said
    # The ranks that were found can be given to another run.
    code, said = command(*line[:-1], tmp_path / "b", "--ranks", tmp_path / "a/ranks.json")
    assert code == 0, said
    assert ranks_in(tmp_path / "b") == rank


def test_a_run_that_was_stopped_between_moves_ends_with_the_same_adapter(tiny_model, clips, tmp_path):
    given = {
        "base_model": str(tiny_model),
        "train": str(clips),
        "dev": str(clips.parent / "dev.jsonl"),
        "language": "en",
    }
    given |= {"steps": 25, "batch_size": 4, "learning_rate": 1e-2, "cache": "none", "ranks": "flex:4", "eval_every": 6}
    train(make_settings({**given, "output": str(tmp_path / "straight")}), quiet=True)

    def stop(step, figures):
        if step == 12:
            raise KeyboardInterrupt

    settings = make_settings({**given, "output": str(tmp_path / "stopped")})
    with pytest.raises(KeyboardInterrupt):
        train(settings, watch=stop, quiet=True)
    train(settings, resume=True, quiet=True)
    for name in ("adapter_model.safetensors", "ranks.json", "adapters.jsonl", "adapter_config.json"):
        one, other = ((tmp_path / folder / name).read_bytes() for folder in ("straight", "stopped"))
        assert one == other, name


def test_what_it_cannot_do_is_refused(tiny_model, clips, command, tmp_path, monkeypatch):
    line = ["train", "-m", tiny_model, "--train", clips, "-o", tmp_path / "a", "--cache", "none", "--batch-size", 4]
    for flags, text in (
        (["--ranks", "flex:4", "--steps", 10], "steps=10 and ranks that move: allowed is 20 steps or more"),
        (["--ranks", "flex:x", "--steps", 30], "the rank after 'flex:' must be a whole number from 1 to 1024"),
        (
            ["--ranks", "flex:4", "--reallocate"],
            "allowed is it with method qlora or lora, and ranks uniform:R or a ranks.json",
        ),
        (["--method", "full", "--reallocate"], "reallocate=True with method='full'"),
        (
            ["--reallocate", "--optimizer", "paged-adamw-8bit"],
            "its packed state cannot follow them; allowed are auto, adamw",
        ),
    ):
        code, said = command(*line, *flags)
        assert (code, text in said) == (2, True), said
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, said = command(*line, "--reallocate", "--steps", 30)
    assert (code, "2 processes and ranks that move" in said) == (2, True), said
