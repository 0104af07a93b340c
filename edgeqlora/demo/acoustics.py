"""The rooms and noises of the demo: made by numpy from a seed, nothing recorded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgeqlora_jetson.audio.windows import SAMPLE_RATE_HZ


def scale_to_rms(audio: np.ndarray, rms: float) -> np.ndarray:
    """`audio` (n_samples,) scaled to root-mean-square `rms`; silence stays silence."""
    now = float(np.sqrt(np.mean(np.square(audio, dtype=np.float64))))
    return audio if now < 1e-9 else (audio * (rms / now)).astype(np.float32)


def coloured_noise(rng: np.random.Generator, n_samples: int, exponent: float) -> np.ndarray:
    """Noise whose power falls as 1/f^exponent above 20 Hz: 0 white, 1 pink, 2 brown. Unit rms."""
    spectrum = np.fft.rfft(rng.standard_normal(n_samples))
    frequency_hz = np.maximum(np.fft.rfftfreq(n_samples, 1 / SAMPLE_RATE_HZ), 20.0)
    return scale_to_rms(np.fft.irfft(spectrum * frequency_hz ** (-exponent / 2), n_samples), 1.0)


def pink(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Pink noise: rain, air, a distant road."""
    return coloured_noise(rng, n_samples, 1.0)


def brown(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Brown noise: the rumble of a vehicle, with a little pink so that it is not all below the speech."""
    return scale_to_rms(coloured_noise(rng, n_samples, 2.0) + 0.3 * coloured_noise(rng, n_samples, 1.0), 1.0)


def hum(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Mains hum: 50 or 60 Hz with falling harmonics to 2 kHz, over a floor of white noise."""
    time_s = np.arange(n_samples) / SAMPLE_RATE_HZ
    mains_hz = float(rng.choice([50.0, 60.0]))
    audio = np.zeros(n_samples)
    for harmonic in range(1, int(2000 / mains_hz)):
        level = harmonic**-0.7 * rng.uniform(0.3, 1.0)
        audio += level * np.sin(2 * np.pi * (harmonic * mains_hz * time_s + rng.random()))
    return scale_to_rms(scale_to_rms(audio, 1.0) + 0.25 * coloured_noise(rng, n_samples, 0.0), 1.0)


def fan(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """A fan: pink noise that swells with each passing blade, and the blades' own tone."""
    time_s = np.arange(n_samples) / SAMPLE_RATE_HZ
    blades_hz = rng.uniform(18, 45)
    swell = 1 + 0.6 * np.sin(2 * np.pi * blades_hz * time_s)
    tone = sum(np.sin(2 * np.pi * k * blades_hz * 4 * time_s + k) / k for k in range(1, 6))
    return scale_to_rms(coloured_noise(rng, n_samples, 0.8) * swell + 0.3 * tone, 1.0)


def clatter(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Dishes and tools: about four strokes a second, each a few ringing modes that die within 30 to 120 ms."""
    audio = 0.05 * coloured_noise(rng, n_samples, 1.0)
    for _ in range(max(1, round(4 * n_samples / SAMPLE_RATE_HZ))):
        start = int(rng.integers(0, n_samples))
        time_s = np.arange(min(n_samples - start, SAMPLE_RATE_HZ // 4)) / SAMPLE_RATE_HZ
        decay = np.exp(-time_s / rng.uniform(0.03, 0.12))
        for mode_hz in rng.uniform(400, 6000, size=5):
            audio[start : start + time_s.size] += rng.uniform(0.2, 1.0) * decay * np.sin(2 * np.pi * mode_hz * time_s)
    return scale_to_rms(audio, 1.0)


NOISES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "pink": pink,
    "brown": brown,
    "hum": hum,
    "fan": fan,
    "clatter": clatter,
}
"""Noises made from a seed alone; babble is made from speech (`babble`)."""


def babble(rng: np.random.Generator, talkers: list[np.ndarray], n_samples: int) -> np.ndarray:
    """Many people at once: talkers (n_samples,) repeated, shifted, summed at levels of their own. Unit rms."""
    total = np.zeros(n_samples)
    for talker in talkers:
        repeated = np.resize(scale_to_rms(talker, 1.0), n_samples)
        total += rng.uniform(0.5, 1.0) * np.roll(repeated, int(rng.integers(0, n_samples)))
    return scale_to_rms(total, 1.0)


def reverberate(rng: np.random.Generator, audio: np.ndarray, rt60_s: float, wet: float) -> np.ndarray:
    """`audio` in a room: direct sound plus `wet` times exponentially dying noise (-60 dB after `rt60_s`)."""
    n_tail = int(rt60_s * SAMPLE_RATE_HZ)
    response = rng.standard_normal(n_tail) * 10 ** (-3 * np.arange(n_tail) / n_tail)
    response *= wet / float(np.sqrt(np.sum(np.square(response))))
    response[0] += 1.0
    n_fft = 1 << (audio.size + n_tail - 1).bit_length()
    wet_audio = np.fft.irfft(np.fft.rfft(audio, n_fft) * np.fft.rfft(response, n_fft), n_fft)
    return wet_audio[: audio.size].astype(np.float32)


def intercom(audio: np.ndarray, low_hz: float, high_hz: float) -> np.ndarray:
    """`audio` through a cheap microphone: 12 dB an octave below `low_hz` and above `high_hz`, no phase shift."""
    n_fft = 1 << (audio.size - 1).bit_length()
    frequency_hz = np.fft.rfftfreq(n_fft, 1 / SAMPLE_RATE_HZ)
    gain = 1 / np.sqrt((1 + (low_hz / np.maximum(frequency_hz, 1.0)) ** 4) * (1 + (frequency_hz / high_hz) ** 4))
    return np.fft.irfft(np.fft.rfft(audio, n_fft) * gain, n_fft)[: audio.size].astype(np.float32)


def mix_at_snr(speech: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Speech plus noise, both (n_samples,), with speech rms over noise rms at `snr_db`."""
    speech_rms = float(np.sqrt(np.mean(np.square(speech, dtype=np.float64))))
    return (speech + scale_to_rms(noise, speech_rms * 10 ** (-snr_db / 20))).astype(np.float32)
