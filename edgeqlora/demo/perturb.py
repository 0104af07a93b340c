"""Mild changes to a clip during pre-training: other speed, other microphone, a little steady noise.

Without them the model takes the silence of synthetic speech for granted, and falls apart at 20 dB of noise.
"""

from __future__ import annotations

import numpy as np

from edgeqlora.demo.acoustics import SAMPLE_RATE_HZ, coloured_noise, mix_at_snr

SPEED = (0.87, 1.15)
"""Speed and pitch together, as a tape does."""

EQUALISER_DB = 8.0
"""Gain at each of a few random corners of the spectrum: uniform in +- this."""

SNR_DB = (5.0, 35.0)
"""Of steady coloured noise (white to brown), which half of the clips get."""


def change_speed(audio: np.ndarray, factor: float) -> np.ndarray:
    """`audio` (n_samples,) played `factor` times as fast: round(n_samples / factor) samples, linear interpolation."""
    positions = np.arange(round(audio.size / factor)) * factor
    return np.interp(positions, np.arange(audio.size), audio).astype(np.float32)


def equalise(
    rng: np.random.Generator, audio: np.ndarray, gain_db: float = EQUALISER_DB, corners: int = 6
) -> np.ndarray:
    """`audio` through a smooth random filter: `corners` gains in +- `gain_db`, evenly spaced to 8 kHz."""
    n_fft = power_of_two(audio.size)
    spectrum = np.fft.rfft(audio, n_fft)
    frequency_hz = np.linspace(0, SAMPLE_RATE_HZ / 2, spectrum.size)
    corner_hz = np.linspace(0, SAMPLE_RATE_HZ / 2, corners)
    gain = 10 ** (np.interp(frequency_hz, corner_hz, rng.uniform(-gain_db, gain_db, corners)) / 20)
    return np.fft.irfft(spectrum * gain, n_fft)[: audio.size].astype(np.float32)


def power_of_two(n_samples: int) -> int:
    """Smallest power of two that holds `n_samples`: Fourier transforms of other lengths take several times as long."""
    return 1 << (n_samples - 1).bit_length()


def perturb(rng: np.random.Generator, audio: np.ndarray) -> np.ndarray:
    """One random version of `audio`, float32 (n_samples,) to float32 (other n_samples,)."""
    audio = equalise(rng, change_speed(audio, rng.uniform(*SPEED)))
    if rng.random() < 0.5:
        noise = coloured_noise(rng, power_of_two(audio.size), rng.uniform(0, 2))[: audio.size]
        audio = mix_at_snr(audio, noise, rng.uniform(*SNR_DB))
    return audio
