"""Latencies of a run of hours in fixed memory: a histogram with buckets of equal ratio."""

import numpy as np

RATIO = 1.002
"""A percentile read from the histogram is off by at most half of this step: 0.1 %."""

LOWEST_MS = 1e-3
HIGHEST_MS = 1e7


class LatencyHistogram(object):
    """Counts of latencies from LOWEST_MS to HIGHEST_MS; what lies outside counts at the edge."""

    def __init__(self) -> None:
        n = int(np.ceil(np.log(HIGHEST_MS / LOWEST_MS) / np.log(RATIO))) + 1
        self._counts = np.zeros(n, dtype=np.int64)
        self.n = 0

    def add(self, latency_ms: float) -> None:
        """Count one latency."""
        place = int(np.log(max(latency_ms, LOWEST_MS) / LOWEST_MS) / np.log(RATIO))
        self._counts[min(place, len(self._counts) - 1)] += 1
        self.n += 1

    def percentile(self, percent: float) -> float:
        """Nearest-rank percentile, ms: the middle of its bucket. Raises ValueError when nothing was counted."""
        if not self.n:
            raise ValueError("no latency was counted")
        rank = max(1, int(-(-self.n * percent // 100)))
        place = int(np.searchsorted(np.cumsum(self._counts), rank))
        return LOWEST_MS * RATIO ** (place + 0.5)

    def clear(self) -> None:
        """Forget everything; the memory stays."""
        self._counts[:] = 0
        self.n = 0
