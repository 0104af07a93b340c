"""Load scenarios after MLPerf Inference: how clips reach the model, and what is measured.

single-stream   one clip at a time, the next one as soon as the text is there: latency.
offline         all clips are there at the start, `batch_size` of one window go together: throughput.
server          clips arrive at random (Poisson process) at a mean rate; latency runs from the arrival, so waiting counts.

Names and rules follow Reddi et al. 2020, "MLPerf Inference Benchmark" (arXiv:1911.02549); what differs is said in the
report: whole passes over the clips instead of samples drawn with replacement, so that every run measures the same mix.
"""

import time
from typing import Any, Callable, Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np

SCENARIOS = ("single-stream", "offline", "server")


class Query(NamedTuple):
    """One clip given to the model once."""

    clip: int  # index into the clips
    repeat: int  # pass over the clips, from 0
    arrival_s: float  # server: seconds after the start of the run; otherwise 0


class Measurement(NamedTuple):
    """One clip transcribed once. In a batch its times are those of the batch."""

    clip: int  # index into the clips
    repeat: int  # pass over the clips, from 0
    batch: int  # number of the model call it was part of, from 0
    transcript: Any  # transcribe.Transcript
    latency_ms: float  # from when the clip was there (server: its arrival) to its text
    waiting_ms: float  # of which before the model call began; 0 but in the server scenario
    is_timed: bool = True  # False: counts for accuracy only


Run = Callable[[List[np.ndarray]], List[Any]]


def pass_order(n_clips: int, seed: int, repeat: int) -> List[int]:
    """Order of the clips in a pass: a permutation that depends on seed and pass only, the same in every numpy."""
    return [int(i) for i in np.random.RandomState((seed + 7919 * repeat) % 2**32).permutation(n_clips)]


def poisson_arrivals(n: int, rate_per_s: float, seed: int) -> List[float]:
    """Arrival times (s, ascending, first one after an exponential gap) of a Poisson process of `rate_per_s`."""
    gaps_s = np.random.RandomState(seed % 2**32).exponential(1.0 / rate_per_s, n)
    return [float(t) for t in np.cumsum(gaps_s)]


def run_single_stream(
    run: Run, audios: Sequence[np.ndarray], seed: int, is_enough: Callable[[int, int], bool]
) -> Iterator[List[Measurement]]:
    """One clip after another, whole passes, until is_enough(n passes, n clips done) after a pass."""
    repeat = n_done = 0
    while not is_enough(repeat, n_done):
        for clip in pass_order(len(audios), seed, repeat):
            start_s = time.perf_counter()
            transcripts = run([audios[clip]])
            latency_ms = (time.perf_counter() - start_s) * 1e3
            yield [Measurement(clip, repeat, n_done, transcripts[0], latency_ms, 0.0)]
            n_done += 1
        repeat += 1


def run_offline(
    run: Run,
    audios: Sequence[np.ndarray],
    windows: Sequence[Any],
    batch_size: int,
    seed: int,
    is_enough: Callable[[int, int], bool],
) -> Iterator[List[Measurement]]:
    """Batches of clips of one window, whole passes. windows: of each clip; None: longer than any, goes alone."""
    repeat = n_done = n_calls = 0
    while not is_enough(repeat, n_done):
        for clips in batches(pass_order(len(audios), seed, repeat), windows, batch_size):
            start_s = time.perf_counter()
            transcripts = run([audios[clip] for clip in clips])
            latency_ms = (time.perf_counter() - start_s) * 1e3
            yield [
                Measurement(clip, repeat, n_calls, transcript, latency_ms, 0.0)
                for clip, transcript in zip(clips, transcripts)
            ]
            n_calls += 1
            n_done += len(clips)
        repeat += 1


def run_server(
    run: Run,
    audios: Sequence[np.ndarray],
    windows: Sequence[Any],
    batch_size: int,
    queries: Sequence[Query],
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[List[Measurement]]:
    """Serve queries in the order of their arrival; those waiting for the same window share a call, at most batch_size.

    Latency counts from the scheduled arrival, not from when the program looked: a slow call makes all that came
    meanwhile wait (no "coordinated omission").
    """
    start_s = clock()
    waiting: List[Query] = []
    n_taken = n_calls = 0
    while n_taken < len(queries) or waiting:
        now_s = clock() - start_s
        while n_taken < len(queries) and queries[n_taken].arrival_s <= now_s:
            waiting.append(queries[n_taken])
            n_taken += 1
        if not waiting:
            sleep(queries[n_taken].arrival_s - now_s)
            continue
        window = windows[waiting[0].clip]
        together = [q for q in waiting if windows[q.clip] == window][: batch_size if window is not None else 1]
        waiting = [q for q in waiting if q not in together]
        begun_s = clock() - start_s
        transcripts = run([audios[q.clip] for q in together])
        done_s = clock() - start_s
        yield [
            Measurement(
                q.clip, q.repeat, n_calls, t, (done_s - q.arrival_s) * 1e3, max(0.0, begun_s - q.arrival_s) * 1e3
            )
            for q, t in zip(together, transcripts)
        ]
        n_calls += 1


def server_queries(n_clips: int, n_queries: int, min_s: float, rate_per_s: float, seed: int) -> List[Query]:
    """Whole passes over the clips at Poisson arrivals: at least n_queries, the last one not before min_s."""
    n_passes = max(1, -(-max(n_queries, int(rate_per_s * min_s)) // n_clips))
    arrivals_s = poisson_arrivals(n_passes * n_clips, rate_per_s, seed)
    while arrivals_s[-1] < min_s:
        n_passes += 1  # more of the same: a longer draw of a seed begins with the shorter one
        arrivals_s = poisson_arrivals(n_passes * n_clips, rate_per_s, seed)
    order = [(clip, repeat) for repeat in range(n_passes) for clip in pass_order(n_clips, seed, repeat)]
    return [Query(clip, repeat, arrival_s) for (clip, repeat), arrival_s in zip(order, arrivals_s)]


def batches(order: Sequence[int], windows: Sequence[Any], batch_size: int) -> Iterator[List[int]]:
    """Clips of one window together, at most batch_size; a clip whose window is None alone."""
    waiting: List[Tuple[Any, List[int]]] = []
    for clip in order:
        if windows[clip] is None:
            yield [clip]
            continue
        group = next((group for window, group in waiting if window == windows[clip]), None)
        if group is None:
            group = []
            waiting.append((windows[clip], group))
        group.append(clip)
        if len(group) == batch_size:
            yield list(group)
            del group[:]
    for _, group in waiting:
        if group:
            yield group
