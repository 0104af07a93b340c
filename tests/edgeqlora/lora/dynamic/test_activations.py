"""Entropy of what linears hear: that of `edgeqlora ranks`, and before and after a run."""

import json

import pytest

from edgeqlora.lora.adapters import adapted_linears
from edgeqlora.lora.dynamic.activations import input_entropies
from edgeqlora.models.family import load_learner, load_processor
from edgeqlora.settings import make_settings
from edgeqlora.training.training_data import calibration_clips, drawn, prepare


def test_they_are_those_that_ranks_measures(tiny_model, clips, command, tmp_path):
    code, said = command(
        "ranks", "-m", tiny_model, "--train", clips, "-o", tmp_path / "r.json", "--method", "lora", "--clips", 8
    )
    assert code == 0, said
    scores = json.loads((tmp_path / "r.json").read_text())["scores"]
    from rich.console import Console

    given = {"base_model": str(tiny_model), "train": str(clips), "output": "-", "method": "lora"}
    data = prepare(make_settings(given), load_processor(str(tiny_model)), Console(quiet=True))
    learner = load_learner(str(tiny_model))
    names = [name for group in adapted_linears(learner).values() for name in group]
    found = input_entropies(learner, names, calibration_clips(learner, data, drawn(data.rows, 8)), 8)
    assert set(found) == set(scores)
    for name, entropy in found.items():
        assert entropy == pytest.approx(scores[name]["input_entropy"], rel=1e-3), name


@pytest.mark.parametrize(
    "flags", [["--method", "lora", "--ranks", "flex:4"], ["--method", "full"], ["--ranks", "adalora:4"]]
)
def test_a_run_writes_them_before_and_after(with_pictures, flags, tiny_model, clips, command, tmp_path):
    line = ["train", "-m", tiny_model, "--train", clips, "--language", "en", "--cache", "none", "--steps", 20]
    code, said = command(*line, "--batch-size", 4, "-o", tmp_path / "a", "--entropy-clips", 4, *flags)
    assert code == 0, said
    rows = [json.loads(text) for text in (tmp_path / "a/activations.jsonl").read_text().splitlines()]
    by_step = {step: {r["name"]: r["entropy"] for r in rows if r["step"] == step} for step in {r["step"] for r in rows}}
    assert {0, 20} <= set(by_step)
    assert ("flex:4" in flags) == (len(by_step) > 2)
    assert {len(found) for found in by_step.values()} == {32}
    assert not any("lora" in name or "base_layer" in name for name in by_step[0])
    # The first layer's attention hears the frozen front; what later layers hear has changed.
    first = "model.encoder.layers.0.self_attn.q_proj"
    if "full" not in flags:
        assert by_step[0][first] == by_step[20][first]
    assert sum(by_step[0][name] != by_step[20][name] for name in by_step[0]) > 20
    assert (tmp_path / "a/activations.png").stat().st_size > 5000


def test_too_few_clips_are_refused(tiny_model, clips, command, tmp_path):
    code, said = command("train", "-m", tiny_model, "--train", clips, "-o", tmp_path / "a", "--entropy-clips", 2)
    assert (code, "entropy_clips=2: allowed is 0 (none) or 4 and more" in said) == (2, True), said
