"""Where ranks move: within the budget, from what is least to what is most."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeqlora.lora.allocate import Layer
from edgeqlora.lora.dynamic.rules import LEAST, MOVED, ByImportance, Directions, Flex


def adapter(name, values, importance, group="encoder", cost=128, most=12):
    return Directions(Layer(name, group, cost, most), tuple(values), tuple(importance))


@st.composite
def adapters(draw):
    found = []
    for i in range(draw(st.integers(2, 12))):
        rank = draw(st.integers(1, 8))
        numbers = st.lists(st.floats(0, 10), min_size=rank, max_size=rank)
        group, cost = draw(st.sampled_from(["encoder", "decoder"])), draw(st.sampled_from([128, 192, 640]))
        found.append(adapter(f"l{i}", sorted(draw(numbers), reverse=True), draw(numbers), group, cost))
    return found


@pytest.mark.parametrize("rule", [ByImportance({}), Flex()], ids=["importance", "flex"])
@given(given_adapters=adapters(), progress=st.floats(0, 1))
def test_the_budget_is_kept_and_no_rank_leaves_its_range(rule, given_adapters, progress):
    budget = sum(one.layer.cost * one.rank for one in given_adapters)
    ranks = rule.ranks(given_adapters, budget, progress)
    assert set(ranks) == {one.layer.name for one in given_adapters}
    assert sum(one.layer.cost * ranks[one.layer.name] for one in given_adapters) <= budget
    for one in given_adapters:
        assert min(LEAST, one.rank) <= ranks[one.layer.name] <= max(one.layer.most, one.rank)


def test_directions_go_from_the_least_important_to_the_adapter_that_uses_all_of_its_own():
    flat, steep = (1.0,) * 10, (1.0, *[1e-6] * 9)
    found = ByImportance({}).ranks(
        [
            adapter("used", flat, [5.0] * 10),
            adapter("unused", steep, [5.0, *[1e-9] * 9]),
            adapter("alone", steep, [0.0] * 10, group="decoder"),
            adapter("other", flat, [1.0] * 10, group="decoder"),
        ],
        4 * 10 * 128,
        0.0,
    )
    # A tenth of a group's parameters is two ranks of 20; groups keep theirs.
    assert MOVED == 0.1
    assert found == {"used": 12, "unused": 8, "alone": 8, "other": 12}


def test_what_the_calibration_says_decides_between_equals():
    same = [adapter(name, (1.0,) * 10, [1.0] * 10) for name in "abc"] + [adapter("z", (1.0,) * 10, [0.0] * 10)]
    found = ByImportance({"b": 2.0}).ranks(same, 4 * 10 * 128, 0.0)
    assert found == {"a": 10, "b": 12, "c": 10, "z": 8} or (found["z"] == 6 and found["b"] == 12)


def test_flex_takes_from_the_least_even_spectrum_and_gives_to_the_most_even_one():
    even, uneven, middle = (1.0, 1.0, 1.0, 1.0), (1.0, 0.01, 0.01, 0.01), (1.0, 0.7, 0.5, 0.3)
    found = [adapter("even", even, even), adapter("uneven", uneven, even), adapter("middle", middle, even)]
    assert Flex().ranks(found, 3 * 4 * 128, 0.0) == {"even": 5, "uneven": 3, "middle": 4}
    assert found[0].spread == pytest.approx(1.0)
    shares = [value**2 / sum(v**2 for v in middle) for value in middle]
    assert found[2].spread == pytest.approx(-sum(s * math.log(s) for s in shares) / math.log(4))
    assert Flex().ranks(found, 3 * 4 * 128, 1.0) == dict.fromkeys(("even", "uneven", "middle"), 4), (
        "at the end none move"
    )


def test_steps():
    assert ByImportance({}).steps(80) == [16, 32, 48]
    assert Flex().steps(100) == list(range(10, 61, 2))
    assert len(Flex().steps(20)) == len(set(Flex().steps(20)))
