"""Windows, bucketed batches and the tensors of a batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeqlora.data.batching import BucketSampler, choose_windows, padding_share, window_of
from edgeqlora.errors import UserError


def test_window_is_the_ladder_step_that_holds_the_longest_clip_and_a_margin():
    assert choose_windows([1.3, 1.65], None) == [2.0]  # 1.65 + 0.3 = 1.95
    assert choose_windows([0.5, 1.75], None, max_windows=1) == [2.5]


def test_short_windows_are_added_where_many_clips_are_short():
    durations = [1.5] * 50 + [9.0] * 50
    assert choose_windows(durations, None) == [2.0, 10.0]
    assert choose_windows([9.0] * 100, None) == [10.0]


def test_windows_of_the_user_are_kept():
    assert choose_windows([1.0], [3.0, 7.0]) == [3.0, 7.0]


def test_no_clips_is_an_error():
    with pytest.raises(UserError, match="there are no clips"):
        choose_windows([], None)


def test_padding_share_by_hand():
    # 1 s in a 2 s window and 3 s in a 4 s window: 2 of 6 s are padding; in one window of 4 s: 4 of 8.
    assert padding_share([1.0, 3.0], [2.0, 4.0]) == pytest.approx(2 / 6)
    assert padding_share([1.0, 3.0], [4.0]) == pytest.approx(4 / 8)


def test_window_of_a_clip():
    assert window_of(1.7, [2.0, 4.0]) == 2.0
    assert window_of(1.71, [2.0, 4.0]) == 4.0, "0.3 s of silence belong to a window"
    assert window_of(2.0, [2.0]) == 2.0, "unless none has room for them"
    assert window_of(2.0 + 1 / 44100, [2.0]) is None, "one sample at 16 kHz too long"
    assert window_of(2.1, [2.0, 4.0]) == 4.0
    assert window_of(4.1, [2.0, 4.0]) is None


@settings(max_examples=60, deadline=None)
@given(
    durations=st.lists(st.floats(0.1, 9.9), min_size=1, max_size=40),
    batch_size=st.integers(1, 9),
    steps=st.integers(1, 30),
    seed=st.integers(0, 1000),
)
def test_every_batch_has_one_window_that_holds_its_clips(durations, batch_size, steps, seed):
    sampler = BucketSampler(durations, [3.0, 10.0], batch_size, steps, seed)
    keys = list(sampler)
    assert len(keys) == len(sampler) == steps * batch_size
    for start in range(0, len(keys), batch_size):
        batch = keys[start : start + batch_size]
        assert len({key.window_s for key in batch}) == 1
        assert all(durations[key.row] <= key.window_s for key in batch)
    assert keys == list(BucketSampler(durations, [3.0, 10.0], batch_size, steps, seed))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 30), batch_size=st.integers(1, 8), epochs=st.integers(1, 4))
def test_no_clip_is_dropped_and_none_is_drawn_twice_an_epoch(n, batch_size, epochs):
    steps = n * epochs // batch_size
    if steps == 0:
        return
    durations = [1.0 + (i % 3) * 3 for i in range(n)]
    keys = list(BucketSampler(durations, [2.0, 10.0], batch_size, steps, 7))
    seen = [(key.epoch, key.row) for key in keys]
    assert len(seen) == len(set(seen))
    # A clip left over is carried into the next epoch: no clip is ever more than one epoch behind.
    counts = np.bincount([key.row for key in keys], minlength=n)
    assert counts.min() >= epochs - 2
    assert counts.max() <= epochs + 1


def test_epochs_are_shuffled_differently():
    keys = list(BucketSampler([1.0] * 16, [2.0], 4, 8, seed=3))
    first, second = [k.row for k in keys[:16]], [k.row for k in keys[16:]]
    assert sorted(first) == sorted(second) == list(range(16))
    assert first != second


def test_any_window_draws_all_that_hold_a_clip_and_none_that_does_not():
    durations = [0.5] * 30 + [1.5] * 30 + [4.0] * 10
    windows = [1.0, 2.0, 5.0]
    sampler = BucketSampler(durations, windows, 4, 200, seed=3, any_window=True)
    seen: dict[float, set[float]] = {}
    keys = list(sampler)
    for start in range(0, len(keys), 4):
        batch = keys[start : start + 4]
        assert len({key.window_s for key in batch}) == 1
        for key in batch:
            assert key.window_s >= durations[key.row]
            seen.setdefault(durations[key.row], set()).add(key.window_s)
    assert seen == {0.5: {1.0, 2.0, 5.0}, 1.5: {2.0, 5.0}, 4.0: {5.0}}
    assert keys == list(BucketSampler(durations, windows, 4, 200, seed=3, any_window=True))
    shares = [sum(key.window_s == w for key in keys if durations[key.row] == 0.5) for w in windows]
    assert min(shares) > 0.2 * sum(shares)
    smallest = [key for key in BucketSampler(durations, windows, 4, 200, seed=3) if durations[key.row] == 0.5]
    assert sum(key.window_s == 1.0 for key in smallest) > 0.9 * len(smallest)
