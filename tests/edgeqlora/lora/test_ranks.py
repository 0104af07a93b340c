"""Ranks to PEFT's patterns: every name must match exactly one module."""

import json
import re
from pathlib import Path

import pytest

from edgeqlora.errors import UserError
from edgeqlora.lora.ranks import peft_patterns, resolve_ranks

LINEARS = {
    "model.encoder.layers.1.fc1": (128, 64),
    "model.decoder.layers.1.fc1": (128, 64),
    "model.decoder.layers.1.fc2": (64, 128),
}


def test_uniform():
    ranks = resolve_ranks("uniform:8", LINEARS, None)
    assert set(ranks.rank.values()) == {8}
    assert set(ranks.alpha.values()) == {16.0}
    assert peft_patterns(ranks)["rank_pattern"] == {}


def test_pattern_keys_match_one_module_each(tmp_path: Path):
    path = tmp_path / "ranks.json"
    pattern = {"model.encoder.layers.1.fc1": 4, "model.decoder.layers.1.fc1": 2, "model.decoder.layers.1.fc2": 4}
    path.write_text(json.dumps({"schema": "edgeqlora.lora.ranks/1", "rank_pattern": pattern}))
    patterns = peft_patterns(resolve_ranks(str(path), LINEARS, None))
    assert patterns["r"] == 4
    (key,) = patterns["rank_pattern"]
    # PEFT's own rule for keys:
    assert [n for n in LINEARS if re.match(rf"(.*\.)?({key})$", n)] == ["model.decoder.layers.1.fc1"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"schema": "x", "rank_pattern": {}}, "expected schema"),
        ([], "expected schema"),
        (
            {
                "schema": "edgeqlora.lora.ranks/1",
                "rank_pattern": {"model.encoder.layers.1.fc1": 4},
                "alpha_pattern": {"x": 1},
            },
            "alphas are numbers above 0 and below 1e9 of modules in rank_pattern",
        ),
        ({"schema": "edgeqlora.lora.ranks/1", "rank_pattern": {"nothing": 4}}, "is no adapted linear"),
        ({"schema": "edgeqlora.lora.ranks/1", "rank_pattern": {"model.encoder.layers.1.fc1": 65}}, "0 to 64"),
        (
            {"schema": "edgeqlora.lora.ranks/1", "rank_pattern": {"model.encoder.layers.1.fc1": 0}},
            "nothing would be trained",
        ),
    ],
)
def test_bad_ranks_file(tmp_path: Path, content, text):
    path = tmp_path / "ranks.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=text):
        resolve_ranks(str(path), LINEARS, None)


@pytest.mark.parametrize("text", ["uniform:0", "uniform:x", "uniform:2000"])
def test_bad_uniform(text):
    with pytest.raises(UserError, match="1 to 1024"):
        resolve_ranks(text, LINEARS, None)


def test_neither_uniform_nor_file():
    with pytest.raises(UserError, match=r"uniform:8"):
        resolve_ranks("8", LINEARS, None)


def test_a_folded_scale_adds_the_same_and_needs_no_alpha_pattern(tiny_model, clips, command, tmp_path):
    from peft import PeftModel
    from safetensors.torch import load_file

    from edgeqlora.models.family import load_learner

    rank = {"model.encoder.layers.0.fc1": 4, "model.decoder.layers.1.fc2": 2, "model.decoder.layers.0.fc1": 3}
    alpha = {"model.encoder.layers.0.fc1": 8.0, "model.decoder.layers.1.fc2": 1.0}
    content = {"schema": "edgeqlora.lora.ranks/1", "rank_pattern": rank, "alpha_pattern": alpha}
    (tmp_path / "ranks.json").write_text(json.dumps(content))
    line = ["train", "-m", tiny_model, "--train", clips, "--language", "en", "--ranks", tmp_path / "ranks.json"]
    line += ["--steps", 2, "--batch-size", 2, "--learning-rate", 0.1, "--method", "lora"]
    added = {}
    for name, flags in {"plain": [], "folded": ["--fold-scale"]}.items():
        code, said = command(*line, *flags, "-o", tmp_path / name)
        assert code == 0, said
        base = load_learner(str(tiny_model)).model
        before = {key: base.get_submodule(key).weight.clone() for key in rank}
        merged = PeftModel.from_pretrained(base, str(tmp_path / name)).merge_and_unload()
        added[name] = {key: merged.get_submodule(key).weight - before[key] for key in rank}
    for key in rank:
        assert float(added["plain"][key].detach().norm()) > 0.1
        assert float((added["plain"][key] - added["folded"][key]).detach().abs().max()) < 1e-6
    config = json.loads((tmp_path / "folded/adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"]
    assert config["alpha_pattern"] == config["rank_pattern"]
    names = [load_file(tmp_path / name / "adapter_model.safetensors").keys() for name in added]
    assert names[0] == names[1]
    assert json.loads((tmp_path / "folded/ranks.json").read_text())["alpha_pattern"]["model.decoder.layers.1.fc2"] == 1
    code, said = command("merge", tmp_path / "folded", "-o", tmp_path / "m", "--candidate", "original")
    assert code == 0, said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temporal-gate", "layer"], "fold_scale=True with method='qlora' and temporal_gate='layer': allowed with"),
        (["--method", "full"], "fold_scale=True with method='full' and temporal_gate='off': allowed with"),
        (["--method", "ia3"], "fold_scale=True is of LoRA, and method='ia3' has none: allowed with qlora, lora"),
    ],
)
def test_what_has_no_scale_to_fold_is_refused(flags, message, command, tmp_path):
    line = ["train", "-m", "m", "--train", "t", "-o", tmp_path / "a", "--fold-scale"]
    code, said = command(*line, *flags)
    assert code == 2
    assert message in said
