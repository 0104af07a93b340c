"""What the measuring costs: the same calls with and without sensors, in turns, in one run."""

import time
from typing import Any, Callable, List, Sequence

import numpy as np

from ..figures import figure
from ..schema import Figure

MIN_BLOCK_S = 0.5
N_PAIRS = 20
SETTLE_S = 0.2
"""After sensors were started or stopped: starting a program is not what is measured."""


def measure_overhead(
    run: Callable[[List[np.ndarray]], Any],
    calls: Sequence[List[np.ndarray]],
    telemetry: Any,
    n_pairs: int = N_PAIRS,
    min_block_s: float = MIN_BLOCK_S,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Figure:
    """Share of the throughput that sensors take, in %: blocks with and without, in the order with, without, without, with.

    A block is a fixed number of calls that take at least min_block_s. The figure is the median over pairs of blocks of
    time with / time without - 1: what else the machine does hits both of a pair, and a median forgets a few bad pairs.
    """
    n_calls, block_s = 0, 0.0
    start_s = clock()
    while block_s < min_block_s:
        run(calls[n_calls % len(calls)])
        n_calls += 1
        block_s = clock() - start_s

    def block(with_sensors: bool) -> float:
        telemetry.pause(not with_sensors)
        sleep(SETTLE_S)
        begun_s = clock()
        for i in range(n_calls):
            run(calls[i % len(calls)])
        return clock() - begun_s

    ratios = []
    for pair in range(n_pairs):
        first = pair % 2 == 0
        times_s = {first: block(first), not first: block(not first)}
        ratios.append(times_s[True] / times_s[False] - 1.0)
    telemetry.pause(False)
    return describe_ratios(ratios, n_calls)


def describe_ratios(ratios: Sequence[float], n_calls: int) -> Figure:
    """Median of the pairs, and the range in which the true median lies with 95 % confidence (order statistics)."""
    ordered = sorted(ratios)
    n = len(ordered)
    reach = max(0, int(np.floor(n / 2.0 - 0.98 * np.sqrt(n))))
    return figure(
        100.0 * float(np.median(ordered)),
        "%",
        low=100.0 * ordered[reach],
        high=100.0 * ordered[n - 1 - reach],
        n_pairs=n,
        calls_per_block=n_calls,
        method="median of time with sensors / time without - 1, blocks in turns; low and high: 95 % of the median",
    )
