"""Batches: which window each clip needs, and clips of one window together."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from edgeqlora.errors import UserError
from edgeqlora_jetson.audio.windows import MARGIN_S, SAMPLE_RATE_HZ, fitting_window

LADDER_S = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0, 25.0, 30.0)
"""Windows to choose from, in s."""
IGNORE = -100
"""Label value that the loss passes over (the convention of torch and transformers)."""


class SampleKey(NamedTuple):
    """What the data set needs to make one training sample, whatever process asks for it."""

    row: int
    window_s: float
    epoch: int


def choose_windows(durations_s: Sequence[float], wanted: list[float] | None, max_windows: int = 3) -> list[float]:
    """Windows for clips of these durations, ascending.

    wanted: the user's windows, returned as they are; None: the smallest ladder step that holds the longest clip plus
    MARGIN_S, and up to max_windows - 1 shorter ones where each takes at least a fifth of the clips out of a window
    that is at least 1.5 times as long.
    """
    if wanted:
        return wanted
    if not durations_s:
        raise UserError("window_s=auto needs clip durations, and there are no clips")
    needed = sorted(min(duration + MARGIN_S, 30.0) for duration in durations_s)

    def step(seconds: float) -> float:
        return next(s for s in LADDER_S if s >= seconds - 1e-9)

    windows = [step(needed[-1])]
    while len(windows) < max_windows:
        held = [seconds for seconds in needed if seconds <= windows[0] / 1.5]
        shorter = [s for s in LADDER_S if s <= windows[0] / 1.5]
        if not shorter or len(held) < 0.2 * len(needed):
            break
        # The step that saves most frames: (window - step) times the clips that fit into the step.
        gain, best = max(((windows[0] - s) * sum(n <= s for n in held), s) for s in shorter)
        if gain <= 0 or sum(n <= best for n in held) < 0.2 * len(needed):
            break
        windows.insert(0, best)
    return windows


def window_of(duration_s: float, windows_s: Sequence[float]) -> float | None:
    """The window that the board gives a clip of this duration, or None if it is longer than all of them."""
    # In samples at the models' rate, rounded up as resampling does; 1e-3: of a sample, for the division by the file's rate.
    return fitting_window(math.ceil(duration_s * SAMPLE_RATE_HZ - 1e-3), windows_s)


def padding_share(durations_s: Sequence[float], windows_s: Sequence[float]) -> float:
    """Share of the encoder's frames that are padding when each clip goes into its smallest window."""
    speech = frames = 0.0
    for duration in durations_s:
        window = window_of(duration, windows_s) or windows_s[-1]
        speech += min(duration, window)
        frames += window
    return 1.0 - speech / frames if frames else 0.0


class BucketSampler:
    """All samples of a run, in order: epochs of shuffled batches, each batch of one window.

    Yields SampleKeys in runs of `batch_size` (the global batch), so that consecutive pieces can be dealt out to
    processes and accumulation steps, and every process sees the same windows whatever their number. Clips left over
    at the end of an epoch are batched together in the largest window; the last of them open the next epoch, so that
    none is dropped. Pure function of its arguments: a resumed run meets the same batches.

    any_window: in each epoch a clip gets one of the windows that hold it, each as likely, and not the smallest: so that
    one model serves them all.
    """

    def __init__(
        self,
        durations_s: Sequence[float],
        windows_s: Sequence[float],
        batch_size: int,
        steps: int,
        seed: int,
        any_window: bool = False,
    ):
        self.batch_size, self.steps, self.seed, self.any_window = batch_size, steps, seed, any_window
        self.windows_s = list(windows_s)
        self.bucket = [self.windows_s.index(window_of(d, windows_s) or self.windows_s[-1]) for d in durations_s]
        if not self.bucket:
            raise UserError("there are no training clips")

    def __len__(self) -> int:
        return self.steps * self.batch_size

    def __iter__(self) -> Iterator[SampleKey]:
        made, epoch = 0, 0
        carried: list[tuple[int, int]] = []
        while made < self.steps:
            batches, carried = self._epoch(epoch, carried)
            for batch in batches:
                window = self.windows_s[max(self._bucket(index, of_epoch) for index, of_epoch in batch)]
                for index, of_epoch in batch:
                    yield SampleKey(index, window, of_epoch)
                made += 1
                if made == self.steps:
                    return
            epoch += 1

    def _bucket(self, index: int, epoch: int) -> int:
        """Number of the window of a clip in an epoch."""
        smallest = self.bucket[index]
        if not self.any_window or smallest == len(self.windows_s) - 1:
            return smallest
        return int(np.random.default_rng([self.seed, epoch, index]).integers(smallest, len(self.windows_s)))

    def _epoch(
        self, epoch: int, carried: list[tuple[int, int]]
    ) -> tuple[list[list[tuple[int, int]]], list[tuple[int, int]]]:
        rng = np.random.default_rng([self.seed, epoch])
        buckets: list[list[tuple[int, int]]] = [[] for _ in self.windows_s]
        for index, of_epoch in carried:
            buckets[self._bucket(index, of_epoch)].append((index, of_epoch))
        for index in rng.permutation(len(self.bucket)):
            buckets[self._bucket(int(index), epoch)].append((int(index), epoch))
        size = self.batch_size
        batches, rest = [], []
        for clips in buckets:
            full = len(clips) - len(clips) % size
            batches += [clips[start : start + size] for start in range(0, full, size)]
            rest += clips[full:]
        full = len(rest) - len(rest) % size
        batches += [rest[start : start + size] for start in range(0, full, size)]
        return [batches[i] for i in rng.permutation(len(batches))], rest[full:]


class MixedSampler:
    """Two samplers in one: of every step first the clips of the task, then those of general speech.

    Rows of the second follow those of the first in the data set.
    """

    def __init__(self, task: BucketSampler, general: BucketSampler):
        self.task, self.general = task, general

    def __len__(self) -> int:
        return len(self.task) + len(self.general)

    def __iter__(self) -> Iterator[SampleKey]:
        task, general, offset = iter(self.task), iter(self.general), len(self.task.bucket)
        for _ in range(self.task.steps):
            yield from islice(task, self.task.batch_size)
            for key in islice(general, self.general.batch_size):
                yield key._replace(row=key.row + offset)
