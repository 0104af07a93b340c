"""Augmentation of one clip: SpecAugment on its log-mel, speed, room and noise on its audio.

Every random choice comes from the generator that is passed in, so that a clip's augmentation depends on the
seed alone. All randomness is drawn with numpy; torchaudio does the signal processing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeqlora.card import installed_version
from edgeqlora.data.audio import Audio
from edgeqlora.errors import UserError

Mel = npt.NDArray[np.float32]

# torchaudio 2.11 is built on torch's stable interface: it works with later torch releases as well.
TORCHAUDIO_STABLE = (2, 11)


@dataclass(frozen=True)
class AugmentConfig:
    """What to change in training clips, and how much; everything is off by default."""

    speed_factors: tuple[float, ...] = ()
    """Speeds to draw from, each in [0.5, 2], e.g. (0.9, 1.0, 1.1); pitch follows (Ko et al. 2015)."""
    noise_probability: float = 0.0
    """Share of clips, in [0, 1], that get background noise."""
    noise_snr_db_min: float = 5.0
    """Lowest signal-to-noise ratio in dB, drawn evenly up to `noise_snr_db_max`."""
    noise_snr_db_max: float = 20.0
    """Highest signal-to-noise ratio in dB."""
    room_probability: float = 0.0
    """Share of clips, in [0, 1], that are convolved with a room impulse response."""
    time_warp_frames: int = 0
    """Most frames (10 ms each) by which a point of the clip moves; 0 is off. SpecAugment's W."""
    n_frequency_masks: int = 0
    """Bands of mel bins masked in each clip."""
    frequency_mask_bins: int = 0
    """Most mel bins in one band. SpecAugment's F."""
    n_time_masks: int = 0
    """Stretches of frames masked in each clip."""
    time_mask_frames: int = 0
    """Most frames in one stretch. SpecAugment's T."""
    time_mask_share: float = 0.2
    """Most of the clip's frames, as a share in [0, 1], that one stretch may take. SpecAugment's p."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "speed_factors":
                valid, allowed = all(0.5 <= factor <= 2.0 for factor in value), "numbers from 0.5 to 2"
            elif field.name.endswith(("probability", "share")):
                valid, allowed = 0.0 <= value <= 1.0, "from 0 to 1"
            elif field.name.startswith("noise_snr_db"):
                valid, allowed = -40.0 <= value <= 100.0, "from -40 to 100 dB"
            else:
                valid, allowed = value >= 0, "0 (off) or more"
            if not valid:
                raise UserError(f"{field.name}={value} is out of range: it must be {allowed}")
        if self.noise_snr_db_min > self.noise_snr_db_max:
            raise UserError(
                f"noise_snr_db_min={self.noise_snr_db_min} must not exceed "
                f"noise_snr_db_max={self.noise_snr_db_max}: swap them"
            )

    @property
    def changes_audio(self) -> bool:
        """True if features must be computed anew for each epoch, without the cache."""
        return bool(self.speed_factors) or self.noise_probability > 0 or self.room_probability > 0

    @property
    def changes_mel(self) -> bool:
        """True if `augment_mel` may change anything."""
        masks_bins = self.n_frequency_masks > 0 and self.frequency_mask_bins > 0
        masks_frames = self.n_time_masks > 0 and self.time_mask_frames > 0
        return self.time_warp_frames > 0 or masks_bins or masks_frames


def augment_audio(
    audio: Audio,
    rng: np.random.Generator,
    config: AugmentConfig,
    noises: Sequence[Audio] = (),
    rooms: Sequence[Audio] = (),
    max_samples: int | None = None,
) -> Audio:
    """Change speed, room and noise of a clip, in that order; the input is not modified.

    audio: float32 of shape (n_samples,) at 16 kHz. noises, rooms (impulse responses): the same, any length.
    max_samples: a speed that would make the clip longer than this (it would be cut) is not drawn.
    Returns float32 of shape (n_out,), possibly beyond [-1, 1]: a log-mel does not clip, so neither do we.

    Raises UserError when noise or rooms are asked for and none are given.
    """
    if config.speed_factors:
        fitting = [f for f in config.speed_factors if max_samples is None or math.ceil(audio.size / f) <= max_samples]
        if fitting:
            audio = change_speed(audio, float(rng.choice(fitting)))
    if rng.random() < config.room_probability:
        audio = add_room(audio, _draw(rng, rooms, "room_probability", "impulse responses"))
    if rng.random() < config.noise_probability:
        noise = _draw(rng, noises, "noise_probability", "noise recordings")
        snr_db = rng.uniform(config.noise_snr_db_min, config.noise_snr_db_max)
        offset = int(rng.integers(noise.size))
        audio = mix_noise(audio, noise, snr_db, offset)
    return audio


def change_speed(audio: Audio, factor: float) -> Audio:
    """Play a clip `factor` times as fast, shape (n_samples,) to (about n_samples / factor,)."""
    # Rates are whole numbers, and the filter grows with rate / gcd: steps of 1 % keep it short.
    percent = round(100 * factor)
    if percent == 100:
        return audio
    torch, torchaudio = load_torchaudio()
    return _numpy(torchaudio.functional.resample(torch.from_numpy(audio), percent, 100))


def mix_noise(audio: Audio, noise: Audio, snr_db: float, offset: int = 0) -> Audio:
    """Add noise so that 10 log10(clip energy / noise energy) is `snr_db`.

    The noise starts at sample `offset` and begins anew when it is shorter than the clip. Where either of the
    two is silent there is no ratio, and the clip comes back as it is.
    """
    noise = np.take(noise, np.arange(offset, offset + audio.size), mode="wrap").astype(np.float32, copy=False)
    if not audio.any() or not noise.any():
        return audio
    torch, torchaudio = load_torchaudio()
    return _numpy(
        torchaudio.functional.add_noise(
            torch.from_numpy(audio), torch.from_numpy(noise), torch.tensor(snr_db, dtype=torch.float32)
        )
    )


def add_room(audio: Audio, impulse_response: Audio) -> Audio:
    """Convolve a clip with a room's impulse response, keeping length, loudness and start of speech.

    The response is scaled to unit energy and its strongest sample, the direct sound, taken as delay 0.
    A silent response leaves the clip as it is.
    """
    energy = float(np.sum(impulse_response.astype(np.float64) ** 2))
    if energy == 0.0:
        return audio
    delay = int(np.argmax(np.abs(impulse_response)))
    torch, torchaudio = load_torchaudio()
    # The transform is as long as both together; a power of two takes a seventh of the time of 31,999.
    n_fft = 1 << (audio.size + impulse_response.size - 2).bit_length()
    padded = np.zeros(n_fft - audio.size + 1, np.float32)
    padded[: impulse_response.size] = impulse_response / math.sqrt(energy)
    response = torch.from_numpy(padded)
    wet = torchaudio.functional.fftconvolve(torch.from_numpy(audio), response)
    return _numpy(wet[delay : delay + audio.size])


def augment_mel(mel: Mel, n_valid_frames: int, rng: np.random.Generator, config: AugmentConfig) -> Mel:
    """Apply SpecAugment (Park et al. 2019, arXiv:1904.08779) to float32 of shape (n_mels, n_frames).

    Only the first `n_valid_frames` change: padding stays what the model expects of silence. Masked cells get
    the mean of the clip, which is the paper's 0 of mean-normalised features. The input is not modified.
    """
    n_mels, n_frames = mel.shape
    n_valid = min(n_valid_frames, n_frames)
    if n_valid < 1 or not config.changes_mel:
        return mel
    mel = mel.copy()
    clip = mel[:, :n_valid]
    if config.time_warp_frames:
        clip[:] = warp_time(clip, config.time_warp_frames, rng)
    fill = clip.mean()
    for _ in range(config.n_frequency_masks):
        start, stop = _stretch(rng, n_mels, config.frequency_mask_bins)
        clip[start:stop] = fill
    longest = min(config.time_mask_frames, int(config.time_mask_share * n_valid))
    for _ in range(config.n_time_masks):
        start, stop = _stretch(rng, n_valid, longest)
        clip[:, start:stop] = fill
    return mel


def warp_time(clip: Mel, most_frames: int, rng: np.random.Generator) -> Mel:
    """Move one inner frame by up to `most_frames`, stretching one side and squeezing the other, linearly.

    Shape (n_mels, n_frames) in and out; first and last frame stay. Clips too short for the shift get a
    smaller one.
    """
    n_frames = clip.shape[1]
    most = min(most_frames, (n_frames - 3) // 2)
    if most < 1:
        return clip
    centre = int(rng.integers(most + 1, n_frames - 1 - most))
    moved = centre + int(rng.integers(-most, most + 1))
    position = np.interp(np.arange(n_frames), [0, moved, n_frames - 1], [0, centre, n_frames - 1])
    before = np.minimum(position.astype(np.int64), n_frames - 2)
    weight = (position - before).astype(np.float32)
    warped: Mel = clip[:, before] * (1 - weight) + clip[:, before + 1] * weight
    return warped


@lru_cache(maxsize=1)
def load_torchaudio() -> tuple[Any, Any]:
    """Import (torch, torchaudio) and try one operation.

    Raises UserError with both versions and the command that corrects it: a torchaudio built for another torch
    fails in ways (missing symbols, CUDA versions) that say nothing of the cause.
    """
    import torch

    try:
        import torchaudio
        import torchaudio.functional

        torchaudio.functional.resample(torch.zeros(20), 9, 10)
    except Exception as error:
        raise UserError(torchaudio_mismatch(error)) from error
    return torch, torchaudio


def torchaudio_mismatch(error: BaseException) -> str:
    """The advice for the versions that are installed."""
    return torchaudio_advice(installed_version("torch") or "?", installed_version("torchaudio"), error)


def torchaudio_advice(torch_version: str, torchaudio_version: str | None, error: BaseException) -> str:
    """Say why torchaudio does not work and what to install; `torchaudio_version=None` is not installed."""
    number = tuple(int(part) for part in torch_version.split("+")[0].split(".")[:2] if part.isdigit())
    if len(number) == 2 and number <= TORCHAUDIO_STABLE:
        match = f'"torchaudio=={number[0]}.{number[1]}.*"'
    else:
        match = f'"torchaudio>={TORCHAUDIO_STABLE[0]}.{TORCHAUDIO_STABLE[1]}"'
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if torchaudio_version is None:
        problem = "speed, noise and room augmentation need torchaudio, which is not installed"
    else:
        problem = f"torchaudio {torchaudio_version} does not match torch {torch_version} ({reason:.120})"
    return f"{problem}. Install the one that matches: pip install {match}"


def _draw(rng: np.random.Generator, clips: Sequence[Audio], setting: str, what: str) -> Audio:
    if not clips:
        raise UserError(f"{setting} is above 0 but there are no {what}: give some, or set it to 0")
    return clips[int(rng.integers(len(clips)))]


def _stretch(rng: np.random.Generator, length: int, longest: int) -> tuple[int, int]:
    """Draw a stretch of 0 to `longest` cells inside `length`: its start and its end."""
    width = int(rng.integers(0, min(longest, length) + 1))
    start = int(rng.integers(0, length - width + 1))
    return start, start + width


def _numpy(tensor: Any) -> Audio:
    return np.ascontiguousarray(tensor.numpy(), dtype=np.float32)
