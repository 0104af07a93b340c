"""Warm-up: the first calls of a run are slower (caches, clocks, lazily made kernels) and are not counted."""

import time
from typing import Any, Callable, List, NamedTuple, Sequence

import numpy as np

STABLE_WITHIN = 0.05
"""Two rounds in a row that differ by no more than this share: stable."""

MAX_WARMUP_S = 30.0
_ROUND_CALLS = 4


class WarmUp(NamedTuple):
    """What the warm-up did."""

    n_calls: int
    seconds: float
    is_stable: bool  # the last two rounds took the same time, within STABLE_WITHIN
    clips_per_s: float  # of the last round


def warm_up(
    run: Callable[[List[np.ndarray]], Any],
    calls: Sequence[List[np.ndarray]],
    least_calls: int,
    max_s: float = MAX_WARMUP_S,
    n_kinds: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> WarmUp:
    """Run rounds over the first few of `calls` until two rounds take the same time; at least `least_calls` calls.

    n_kinds: how many of `calls`, the first ones, are each of a kind of its own (window, batch): all are in the round.
    Every round runs the same calls: times of different clips differ by themselves. least_calls=0: one call, to say
    how fast it is, and no more.
    """
    start_s = clock()
    of_round = list(calls[: max(_ROUND_CALLS, n_kinds)]) if least_calls else list(calls[:1])
    n_calls, last_s, is_stable = 0, 0.0, False
    while True:
        round_start_s = clock()
        for audios in of_round:
            run(audios)
        round_s = clock() - round_start_s
        n_calls += len(of_round)
        is_stable = last_s > 0 and abs(round_s - last_s) <= STABLE_WITHIN * max(round_s, last_s)
        last_s = round_s
        over = clock() - start_s >= max_s
        if not least_calls or over or (n_calls >= least_calls and is_stable):
            n_clips = sum(len(audios) for audios in of_round)
            return WarmUp(n_calls, clock() - start_s, is_stable, n_clips / max(round_s, 1e-9))
