"""Change of sample rate: windowed-sinc polyphase filter in numpy."""

from fractions import Fraction

import numpy as np

# 32 zero crossings each side under a Kaiser window of beta 12: stop band below -100 dB, pass band to 0.94 Nyquist.
_N_ZEROS = 32
_KAISER_BETA = 12.0
_ROLL_OFF = 0.94


def resample(audio: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Resample audio, float (n_samples,), to float32 (ceil(n_samples * to_hz / from_hz),).

    Linear phase, no delay: output sample n is at time n / to_hz. Frequencies above the lower of the two Nyquist
    limits are removed. One dot product for each of the `up` phases (J. O. Smith, "Digital Audio Resampling").
    """
    audio = np.ascontiguousarray(audio, dtype=np.float32)
    if from_hz == to_hz or len(audio) == 0:
        return audio
    ratio = Fraction(to_hz, from_hz)
    up, down = ratio.numerator, ratio.denominator
    cutoff = _ROLL_OFF * min(1.0, up / down)
    half_width = int(np.ceil(_N_ZEROS / cutoff))
    n_output = -(-len(audio) * up // down)
    padded = np.concatenate([np.zeros(half_width, np.float32), audio, np.zeros(half_width + down, np.float32)])
    output = np.empty(n_output, dtype=np.float32)
    offsets = np.arange(-half_width, half_width + 1)
    step = padded.strides[0]
    for phase in range(min(up, n_output)):
        # Output samples phase, phase + up, ... sit at the same fraction between input samples, `down` apart.
        whole, part = divmod(phase * down, up)
        taps = _sinc_taps(offsets - part / up, cutoff, half_width)
        n_rows = -(-(n_output - phase) // up)
        windows = np.lib.stride_tricks.as_strided(
            padded[whole:], shape=(n_rows, len(taps)), strides=(down * step, step)
        )
        output[phase::up] = windows.dot(taps)
    return output


def _sinc_taps(distance: np.ndarray, cutoff: float, half_width: int) -> np.ndarray:
    """Low-pass taps at the distances (in input samples) from an output sample: float32, same shape; sum close to 1."""
    inside = np.clip(1.0 - (distance / half_width) ** 2, 0.0, None)
    window = np.i0(_KAISER_BETA * np.sqrt(inside)) / np.i0(_KAISER_BETA)
    taps = cutoff * np.sinc(cutoff * distance) * window
    return (taps / taps.sum()).astype(np.float32)
