"""Which encoder window a clip takes, and where a long recording is cut."""

import math
from typing import List, Optional, Sequence, Tuple

import numpy as np

SAMPLE_RATE_HZ = 16000
"""What every model here hears; audio of another rate is resampled to it."""

MARGIN_S = 0.3
"""Silence wanted after a clip in its window: with none, Whisper falls into repetition on some clips."""

HEARD_STEP_S = 0.2
"""Step in which the part of a window that the encoder hears follows the clip: ten positions of Whisper's encoder."""

_QUIET_S = 0.02
_SEARCH_SHARE = 0.2  # a cut is looked for in a fifth of a window: the last one, unless too little would be left over


def window_samples(window_s: float, sample_rate_hz: int = SAMPLE_RATE_HZ) -> int:
    """Samples in a window, rounded to the nearest."""
    return int(window_s * sample_rate_hz + 0.5)


def fitting_window(n_samples: int, windows_s: Sequence[float], sample_rate_hz: int = SAMPLE_RATE_HZ) -> Optional[float]:
    """The smallest window (s) that holds the clip with MARGIN_S after it, else the largest that holds it; None if none.

    The one rule for training, scoring and the board.
    """
    if not windows_s:
        raise ValueError("windows_s is empty, at least one window is needed")
    margin = window_samples(MARGIN_S, sample_rate_hz)
    for window_s in sorted(windows_s):
        if n_samples + margin <= window_samples(window_s, sample_rate_hz):
            return window_s
    longest = max(windows_s)
    return longest if n_samples <= window_samples(longest, sample_rate_hz) else None


def choose_window(n_samples: int, windows_s: Sequence[float], sample_rate_hz: int = SAMPLE_RATE_HZ) -> float:
    """`fitting_window`, or the largest window where none holds the clip (the caller splits it)."""
    return fitting_window(n_samples, windows_s, sample_rate_hz) or max(windows_s)


def heard_seconds(
    n_samples: int, window_s: float, margin_s: float, least_s: float, sample_rate_hz: int = SAMPLE_RATE_HZ
) -> float:
    """Seconds of its window that the encoder hears of a clip: with margin_s after it, at least least_s.

    In steps of HEARD_STEP_S, so that a runtime sees few different lengths.
    """
    wanted = max(least_s, n_samples / float(sample_rate_hz) + margin_s)
    return min(window_s, round(math.ceil(wanted / HEARD_STEP_S - 1e-9) * HEARD_STEP_S, 3))


def untuned_windows(windows_s: Sequence[float], tuned_s: Optional[Sequence[float]]) -> str:
    """A sentence about those of windows_s that a model was not tuned in; empty where there are none, or nobody knows."""
    other = sorted(set(windows_s) - set(tuned_s or windows_s))
    if not other:
        return ""
    tuned, others = (", ".join("{:g}".format(w) for w in sorted(of)) for of in (tuned_s or (), other))
    return "tuned with windows of {} s, not {} s, where it may have forgotten what its base could".format(tuned, others)


def split_long(audio: np.ndarray, window_s: float, sample_rate_hz: int = SAMPLE_RATE_HZ) -> List[Tuple[int, int]]:
    """Cut audio, float (n_samples,), into (start, end) sample ranges of at most a window each.

    One range if it fits; else each cut is in the middle of the quietest 20 ms of the last fifth of the window, or so much
    earlier that what is left over is at least a fifth of a window. The ranges touch: no sample is lost or doubled.
    """
    window = window_samples(window_s, sample_rate_hz)
    fifth = int(window * _SEARCH_SHARE)
    ranges = []
    start = 0
    while len(audio) - start > window:
        latest = min(start + window, len(audio) - fifth)
        searched = latest - fifth
        cut = searched + _quietest(audio[searched:latest], int(_QUIET_S * sample_rate_hz))
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
