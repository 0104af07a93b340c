"""Which encoder window a clip takes, and where a long recording is cut."""

from typing import List, Sequence, Tuple

import numpy as np

_QUIET_S = 0.02
_SEARCH_SHARE = 0.2  # the cut is looked for in the last fifth of a window


SAMPLE_RATE_HZ = 16000
"""What every model here hears; audio of another rate is resampled to it."""


def window_samples(window_s: float, sample_rate_hz: int = SAMPLE_RATE_HZ) -> int:
    """Samples in a window, rounded to the nearest."""
    return int(window_s * sample_rate_hz + 0.5)


def choose_window(n_samples: int, windows_s: Sequence[float], sample_rate_hz: int = SAMPLE_RATE_HZ) -> float:
    """The smallest window (s) that holds the clip; the largest one when none does (the caller splits it)."""
    if not windows_s:
        raise ValueError("windows_s is empty, at least one window is needed")
    for window_s in sorted(windows_s):
        if n_samples <= window_samples(window_s, sample_rate_hz):
            return window_s
    return max(windows_s)


def split_long(audio: np.ndarray, window_s: float, sample_rate_hz: int = SAMPLE_RATE_HZ) -> List[Tuple[int, int]]:
    """Cut audio, float (n_samples,), into (start, end) sample ranges of at most a window each.

    One range if it fits; else each cut is in the middle of the quietest 20 ms of the last fifth of the window.
    The ranges touch: no sample is lost or doubled.
    """
    window = window_samples(window_s, sample_rate_hz)
    ranges = []
    start = 0
    while len(audio) - start > window:
        searched = start + int(window * (1.0 - _SEARCH_SHARE))
        cut = searched + _quietest(audio[searched : start + window], int(_QUIET_S * sample_rate_hz))
        ranges.append((start, cut))
        start = cut
    ranges.append((start, len(audio)))
    return ranges


def _quietest(audio: np.ndarray, length: int) -> int:
    """Index of the middle of the `length` samples with the least energy; the latest of equals."""
    length = max(1, min(length, len(audio)))
    energy = np.concatenate([[0.0], np.cumsum(np.asarray(audio, dtype=np.float64) ** 2)])
    sums = energy[length:] - energy[:-length]
    # Running sums differ by rounding; a silent stretch must count as equal all along.
    quiet = np.flatnonzero(sums <= sums.min() + 1e-9 * energy[-1])
    return int(quiet[-1]) + (length + 1) // 2
