"""How steady is the machine itself? A fixed piece of work, the same for ever, timed beside a soak.

    python tests/benchmarks/reference_work.py MINUTES SETTLE_MINUTES

Every 2 s it runs the same matrix product 20 times (about 3 ms each: as long as a clip of the demo; 3 % of one core) and
prints at the end how p50 and p99 of the last third differ from those of the first. What it drifts is not the runner's.
"""

import sys
import time

import numpy as np

EVERY_S, RUNS = 2.0, 20


def main() -> None:
    minutes, settle = float(sys.argv[1]), float(sys.argv[2])
    a = np.random.RandomState(0).rand(300, 300).astype(np.float32)
    thirds: list[list[float]] = [[], [], []]
    start_s = time.perf_counter()
    while True:
        since_s = time.perf_counter() - start_s
        third = int(3 * (since_s - 60 * settle) / (60 * (minutes - settle)))
        if third > 2:
            break
        for _ in range(RUNS):
            begun_s = time.perf_counter()
            for _ in range(4):
                a @ a
            if since_s >= 60 * settle:
                thirds[third].append(1e3 * (time.perf_counter() - begun_s))
        time.sleep(EVERY_S)
    for percent in (50, 99):
        first, _, last = (float(np.percentile(times_ms, percent)) for times_ms in thirds)
        print(
            f"p{percent}: {first:.3f} ms in the first third, {last:.3f} in the last: {100 * (last / first - 1):+.2f} %"
        )


if __name__ == "__main__":
    main()
