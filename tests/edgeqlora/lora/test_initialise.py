"""Where adapters start: the closed form against a search, and whole lines with it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_statistics import SPECTRUM, known, linear_of

from edgeqlora.lora.initialise import start_weights
from edgeqlora.lora.scores import second_moment


def quantised_linear():
    rows = [known(2000, SPECTRUM, h) @ torch.linalg.qr(known(64, [1.0] * 64, 7))[0] for h in (0, 1)]
    error = 0.1 * torch.randn(48, 64, generator=torch.Generator().manual_seed(3))
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(4))
    gradients = [known(2000, [1.0] * 48, h + 5) for h in (0, 1)]
    return linear_of(rows, gradients, weight, error)


def left(linear, a, b, scaling):
    """Energy of what is left of the error, over the inputs."""
    rest = linear.error - scaling * b @ a
    return float(((rest @ second_moment(linear)) * rest).sum())


def test_qera_leaves_less_than_any_other_of_its_rank():
    linear = quantised_linear()
    a, b = start_weights("qera", linear, 8, 2.0)
    assert (a.shape, b.shape) == ((8, 64), (48, 8))
    best = left(linear, a, b, 2.0)
    whole = left(linear, torch.zeros(8, 64), torch.zeros(48, 8), 2.0)
    u, s, vt = torch.linalg.svd(linear.error)
    plain = left(linear, vt[:8], u[:, :8] * s[:8] / 2.0, 2.0)  # LoftQ's first step, blind to the inputs
    assert best < plain < whole
    for seed in range(20):  # no small step from it is better
        step = 1e-3 * torch.randn(48, 64, generator=torch.Generator().manual_seed(seed))
        u, s, vt = torch.linalg.svd(2.0 * b @ a + step)
        assert left(linear, vt[:8], u[:, :8] * s[:8] / 2.0, 2.0) >= best * (1 - 1e-6)
    a, b = start_weights("qera", linear, 48, 2.0)
    assert left(linear, a, b, 2.0) < 1e-6 * whole


def test_eva_points_where_the_inputs_vary_and_changes_nothing():
    linear = quantised_linear()
    a, b = start_weights("eva", linear, 4, 2.0)
    assert not b.any()
    assert torch.allclose(a @ a.T, torch.eye(4) / 3, atol=1e-5)
    explained = [float(row @ second_moment(linear) @ row) for row in a]
    assert explained == sorted(explained, reverse=True)
    again, _ = start_weights("eva", linear, 4, 2.0)
    assert torch.equal(a, again)


@pytest.mark.parametrize("init", ["eva", "qera"])
def test_a_run_starts_where_ranks_says_and_is_merged_as_it_was_trained(init, tiny_model, clips, command, tmp_path):
    ranks = tmp_path / "ranks.json"
    code, said = command("ranks", "-m", tiny_model, "--train", clips, "-o", ranks, "--init", init, "--mean-rank", 4)
    assert code == 0, said
    start = load_file(tmp_path / "ranks-start.safetensors")
    train = ["train", "-m", tiny_model, "--train", clips, "--language", "en", "--cache", "none", "--steps", 1]
    rate = ["--learning-rate", "1e-8"]  # one step of nothing: what is saved is where it started
    code, said = command(*train, *rate, "--ranks", ranks, "-o", tmp_path / "a")
    assert code == 0, said
    saved = load_file(tmp_path / "a/adapter_model.safetensors")
    for name, value in start.items():
        trained = saved[f"base_model.model.{name}.weight"]
        assert torch.allclose(trained, value, atol=1e-6), name
    assert json.loads((tmp_path / "a/ranks.json").read_text())["init"] == init
    if init == "qera":
        code, said = command("merge", tmp_path / "a", "-o", tmp_path / "m", "--candidate", "original", "--dev", clips)
        assert (code, "allowed is 'dequantised'" in said) == (2, True), said
        code, said = command("merge", tmp_path / "a", "-o", tmp_path / "m")  # one candidate needs no dev data
        assert code == 0, said
        assert "merged model (dequantised base)" in said


def test_first_weights_that_do_not_belong_are_refused(tiny_model, clips, command, tmp_path):
    ranks, start = tmp_path / "ranks.json", tmp_path / "ranks-start.safetensors"
    code, said = command("ranks", "-m", tiny_model, "--train", clips, "-o", ranks, "--init", "eva", "--mean-rank", 4)
    assert code == 0, said
    train = ["train", "-m", tiny_model, "--train", clips, "--cache", "none", "--steps", 1, "-o", tmp_path / "a"]
    shutil.copy(start, tmp_path / "kept")
    weights = load_file(start)
    save_file({name: value + 1 for name, value in weights.items()}, start)
    for spoil, text in ((lambda: None, "is another file"), (start.unlink, "is not there")):
        spoil()
        code, said = command(*train, "--ranks", ranks)
        assert (code, text in said) == (2, True), said
    shutil.copy(tmp_path / "kept", start)
    content = json.loads(ranks.read_text())
    name = next(iter(content["rank_pattern"]))
    fewer = {key: value for key, value in content["rank_pattern"].items() if key != name}
    alphas = {key: value for key, value in content["alpha_pattern"].items() if key != name}
    for changed, text in (
        ({"init": 3}, "allowed are a name, and a file with its hash"),
        ({"start": {"file": "../x", "sha256": "y"}}, "allowed is a file beside it with its sha256"),
        ({"rank_pattern": fewer, "alpha_pattern": alphas}, "has 2 weights more than ranks.json has ranks"),
    ):
        ranks.write_text(json.dumps({**content, **changed}))
        code, said = command(*train, "--ranks", ranks)
        assert (code, text in said) == (2, True), said
    ranks.write_text(json.dumps({**content, "rank_pattern": {**content["rank_pattern"], name: 1}}))
    code, said = command(*train, "--ranks", ranks)
    assert (code, "the file belongs to other ranks" in said) == (2, True), said


def test_qera_needs_a_quantised_base(tiny_model, clips, command, tmp_path):
    arguments = ["ranks", "-m", tiny_model, "--train", clips, "-o", tmp_path / "r.json", "--init", "qera"]
    code, said = command(*arguments, "--method", "lora")
    assert (code, "method='lora' has none: allowed are random, eva" in said) == (2, True), said
    code, said = command(*arguments[:-1], "pissa")
    assert (code, "init='pissa': allowed are random, eva, qera" in said) == (2, True), said
    code, said = command(*arguments)
    assert code == 0, said
    train = ["train", "-m", tiny_model, "--train", clips, "-o", tmp_path / "a", "--cache", "none", "--steps", 2]
    code, said = command(*train, "--method", "lora", "--ranks", tmp_path / "r.json")
    assert (code, "method='lora' has no NF4: allowed is method='qlora'" in said) == (2, True), said
    content = json.loads((tmp_path / "r.json").read_text())
    del content["start"]  # as in the folder of an adapter that was trained with it
    (tmp_path / "r.json").write_text(json.dumps(content))
    code, said = command(*train, "--ranks", tmp_path / "r.json")
    assert code == 0, said
    assert json.loads((tmp_path / "a/ranks.json").read_text())["init"] == "random"
