"""Augmentation: measured ratios, bounds, and the same result for the same seed."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeqlora.data import augment
from edgeqlora.data.augment import (
    AugmentConfig,
    add_room,
    augment_audio,
    augment_mel,
    change_speed,
    load_torchaudio,
    mix_noise,
    torchaudio_advice,
    warp_time,
)
from edgeqlora.errors import UserError


def tone(n_samples: int, frequency_hz: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency_hz * np.arange(n_samples) / 16000)).astype(np.float32)


def white(n_samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, n_samples).astype(np.float32)


def snr_db(clip: np.ndarray, mixed: np.ndarray) -> float:
    rest = mixed.astype(np.float64) - clip
    return 10 * np.log10(np.sum(clip.astype(np.float64) ** 2) / np.sum(rest**2))


@pytest.mark.parametrize("asked_db", [-10.0, 0.0, 5.0, 17.3, 30.0])
@pytest.mark.parametrize("n_noise", [700, 16000, 50000])
def test_noise_is_mixed_at_the_asked_ratio(asked_db, n_noise):
    clip = tone(16000)
    mixed = mix_noise(clip, white(n_noise), asked_db, offset=n_noise - 3)
    assert mixed.shape == clip.shape
    assert abs(snr_db(clip, mixed) - asked_db) < 0.01


def test_noise_by_hand():
    # Clip energy 4 x 0.01, noise energy 4 x 0.04; for 0 dB the noise is halved.
    mixed = mix_noise(np.full(4, 0.1, np.float32), np.array([0.2, -0.2], np.float32), 0.0)
    np.testing.assert_allclose(mixed, [0.2, 0.0, 0.2, 0.0], atol=1e-6)


def test_short_noise_begins_anew_from_its_offset():
    clip = np.full(5, 1.0, np.float32)
    added = mix_noise(clip, np.array([1, 2, 3], np.float32), 0.0, offset=2) - clip
    np.testing.assert_allclose(added / added[1], [3, 1, 2, 3, 1], rtol=1e-5)


def test_silence_has_no_ratio_and_stays():
    np.testing.assert_array_equal(mix_noise(np.zeros(100, np.float32), white(50), 5.0), np.zeros(100))
    np.testing.assert_array_equal(mix_noise(tone(100), np.zeros(50, np.float32), 5.0), tone(100))


@pytest.mark.parametrize(("factor", "n_samples"), [(0.9, 17778), (1.1, 14546), (2.0, 8000), (0.5, 32000)])
def test_speed_changes_length_and_pitch(factor, n_samples):
    fast = change_speed(tone(16000), factor)
    assert fast.shape == (n_samples,)
    assert fast.dtype == np.float32
    peak_hz = np.argmax(np.abs(np.fft.rfft(fast))) * 16000 / fast.size
    assert abs(peak_hz - 440 * factor) < 1.5


def test_speed_that_would_overflow_the_window_is_not_drawn():
    config = AugmentConfig(speed_factors=(0.5, 0.9, 1.0))
    lengths = {
        augment_audio(tone(16000), np.random.default_rng(seed), config, max_samples=17800).size for seed in range(20)
    }
    assert lengths == {16000, 17778}
    only_slow = AugmentConfig(speed_factors=(0.5,))
    assert augment_audio(tone(16000), np.random.default_rng(0), only_slow, max_samples=17800).size == 16000


def test_room_keeps_length_start_and_loudness():
    response = np.zeros(400, np.float32)
    response[100] = 2.0
    np.testing.assert_allclose(add_room(tone(1600), response), tone(1600), atol=1e-5)
    response[300] = 1.0
    wet = add_room(tone(1600), response)
    expected = (2 * tone(1600) + np.pad(tone(1600), (200, 0))[:1600]) / np.sqrt(5)
    np.testing.assert_allclose(wet, expected, atol=1e-5)
    np.testing.assert_array_equal(add_room(tone(50), np.zeros(10, np.float32)), tone(50))


def test_same_seed_same_clip():
    config = AugmentConfig(speed_factors=(0.9, 1.1), noise_probability=1.0, room_probability=0.5)
    clip, noises, rooms = tone(8000), [white(3000), white(20000, 1)], [white(100, 2)]
    before = clip.copy()
    results = [
        [augment_audio(clip, np.random.default_rng(seed), config, noises, rooms) for seed in range(8)] for _ in range(2)
    ]
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)
    assert len({audio.tobytes() for audio in results[0]}) == 8
    np.testing.assert_array_equal(clip, before)


def test_everything_is_off_by_default():
    config = AugmentConfig()
    assert not config.changes_audio
    assert not config.changes_mel
    clip = tone(1000)
    assert augment_audio(clip, np.random.default_rng(0), config) is clip
    mel = np.zeros((80, 100), np.float32)
    assert augment_mel(mel, 50, np.random.default_rng(0), config) is mel
    assert AugmentConfig(speed_factors=(0.9,)).changes_audio
    assert AugmentConfig(n_time_masks=1, time_mask_frames=5).changes_mel


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("speed_factors", (0.1,), r"speed_factors=\(0.1,\) is out of range: it must be numbers from 0.5 to 2"),
        ("noise_probability", 1.5, r"noise_probability=1.5 is out of range: it must be from 0 to 1"),
        ("time_mask_share", float("nan"), r"time_mask_share=nan"),
        ("n_time_masks", -1, r"n_time_masks=-1 is out of range: it must be 0 \(off\) or more"),
        ("noise_snr_db_min", 200.0, "from -40 to 100 dB"),
        ("noise_snr_db_min", 30.0, "must not exceed noise_snr_db_max=20.0"),
    ],
)
def test_settings_out_of_range(setting, value, message):
    with pytest.raises(UserError, match=message):
        AugmentConfig(**{setting: value})


def test_noise_without_recordings_is_refused():
    with pytest.raises(UserError, match="noise_probability is above 0 but there are no noise recordings"):
        augment_audio(tone(100), np.random.default_rng(0), AugmentConfig(noise_probability=1.0))


@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(1, 20), st.integers(1, 60)),
    n_valid=st.integers(-1, 70),
    config=st.builds(
        AugmentConfig,
        time_warp_frames=st.integers(0, 80),
        n_frequency_masks=st.integers(0, 3),
        frequency_mask_bins=st.integers(0, 30),
        n_time_masks=st.integers(0, 3),
        time_mask_frames=st.integers(0, 80),
        time_mask_share=st.floats(0, 1),
    ),
)
@settings(max_examples=300, deadline=None)
def test_spec_augment_stays_within_bounds(seed, shape, n_valid, config):
    mel = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    before = mel.copy()
    result = augment_mel(mel, n_valid, np.random.default_rng(seed), config)
    np.testing.assert_array_equal(mel, before)
    assert result.shape == mel.shape
    assert result.dtype == np.float32
    padding = max(0, min(n_valid, shape[1]))
    np.testing.assert_array_equal(result[:, padding:], mel[:, padding:])
    if padding:
        # Interpolation and the mean never leave the range of the clip.
        assert result[:, :padding].min() >= mel[:, :padding].min() - 1e-5
        assert result[:, :padding].max() <= mel[:, :padding].max() + 1e-5
    again = augment_mel(mel, n_valid, np.random.default_rng(seed), config)
    np.testing.assert_array_equal(result, again)


@given(seed=st.integers(0, 2**32), n_masks=st.integers(1, 3), frames=st.integers(1, 50), share=st.floats(0.05, 1.0))
@settings(deadline=None)
def test_masks_are_no_wider_than_asked(seed, n_masks, frames, share):
    mel = np.arange(80 * 100, dtype=np.float32).reshape(80, 100)
    time = AugmentConfig(n_time_masks=n_masks, time_mask_frames=frames, time_mask_share=share)
    masked = (augment_mel(mel, 60, np.random.default_rng(seed), time) != mel).any(axis=0)
    assert masked.sum() <= n_masks * min(frames, int(share * 60))
    frequency = AugmentConfig(n_frequency_masks=n_masks, frequency_mask_bins=frames)
    masked = (augment_mel(mel, 60, np.random.default_rng(seed), frequency) != mel).any(axis=1)
    assert masked.sum() <= n_masks * frames


def test_masked_cells_hold_the_mean_of_the_clip():
    mel = np.arange(20, dtype=np.float32).reshape(2, 10)
    config = AugmentConfig(n_time_masks=1, time_mask_frames=4, time_mask_share=1.0)
    result = next(
        found
        for seed in range(50)
        if (found := augment_mel(mel, 5, np.random.default_rng(seed), config)) is not None and (found != mel).any()
    )
    # Mean of 0..4 and 10..14.
    assert set(result[result != mel]) == {7.0}


def test_time_warp_moves_the_middle_and_keeps_the_ends():
    ramp = np.tile(np.arange(50, dtype=np.float32), (3, 1))
    shifts = []
    for seed in range(30):
        warped = warp_time(ramp, 8, np.random.default_rng(seed))
        assert warped[0, 0] == 0
        assert warped[0, -1] == 49
        assert (np.diff(warped[0]) > 0).all(), "time never runs backwards"
        shifts.append(float(np.abs(warped - ramp).max()))
    assert 6 < max(shifts) <= 8


def test_torchaudio_that_does_not_load_is_named(monkeypatch):
    load_torchaudio.cache_clear()
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    with pytest.raises(UserError, match=r"^torchaudio \S+ does not match torch .*pip install"):
        load_torchaudio()
    monkeypatch.setattr(augment, "installed_version", lambda name: None if name == "torchaudio" else "2.6.0+cu124")
    with pytest.raises(UserError, match=r'not installed. Install .* pip install "torchaudio==2.6.\*"'):
        change_speed(tone(100), 0.9)
    monkeypatch.undo()
    load_torchaudio.cache_clear()
    assert load_torchaudio()[1].__name__ == "torchaudio"


def test_advice_follows_the_torch_version():
    error = OSError("undefined symbol: _ZN3c10\nmore")
    assert torchaudio_advice("2.9.1", "2.6.0", error) == (
        "torchaudio 2.6.0 does not match torch 2.9.1 (undefined symbol: _ZN3c10). Install the one that matches: "
        'pip install "torchaudio==2.9.*"'
    )
    assert 'pip install "torchaudio>=2.11"' in torchaudio_advice("2.14.1", "2.6.0", error)
