"""Folding gates into constants: the best ones by brute force, exact where gates are constant, said where it costs."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgeqlora.errors import UserError
from edgeqlora.lora.loading import load_adapted, open_adapter
from edgeqlora.lora.temporal import merging
from edgeqlora.lora.temporal.fold import FrameSums
from edgeqlora.lora.temporal.gates import gates_of, save_gates
from edgeqlora.merge import merge
from edgeqlora.models.family import load_learner
from edgeqlora.settings import make_settings
from edgeqlora.train import train
from edgeqlora_export.gates import WEIGHTS, read_gates


@pytest.mark.parametrize("n_gates", [1, 3])
def test_constants_are_those_of_least_squares(n_gates):
    generator = torch.Generator().manual_seed(0)
    n_frames, rank, n_out = 50, 3, 7
    a = torch.randn(n_frames, rank, generator=generator, dtype=torch.float64)
    b = torch.randn(n_out, rank, generator=generator, dtype=torch.float64)
    g = 2 * torch.rand(n_frames, n_gates, generator=generator, dtype=torch.float64)
    sums = FrameSums(b)
    for part in (slice(0, 20), slice(20, 50)):
        sums.add(a[part], g[part] * a[part])
    c, error = sums.constants(n_gates)
    wanted = ((g * a) @ b.T).flatten()
    # One column for each constant: what its ranks would add over all frames.
    columns = [(a[:, [k]] @ b[:, [k]].T).flatten() for k in range(rank)]
    design = torch.stack(columns if n_gates > 1 else [sum(columns)], dim=1)
    expected = torch.linalg.lstsq(design, wanted).solution
    assert torch.allclose(c, expected)
    assert error == pytest.approx(float((design @ expected - wanted).norm() / wanted.norm()))
    assert error > 0.1


def test_an_adapter_that_adds_nothing_has_gate_1_and_no_error():
    sums = FrameSums(torch.zeros(4, 2))
    sums.add(torch.ones(5, 2), torch.ones(5, 2))
    c, error = sums.constants(2)
    assert (c.tolist(), error) == ([1, 1], 0.0)


@pytest.fixture(scope="module")
def adapter(tiny_model, clips, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("fold") / "adapter"
    given = {"base_model": str(tiny_model), "train": str(clips), "dev": str(clips.with_name("dev.jsonl"))}
    run = {"window_s": "1", "steps": 4, "batch_size": 4, "cache": "none", "learning_rate": 2e-2, "ranks": "uniform:4"}
    train(make_settings({**given, **run, "output": str(output), "temporal_gate": "rank"}))
    return output


def with_gates(adapter: Path, folder: Path, weight: float, bias: float) -> Path:
    """A copy of the adapter whose gates have random weights of deviation `weight`, and biases around `bias`."""
    shutil.copytree(adapter, folder)
    learner = load_adapted(open_adapter(adapter), "dequantised")
    torch.manual_seed(1)
    with torch.no_grad():
        for gated in gates_of(learner.model).values():
            gated.gate.weight.normal_(0, weight) if weight else gated.gate.weight.zero_()
            gated.gate.bias.copy_(bias + 0.1 * torch.randn(gated.gate.bias.shape))
    save_gates(learner.model, folder)
    (folder / "card.json").unlink()
    return folder


OF_QLORA = {"method": "qlora", "candidate": "dequantised"}


def test_constant_gates_fold_exactly(adapter, tiny_model, clips, tmp_path):
    said: list[str] = []
    folder = with_gates(adapter, tmp_path / "a", 0, -1.0)
    dev = str(clips.with_name("dev.jsonl"))
    card = merge(folder, tmp_path / "m", dev=dev, base_model=str(tiny_model), say=said.append, **OF_QLORA)
    fold = card["temporal_gate"]["fold"]
    saved = read_gates(folder).linears
    for name, layer in fold["layers"].items():
        assert layer["error"] < 1e-4
        assert layer["gate"] == pytest.approx([2 / (1 + math.exp(-b)) for b in saved[name]["bias"].tolist()], abs=1e-3)
    assert fold["logit_rms"] < 1e-4 * fold["logit_size_rms"]
    assert fold["top1_agreement"] == 1
    assert fold["dev"]["rise"] == 0
    assert any("off by 0.0 % on average" in line for line in said)
    assert not any("Folding costs" in line for line in said)


def test_gates_that_vary_cost_something_and_it_is_said(adapter, tiny_model, clips, tmp_path, monkeypatch):
    folder, said = with_gates(adapter, tmp_path / "a", 8, 0.0), list[str]()
    dev = str(clips.with_name("dev.jsonl"))
    monkeypatch.setattr(merging, "ALLOWED", -1.0)
    card = merge(folder, tmp_path / "m", dev=dev, base_model=str(tiny_model), say=said.append, **OF_QLORA)
    found = card["temporal_gate"]
    assert (found["kind"], found["kept"], found["fold"]["n_clips"]) == ("rank", False, 8)
    assert max(layer["error"] for layer in found["fold"]["layers"].values()) > 0.05
    assert found["fold"]["logit_rms"] > 0
    assert any("Folding costs 0.00 points of WER on dev" in line and "--keep-gates" in line for line in said)
    # What is written is a plain model, which no gate is needed for.
    assert not (tmp_path / "m" / WEIGHTS).exists()
    assert found == json.loads((tmp_path / "m" / "card.json").read_text())["temporal_gate"]


def test_without_dev_clips_nothing_can_be_folded(adapter, tmp_path):
    folder = tmp_path / "a"
    shutil.copytree(adapter, folder)
    card = json.loads((folder / "card.json").read_text())
    card["settings"]["dev"] = card["dev"] = ""
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="there is no dev data: pass --dev, or --keep-gates"):
        merge(folder, tmp_path / "m", candidate="dequantised")
    card = merge(folder, tmp_path / "k", candidate="dequantised", keep_gates=True, say=lambda text: None)
    assert card["temporal_gate"]["kept"]


def test_kept_gates_are_the_adapter_and_cannot_be_tuned_further(adapter, tiny_model, clips, tmp_path, command):
    folder = with_gates(adapter, tmp_path / "a", 8, 0.0)
    merge(folder, tmp_path / "k", base_model=str(tiny_model), keep_gates=True, say=lambda text: None, **OF_QLORA)
    gated = load_adapted(open_adapter(folder, str(tiny_model), "qlora"), "dequantised")
    kept = load_learner(str(tmp_path / "k"))
    inputs = {
        "input_features": torch.randn(2, 80, 100, generator=torch.Generator().manual_seed(0)),
        "decoder_input_ids": torch.tensor([[1, 2, 3, 400]] * 2),
    }
    with torch.no_grad(), gated.window(inputs), kept.window(inputs):
        assert torch.allclose(gated.model.get_base_model()(**inputs).logits, kept.model(**inputs).logits, atol=1e-4)
    code, said = command("train", "-m", tmp_path / "k", "--train", clips, "-o", tmp_path / "x")
    assert code == 2
    assert "it can be evaluated and exported; to tune it further, merge without --keep-gates" in said
    saved = load_file(tmp_path / "k" / WEIGHTS)
    assert {name.rpartition(".")[2] for name in saved} == {"weight", "bias", "lora_A", "lora_B"}
    (tmp_path / "k" / "temporal_gate.json").unlink()
    with pytest.raises(UserError, match=r"has temporal_gate.safetensors and not temporal_gate.json"):
        load_learner(str(tmp_path / "k"))


def test_an_adapter_without_gates_has_none_to_keep(tmp_path, tiny_model, clips):
    given = {"base_model": str(tiny_model), "train": str(clips), "output": str(tmp_path / "a"), "window_s": "1"}
    train(make_settings({**given, "steps": 1, "batch_size": 2, "cache": "none", "learning_rate": 1e-2}))
    with pytest.raises(UserError, match="has no gates in time: leave it out"):
        merge(tmp_path / "a", tmp_path / "m", candidate="dequantised", keep_gates=True)
