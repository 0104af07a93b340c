"""What int8 may cost: counted, with an interval, and never a collapse."""

import numpy as np
import pytest

from edgeqlora_export.precision.judge import Heard, cost, divergence
from edgeqlora_export.precision.search import front


def heard(errors, texts=None, n_incomplete=0):
    words = np.full(len(errors), 10)
    return Heard(
        np.array(errors),
        words,
        texts or ["text"] * len(errors),
        np.array([n_incomplete] + [0] * (len(errors) - 1)),
        5.0,
    )


PLAIN = heard([1] * 20)


def test_the_increase_is_in_points_with_an_interval_that_holds_it():
    found = cost(PLAIN, heard([2] * 2 + [1] * 18), allowed=2.0)
    assert (found["wer"], found["increase"], found["refused"]) == (11.0, 1.0, None)
    assert found["low"] == 0.0
    assert 1.5 <= found["high"] <= 3.0
    same = cost(PLAIN, PLAIN, allowed=0.0)
    assert (same["increase"], same["low"], same["high"], same["refused"]) == (0.0, 0.0, 0.0, None)


@pytest.mark.parametrize(
    ("mix", "refused"),
    [
        (heard([2] * 3 + [1] * 17), "the error rate grows by 1.50 points, allowed are 1"),
        (heard([7] + [1] * 19), "1 clips collapse, 0 have no text any more, 0 more repeat themselves or find no end"),
        (heard([1] * 20, ["text"] * 19 + [""]), "0 clips collapse, 1 have no text any more, 0 more"),
        (heard([1] * 20, n_incomplete=2), "0 clips collapse, 0 have no text any more, 2 more repeat themselves"),
    ],
)
def test_what_is_refused(mix, refused):
    assert cost(PLAIN, mix, allowed=1.0)["refused"].startswith(refused)


def test_fewer_errors_elsewhere_do_not_pay_for_a_collapse():
    better = heard([7] + [0] * 19)
    assert cost(PLAIN, better, allowed=1.0)["increase"] < 0
    assert "1 clips collapse" in cost(PLAIN, better, allowed=1.0)["refused"]


def test_divergence_is_that_of_the_tokens_that_the_mix_names():
    plain = [(np.array([2.0, 1.0, 0.0]), None)]
    assert divergence(plain, [(np.array([5.0, 4.0, 3.0]), None)]) == pytest.approx(0.0, abs=1e-12)
    assert divergence(plain, [(np.array([0.0, 2.0]), np.array([2, 0]))]) == pytest.approx(0.0, abs=1e-12)
    p, q = np.exp([2.0, 1.0, 0.0]), np.exp([0.0, 1.0, 0.0])
    p, q = p / p.sum(), q / q.sum()
    assert divergence(plain, [(np.array([0.0, 1.0, 0.0]), None)]) == pytest.approx((p * np.log(p / q)).sum())


def test_the_front_has_what_no_other_beats_and_nothing_refused():
    rows = [
        {"wer": wer, "bytes": size, "ms_per_clip": ms, "refused": refused}
        for wer, size, ms, refused in (
            (5.0, 100, 10.0, None), (5.2, 30, 5.0, None), (5.3, 60, 7.0, None), (50.0, 20, 4.0, "collapse"), (5.0, 90, 11.0, None),
        )
    ]  # fmt: skip
    assert front(rows) == [0, 1, 4]
