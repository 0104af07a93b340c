"""Window choice, and where long recordings are cut."""

import numpy as np
import pytest

from edgeqlora_jetson.audio.windows import choose_window, fitting_window, heard_seconds, split_long


@pytest.mark.parametrize(
    ("n_samples", "window_s"), [(0, 2.0), (27200, 2.0), (27201, 5.0), (80000, 5.0), (80001, 5.0), (10**7, 5.0)]
)
def test_smallest_window_that_holds_the_clip_and_its_margin(n_samples, window_s):
    assert choose_window(n_samples, [5.0, 2.0]) == window_s
    assert fitting_window(n_samples, [5.0, 2.0]) == (window_s if n_samples <= 80000 else None)


@pytest.mark.parametrize(
    ("clip_s", "margin_s", "least_s", "heard_s"),
    [(1.0, 2.0, 0.5, 3.0), (1.001, 2.0, 0.5, 3.2), (0.0, 0.5, 0.1, 0.6), (1.0, 2.0, 4.0, 4.0), (28.5, 2.0, 0.5, 30.0)],
)
def test_a_window_follows_the_clip_in_steps_and_not_below_what_was_tried(clip_s, margin_s, least_s, heard_s):
    assert heard_seconds(int(clip_s * 16000), 30.0, margin_s, least_s) == heard_s


def test_no_windows():
    with pytest.raises(ValueError, match="windows_s is empty"):
        choose_window(1, [])


def test_a_clip_that_fits_is_one_range():
    assert split_long(np.ones(32000), 2.0) == [(0, 32000)]
    assert split_long(np.ones(0), 2.0) == [(0, 0)]


def test_cut_in_the_pause():
    """A pause of 40 ms from 1.80 s, in the last fifth (1.6 to 2.0 s) of a 2 s window."""
    audio = np.ones(48000, dtype=np.float32)
    audio[28800:29440] = 0.0
    (first, second) = split_long(audio, 2.0)
    assert 28800 <= first[1] <= 29440
    assert (first[0], first[1], second[1]) == (0, second[0], 48000)


def test_a_pause_before_the_last_fifth_is_not_used():
    audio = np.ones(40000)
    audio[10000:11000] = 0.0
    assert split_long(audio, 2.0)[0][1] >= 25600


def test_ranges_cover_all_and_fit_whatever_the_sound():
    random = np.random.RandomState(0)
    for n_samples in (32001, 100000, 333333):
        for audio in (random.randn(n_samples), np.zeros(n_samples), np.linspace(0, 1, n_samples)):
            ranges = split_long(audio, 2.0)
            assert ranges[0][0] == 0
            assert ranges[-1][1] == n_samples
            assert all(end == start for (_, end), (start, _) in zip(ranges, ranges[1:]))
            assert all(0 < end - start <= 32000 for start, end in ranges)
            # At least 1.6 s a piece, 1.2 s before the last one, which is no scrap.
            assert all(end - start >= 25600 for start, end in ranges[:-2])
            assert ranges[-2][1] - ranges[-2][0] >= 19200
            assert n_samples - ranges[-1][0] >= 6400


def test_silence_is_cut_as_late_as_possible():
    assert split_long(np.zeros(64000), 2.0)[0][1] > 31700
