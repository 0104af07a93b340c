"""Checkpoint state without pickle: what is read is what was written."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeqlora.errors import UserError
from edgeqlora.training import checkpoint


def test_tree_keeps_types_keys_and_tensors(tmp_path: Path):
    tree = {
        "state": {
            0: {"step": torch.tensor(3.0), "exp_avg": torch.arange(4.0)},
            1: {"q": torch.ones(2, dtype=torch.uint8)},
        },
        "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0, 1], "foreach": None, "on": True}],
    }
    checkpoint.save_tree(tree, tmp_path / "optimizer")
    back = checkpoint.load_tree(tmp_path / "optimizer")
    assert torch.equal(back["state"][0]["exp_avg"], torch.arange(4.0))
    assert back["state"][1]["q"].dtype == torch.uint8
    assert back["param_groups"] == tree["param_groups"]
    assert isinstance(back["param_groups"][0]["betas"], tuple)


def test_adamw_goes_on_as_if_it_had_not_stopped(tmp_path: Path):
    def run(parameter, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            (parameter**2).sum().backward()
            optimizer.step()

    straight = torch.nn.Parameter(torch.arange(1.0, 5.0))
    run(straight, torch.optim.AdamW([straight], lr=0.1), 6)
    first = torch.nn.Parameter(torch.arange(1.0, 5.0))
    optimizer = torch.optim.AdamW([first], lr=0.1)
    run(first, optimizer, 3)
    checkpoint.save_tree(optimizer.state_dict(), tmp_path / "optimizer")
    second = torch.nn.Parameter(first.detach().clone())
    resumed = torch.optim.AdamW([second], lr=0.1)
    resumed.load_state_dict(checkpoint.load_tree(tmp_path / "optimizer"))
    run(second, resumed, 3)
    assert torch.equal(straight, second)


def test_random_state_comes_back(tmp_path: Path):
    checkpoint.save_tree(checkpoint.random_state(), tmp_path / "random")
    first = random.random(), np.random.rand(), torch.rand(1).item()
    checkpoint.set_random_state(checkpoint.load_tree(tmp_path / "random"))
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == first


def test_only_checkpoints_written_to_their_end_count(tmp_path: Path):
    for step in (9, 10, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert checkpoint.last_complete(tmp_path) is None
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}" / checkpoint.COMPLETE).write_text("{}")
    assert checkpoint.last_complete(tmp_path) == tmp_path / "checkpoint-10"


def test_objects_are_refused(tmp_path: Path):
    with pytest.raises(TypeError, match="Path"):
        checkpoint.save_tree({"x": tmp_path}, tmp_path / "x")


def test_a_missing_tensor_is_said(tmp_path: Path):
    (tmp_path / "x.json").write_text(json.dumps({"dict": [["a", {"tensor": "t0"}]]}))
    with pytest.raises(UserError, match="lacks tensor"):
        checkpoint.load_tree(tmp_path / "x")
