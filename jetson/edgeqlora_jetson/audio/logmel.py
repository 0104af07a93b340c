"""Whisper's log-mel spectrogram in numpy."""

import threading
from typing import Dict

import numpy as np

_FLOOR_POWER = 1e-10
_FLOOR_LOG = -10.0
# OpenBLAS does up to 2**18 multiplications on one thread (80 x 201 x 16 is just below). Above, it wakes others for a
# fraction of a millisecond of work: a clip of 0.4 s then took 8 to 28 ms instead of 0.2 ms on two busy cores.
_BLOCK_FRAMES = 16
_RANGE_LOG = 8.0  # everything more than 80 dB below the clip's loudest bin is clamped


class LogMel(object):
    """Audio to the encoder's input, equal to transformers' WhisperFeatureExtractor within 1e-4.

    `filters`: float32 (n_fft//2 + 1, n_mels), the bundle's mel_filters.npy.
    Several threads wait for each other: buffers are kept.
    Source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision", section 2.2.
    """

    def __init__(self, filters: np.ndarray, n_fft: int = 400, hop_length: int = 160) -> None:
        filters = np.asarray(filters)
        if filters.ndim != 2 or filters.shape[0] != n_fft // 2 + 1:
            raise ValueError("mel filters have shape {}, needed ({}, n_mels)".format(filters.shape, n_fft // 2 + 1))
        self.n_mels = filters.shape[1]
        self.n_fft = n_fft
        self.hop_length = hop_length
        self._filters = np.ascontiguousarray(filters.T, dtype=np.float64)
        self._buffers: Dict[str, np.ndarray] = {}
        self._lock = threading.Lock()
        self._hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(n_fft) / n_fft)

    def __call__(self, audio: np.ndarray, n_frames: int) -> np.ndarray:
        """Audio, float (n_samples,), zero-padded or cut to n_frames * hop_length -> float32 (n_mels, n_frames).

        Only the frames that touch audio are transformed: the others are zeros, whose value is known.
        """
        with self._lock:
            return self._compute(audio, n_frames)

    def _compute(self, audio: np.ndarray, n_frames: int) -> np.ndarray:
        n_total = n_frames * self.hop_length
        half = self.n_fft // 2
        if n_total <= half:
            raise ValueError("n_frames={} is shorter than half a transform ({} samples)".format(n_frames, half))
        audio = np.asarray(audio)[:n_total]
        n_busy = min(n_frames, -(-(len(audio) + half) // self.hop_length)) if len(audio) else 0
        log_mel = self._scratch("log_mel", self.n_mels * n_frames).reshape(self.n_mels, n_frames)
        log_mel.fill(_FLOOR_LOG)
        if n_busy:
            self._log_power(self._pad(audio, min(n_total, n_busy * self.hop_length + half)), log_mel[:, :n_busy])
        np.maximum(log_mel, log_mel.max() - _RANGE_LOG, out=log_mel)
        log_mel += 4.0
        log_mel /= 4.0
        return log_mel.astype(np.float32)

    def _pad(self, audio: np.ndarray, n_samples: int) -> np.ndarray:
        """Audio in zeros, n_samples long, with both edges reflected: float64 (n_samples + n_fft,), a scratch buffer."""
        half = self.n_fft // 2
        n_samples = max(n_samples, half + 1)
        padded = self._scratch("padded", n_samples + 2 * half)
        inside = padded[half : half + n_samples]
        inside[: len(audio)] = audio
        inside[len(audio) :] = 0.0
        padded[:half] = inside[half:0:-1]
        # A reflected edge on the right as well; where it is not the clip's end it mirrors zeros or is unused.
        padded[half + n_samples :] = inside[-2 : -half - 2 : -1]
        return padded

    def _log_power(self, padded: np.ndarray, out: np.ndarray) -> None:
        """Write the log10 mel power of the first frames into `out`: float64 (n_mels, number of frames)."""
        n_busy, step = out.shape[1], padded.strides[0]
        frames = np.lib.stride_tricks.as_strided(
            padded, shape=(n_busy, self.n_fft), strides=(self.hop_length * step, step)
        )
        for start in range(0, n_busy, _BLOCK_FRAMES):
            block = slice(start, start + _BLOCK_FRAMES)
            spectrum = np.fft.rfft(frames[block] * self._hann, axis=1)
            power = spectrum.real**2 + spectrum.imag**2
            out[:, block] = self._filters.dot(power.T)
        np.maximum(out, _FLOOR_POWER, out=out)
        np.log10(out, out=out)

    def _scratch(self, name: str, n: int) -> np.ndarray:
        """A float64 buffer of n values that is kept from call to call and only grows.

        Half a megabyte taken and given back for every clip leaves holes in the heap: memory of the process crept up by
        0.5 MiB every few minutes.
        """
        if name not in self._buffers or len(self._buffers[name]) < n:
            self._buffers[name] = np.empty(n)
        return self._buffers[name][:n]
