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
