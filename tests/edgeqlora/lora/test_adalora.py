"""Runs with PEFT's AdaLoRA: ranks really change, and what is written is the same model as a plain adapter."""

import json

import pytest
import torch
from safetensors.torch import load_file

from edgeqlora.errors import UserError
from edgeqlora.lora import adalora
from edgeqlora.lora.adalora import asked_rank, to_plain_lora
from edgeqlora.lora.entropy import AdapterEntropy
from edgeqlora.lora.pictures import draw_adapters
from edgeqlora.models.family import load_learner
from edgeqlora_export.whisper.windowed import windowed

INPUTS = {
    "input_features": torch.randn(2, 80, 100, generator=torch.Generator().manual_seed(0)),
    "decoder_input_ids": torch.tensor([[1, 2, 3, 400]] * 2),
}


def logits(model):
    with torch.no_grad(), windowed(model, 1.0):
        return model.get_base_model()(**INPUTS).logits


@pytest.mark.parametrize("method", ["qlora", "lora"])
def test_ranks_are_taken_away_in_training_and_the_adapter_is_plain(
    method, tiny_model, clips, command, tmp_path, monkeypatch
):
    calls = []
    update = adalora.Allocation.on_optimizer_step

    def counted(self, args, state, control, **kwargs):
        calls.append(state.global_step)
        update(self, args, state, control, **kwargs)

    monkeypatch.setattr(adalora.Allocation, "on_optimizer_step", counted)
    line = ["train", "-m", tiny_model, "--train", clips, "--dev", clips.parent / "dev.jsonl", "--language", "en"]
    line += ["--cache", "none", "--method", method, "--ranks", "adalora:4", "-o", tmp_path / "a", "--eval-every", 15]
    code, said = command(*line, "--steps", 30, "--batch-size", 4, "--choose-by", "loss")
    assert code == 0, said
    assert calls == list(range(30))
    ranks = json.loads((tmp_path / "a/ranks.json").read_text())
    n_linears = 2 * 6 + 2 * 10
    assert json.loads((tmp_path / "a/card.json").read_text())["best_step"] == 30  # at 15 it has more than it may keep
    assert sum(ranks["rank_pattern"].values()) == 4 * n_linears
    assert len(set(ranks["rank_pattern"].values())) > 1
    rows = [json.loads(line) for line in (tmp_path / "a/adapters.jsonl").read_text().splitlines()]
    at = {step: {row["name"]: row["rank"] for row in rows if row["step"] == step} for step in (15, 30)}
    assert sum(at[15].values()) > sum(at[30].values())
    assert {name: rank for name, rank in at[30].items() if rank} == ranks["rank_pattern"]
    assert all(row["effective_rank"] <= max(1, row["rank"]) + 1e-4 and row["group"] for row in rows)
    saved = load_file(tmp_path / "a/adapter_model.safetensors")
    assert not [name for name in saved if "lora_E" in name]
    assert json.loads((tmp_path / "a/adapter_config.json").read_text())["peft_type"] == "LORA"
    code, said = command("evaluate", tmp_path / "a", "-d", clips, "--worst", 0)
    assert code == 0, said
    code, said = command(
        "merge", tmp_path / "a", "-o", tmp_path / "m", "--candidate", "original" if method == "lora" else "dequantised"
    )
    assert code == 0, said


def test_the_plain_adapter_says_what_adalora_says(tiny_model, tmp_path):
    from peft import PeftModel, get_peft_model

    torch.manual_seed(0)
    learner = load_learner(str(tiny_model))
    linears = {
        name: tuple(m.weight.shape) for name, m in learner.model.named_modules() if name.endswith(("q_proj", "fc1"))
    }
    model = get_peft_model(learner.model, adalora.adalora_config(4, linears, 50, 0.0))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_E" in name:
                p.copy_(torch.randn(p.shape))
                p[::2] = 0.0  # as the allocator does
            if "encoder.layers.0.fc1.lora_E" in name:
                p.zero_()
    wanted = logits(model.eval())
    states = list(AdapterEntropy(model).states())
    assert {(s.name, s.rank, s.effective_rank) for s in states if not s.rank} == {
        ("model.encoder.layers.0.fc1", 0, 0.0)
    }
    assert {s.rank for s in states} == {0, 3}
    rows = [{"step": step, "group": "encoder", **s._asdict()} for step in (1, 2) for s in states]
    assert draw_adapters(rows, tmp_path / "adapters.jsonl")
    model.save_pretrained(tmp_path)
    content = to_plain_lora(tmp_path)
    assert set(content["rank_pattern"].values()) == {3}
    assert "model.encoder.layers.0.fc1" not in content["rank_pattern"]
    again = PeftModel.from_pretrained(load_learner(str(tiny_model)).model, str(tmp_path)).eval()
    # PEFT divides by the rank plus 1e-5.
    assert torch.allclose(logits(again), wanted, atol=1e-4)


def test_an_adapter_of_which_nothing_is_left_is_refused(tiny_model, tmp_path):
    from peft import get_peft_model

    model = get_peft_model(load_learner(str(tiny_model)).model, adalora.adalora_config(4, {"fc1": (64, 64)}, 50, 0.0))
    model.save_pretrained(tmp_path)  # every E is 0 before the first step
    with pytest.raises(UserError, match="AdaLoRA kept no direction: train for more steps"):
        to_plain_lora(tmp_path)


def test_what_it_cannot_do_is_refused(tiny_model, clips, command, tmp_path):
    line = ["train", "-m", tiny_model, "--train", clips, "-o", tmp_path / "a", "--cache", "none"]
    for flags, text in (
        (["--ranks", "adalora:4", "--steps", 10], "in 10 steps: allowed is 20 or more"),
        (["--ranks", "adalora:64", "--steps", 30], "allowed is at most 63, since it begins with more"),
        (["--ranks", "adalora:x"], "must be a whole number from 2 to 256"),
        (
            ["--ranks", "adalora:4", "--steps", 30, "--patience", 2, "--dev", clips.parent / "dev.jsonl"],
            "before its ranks are found no checkpoint counts",
        ),
        (["--ranks", "adalora:4", "--steps", 30, "--resume"], "is in no checkpoint; start anew"),
    ):
        code, said = command(*line, *flags)
        assert (code, text in said) == (2, True), said
    assert asked_rank("uniform:8") is None
    with pytest.raises(UserError):
        asked_rank("adalora:1")
