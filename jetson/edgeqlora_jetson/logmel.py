"""Whisper's log-mel spectrogram in numpy."""

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
        self._hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(n_fft) / n_fft)

    def __call__(self, audio: np.ndarray, n_frames: int) -> np.ndarray:
        """Audio, float (n_samples,), zero-padded or cut to n_frames * hop_length -> float32 (n_mels, n_frames).

        Only the frames that touch audio are transformed: the others are zeros, whose value is known.
        """
        n_total = n_frames * self.hop_length
        half = self.n_fft // 2
        if n_total <= half:
            raise ValueError("n_frames={} is shorter than half a transform ({} samples)".format(n_frames, half))
        audio = np.asarray(audio)[:n_total]
        n_busy = min(n_frames, -(-(len(audio) + half) // self.hop_length)) if len(audio) else 0
        n_busy_samples = min(n_total, n_busy * self.hop_length + half)
        padded = np.zeros(max(n_busy_samples, half + 1), dtype=np.float64)
        padded[: len(audio)] = audio
        # A reflected edge on the right as well; where it is not the clip's end it mirrors zeros or is unused.
        padded = np.pad(padded, (half, half), mode="reflect")
        log_mel = np.full((self.n_mels, n_frames), _FLOOR_LOG)
        if n_busy:
            log_mel[:, :n_busy] = self._log_power(padded, n_busy)
        np.maximum(log_mel, log_mel.max() - _RANGE_LOG, out=log_mel)
        return ((log_mel + 4.0) / 4.0).astype(np.float32)

    def _log_power(self, padded: np.ndarray, n_busy: int) -> np.ndarray:
        """Log10 mel power of the first n_busy frames: float64 (n_mels, n_busy)."""
        step = padded.strides[0]
        frames = np.lib.stride_tricks.as_strided(
            padded, shape=(n_busy, self.n_fft), strides=(self.hop_length * step, step)
        )
        mel_power = np.empty((self.n_mels, n_busy))
        for start in range(0, n_busy, _BLOCK_FRAMES):
            block = slice(start, start + _BLOCK_FRAMES)
            spectrum = np.fft.rfft(frames[block] * self._hann, axis=1)
            power = spectrum.real**2 + spectrum.imag**2
            mel_power[:, block] = self._filters.dot(power.T)
        return np.log10(np.maximum(mel_power, _FLOOR_POWER))
