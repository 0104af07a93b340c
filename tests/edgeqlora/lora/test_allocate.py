"""Ranks under a budget: exact, the same in any order, and following the scores."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeqlora.errors import UserError
from edgeqlora.lora.allocate import Layer, allocate, budget_of
from edgeqlora.lora.modes import MODES, ranks_of, weights_of
from edgeqlora.lora.scores import Scores


def whisper_like(n_layers: int, width: int, mean_rank: int) -> list[Layer]:
    """Encoder, decoder and cross-attention linears: 2 and 5 times the width a rank."""
    layers = []
    most = min(3 * mean_rank, width // 4)
    for i in range(n_layers):
        for group, names in (("encoder", "qkvo"), ("decoder", "qkvo"), ("cross", "qkvo")):
            layers += [Layer(f"{group}.{i}.{n}", group, 2 * width, most) for n in names]
        layers += [Layer(f"{g}.{i}.fc{n}", g, 5 * width, most) for g in ("encoder", "decoder") for n in (1, 2)]
    return layers


@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from([4, 8]), st.floats(0.0, 0.8))
def test_the_budget_is_met_and_nothing_depends_on_order(seed, n_layers, mean_rank, spread):
    import random

    draw = random.Random(seed)
    layers = whisper_like(n_layers, 384, mean_rank)
    scores = {layer.name: math.exp(draw.gauss(0, spread)) for layer in layers}
    budget = budget_of(layers, mean_rank)
    ranks = allocate(layers, scores, budget)
    spent = sum(layer.cost * ranks[layer.name] for layer in layers)
    assert 0 <= budget - spent <= 0.001 * budget
    assert all(2 <= ranks[layer.name] <= layer.most for layer in layers)
    draw.shuffle(layers)
    assert allocate(layers, dict(reversed(scores.items())), budget) == ranks


def test_ranks_follow_scores_and_not_what_a_layer_costs():
    layers = whisper_like(2, 384, 8)
    scores = {layer.name: 2.0 if layer.name.endswith(("v", "fc1")) else 1.0 for layer in layers}
    ranks = allocate(layers, scores, budget_of(layers, 8))
    for group in ("encoder", "decoder"):
        high = [ranks[n] for n in ranks if n.startswith(group) and scores[n] == 2.0]
        low = [ranks[n] for n in ranks if n.startswith(group) and scores[n] == 1.0]
        assert 1.7 <= (sum(high) / len(high)) / (sum(low) / len(low)) <= 2.3
        assert max(low) < min(high)


def test_equal_scores_give_the_uniform_rank():
    layers = whisper_like(3, 384, 8)
    assert set(allocate(layers, {layer.name: 1.0 for layer in layers}, budget_of(layers, 8)).values()) == {8}


def test_shares_move_parameters_between_groups():
    layers = whisper_like(2, 384, 8)
    ranks = allocate(layers, {layer.name: 1.0 for layer in layers}, budget_of(layers, 8), {"cross": 2.0})
    spent = {
        g: sum(la.cost * ranks[la.name] for la in layers if la.group == g) for g in ("encoder", "decoder", "cross")
    }
    # Parts at one rank: 36, 36 and 16 of 88 widths; cross counts twice.
    assert spent["cross"] / sum(spent.values()) == pytest.approx(32 / 104, abs=0.005)
    assert sum(spent.values()) == budget_of(layers, 8)


def test_a_budget_that_does_not_reach_is_refused():
    layers = whisper_like(1, 384, 4)
    with pytest.raises(
        UserError, match=r"leaves [0-9,]+ parameters for cross, and rank 2 in each of its 4 layers takes"
    ):
        allocate(layers, {layer.name: 1.0 for layer in layers}, budget_of(layers, 4), {"cross": 0.1})


SCORES = {
    layer.name: Scores(1.0 + 0.1 * i, 0.5, 1.0 + i % 3, 0.05 + 0.01 * (i % 2))
    for i, layer in enumerate(whisper_like(2, 384, 8))
}


def ranked(mode, **settings):
    layers = whisper_like(2, 384, 8)
    spectra = {layer.name: [0.5 ** (k * (1 + i % 3)) for k in range(40)] for i, layer in enumerate(layers)}
    weights = weights_of(mode, layers, SCORES)
    return layers, weights, ranks_of(mode, layers, weights, budget_of(layers, 8), None, 2, spectra, **settings)


@pytest.mark.parametrize("mode", list(MODES))
def test_every_mode_spends_the_budget(mode):
    layers, _, ranks = ranked(mode)
    spent = sum(layer.cost * ranks[layer.name] for layer in layers)
    assert 0 <= budget_of(layers, 8) - spent <= 0.001 * budget_of(layers, 8)
    assert list(ranks) == sorted(ranks)


def test_entropy_is_the_literal_rule_and_anti_its_opposite():
    _, weights, ranks = ranked("entropy")
    encoder = sorted((n for n in ranks if n.startswith("encoder")), key=lambda n: SCORES[n].input_entropy)
    assert [weights[n] for n in encoder] == sorted(weights[n] for n in encoder)
    assert ranks[encoder[0]] < ranks[encoder[-1]]
    _, ear, _ = ranked("ear")
    _, anti, _ = ranked("anti")
    for name in ear:
        assert ear[name] * anti[name] == pytest.approx(1.0, rel=1e-5)


def test_half_strength_is_the_square_root():
    _, half, _ = ranked("ear")
    _, full, _ = ranked("ear-full")
    inside = [name for name in full if 0.25 < full[name] < 4]
    assert inside
    for name in inside:
        assert half[name] ** 2 == pytest.approx(full[name], rel=1e-4)


def test_permuted_deals_the_same_ranks_out_within_group_and_size():
    layers, _, ear = ranked("ear")
    _, _, one = ranked("permuted", seed=1)
    _, _, two = ranked("permuted", seed=2)
    assert one != ear
    assert one != two
    for key in {(layer.group, layer.cost) for layer in layers}:
        names = [layer.name for layer in layers if (layer.group, layer.cost) == key]
        assert sorted(one[n] for n in names) == sorted(ear[n] for n in names)


def test_eva_ranks_by_explained_variance():
    """A spectrum that falls more steeply explains more with each of its first components, so it gets more ranks... of a
    few, and then no more: the flat one explains more with its later ones."""
    layers, _, ranks = ranked("eva")
    assert max(ranks.values()) <= 2 * 8 + 3
    steep = [ranks[layer.name] for i, layer in enumerate(layers) if i % 3 == 2]
    flat = [ranks[layer.name] for i, layer in enumerate(layers) if i % 3 == 0]
    assert sum(flat) / len(flat) > sum(steep) / len(steep)


def test_depth_u_gives_the_ends_of_a_group_more():
    layers = whisper_like(5, 384, 8)
    weights = weights_of("depth-u", layers, {})
    assert weights["encoder.0.q"] == weights["encoder.4.q"] == 1.75
    assert weights["encoder.2.q"] == 0.5
    upper = [Layer(f"layers.{i}.fc1", "upper", 10, 5) for i in range(6, 11)]
    assert list(weights_of("depth-u", upper, {}).values()) == [1.75, 0.8125, 0.5, 0.8125, 1.75]
