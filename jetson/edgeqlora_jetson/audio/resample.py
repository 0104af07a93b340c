"""Change of sample rate: windowed-sinc polyphase filter in numpy."""

from fractions import Fraction
from functools import lru_cache
from typing import Tuple

import numpy as np

# 32 zero crossings each side under a Kaiser window of beta 12: stop band below -100 dB, pass band to 0.94 Nyquist.
_N_ZEROS = 32
_KAISER_BETA = 12.0
_ROLL_OFF = 0.94
_GROUP = 64  # output samples of one row of a matrix product
_BLOCK_ROWS = 256  # rows of one product: numpy copies them, and memory is short on a board


def resample(audio: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Resample audio, float (n_samples,), to float32 (ceil(n_samples * to_hz / from_hz),).

    Linear phase, no delay: output sample n is at time n / to_hz. Frequencies above the lower of the two Nyquist
    limits are removed (J. O. Smith, "Digital Audio Resampling"). Neighbouring outputs share most of their input, so a
    group of them is one product of a stretch of input with a matrix of taps; the taps repeat every `cycle` outputs.
    """
    audio = np.ascontiguousarray(audio, dtype=np.float32)
    if from_hz == to_hz or len(audio) == 0:
        return audio
    ratio = Fraction(to_hz, from_hz)
    up, down = ratio.numerator, ratio.denominator
    n_output = -(-len(audio) * up // down)
    repeats = max(1, _GROUP // up)
    cycle, hop = up * repeats, down * repeats
    n_rows = -(-n_output // cycle)
    n_groups = -(-cycle // _GROUP)
    group = -(-cycle // n_groups)
    half_width = _half_width(up, down)
    padded = np.zeros(n_rows * hop + 2 * half_width + 1, dtype=np.float32)
    padded[half_width : half_width + len(audio)] = audio
    step = padded.strides[0]
    output = np.empty((n_rows, cycle), dtype=np.float32)
    for first in range(0, min(cycle, n_output), group):
        taps = _taps_of_group(first, min(group, cycle - first), up, down)
        stretches = np.lib.stride_tricks.as_strided(
            padded[first * down // up :], shape=(n_rows, len(taps)), strides=(hop * step, step)
        )
        for row in range(0, n_rows, _BLOCK_ROWS):
            block = slice(row, row + _BLOCK_ROWS)
            output[block, first : first + group] = stretches[block].dot(taps)
    return output.reshape(-1)[:n_output]


def _cutoff(up: int, down: int) -> float:
    """Edge of the pass band, as a share of the input's Nyquist limit."""
    return _ROLL_OFF * min(1.0, up / down)


def _half_width(up: int, down: int) -> int:
    """Input samples on each side that an output sample is made of."""
    return int(np.ceil(_N_ZEROS / _cutoff(up, down)))


@lru_cache(maxsize=16)
def _taps_of_group(first: int, n_outputs: int, up: int, down: int) -> np.ndarray:
    """Taps of the output samples from `first` on: float32 (n_inputs, n_outputs)."""
    half_width = _half_width(up, down)
    whole, part = _positions(np.arange(first, first + n_outputs, dtype=np.int64), up, down)
    distance = np.arange(-half_width, half_width + 1) - part[:, np.newaxis] / up
    taps = _sinc_taps(distance, _cutoff(up, down), half_width)
    matrix = np.zeros((whole[-1] - whole[0] + taps.shape[1], n_outputs), dtype=np.float32)
    for output, start in enumerate(whole - whole[0]):
        matrix[start : start + taps.shape[1], output] = taps[output]
    return matrix


def _positions(outputs: np.ndarray, up: int, down: int) -> Tuple[np.ndarray, np.ndarray]:
    """Input sample at or before each output sample, and how many `up`-ths of a sample later that is."""
    return outputs * down // up, outputs * down % up


def _sinc_taps(distance: np.ndarray, cutoff: float, half_width: int) -> np.ndarray:
    """Low-pass taps at the distances (in input samples) from an output sample, one row for each: rows sum to 1."""
    inside = np.clip(1.0 - (distance / half_width) ** 2, 0.0, None)
    window = np.i0(_KAISER_BETA * np.sqrt(inside)) / np.i0(_KAISER_BETA)
    taps = cutoff * np.sinc(cutoff * distance) * window
    return taps / taps.sum(axis=1)[:, np.newaxis]
