"""Scenarios: who is transcribed when, and from when latency counts; computed by hand on a clock of our own."""

import numpy as np
import pytest

from edgeqlora_jetson.bench.scenarios import (
    Query,
    batches,
    pass_order,
    poisson_arrivals,
    run_offline,
    run_server,
    run_single_stream,
    server_queries,
)

AUDIOS = [np.full(4, i, dtype=np.float32) for i in range(5)]


def echo(audios):
    return [int(audio[0]) for audio in audios]


class Clock(object):
    """Time that only passes when somebody works or sleeps."""

    def __init__(self):
        self.now_s = 100.0
        self.slept_s = []

    def __call__(self):
        return self.now_s

    def sleep(self, seconds):
        self.slept_s.append(seconds)
        self.now_s += seconds


def test_the_order_is_a_permutation_that_seed_and_pass_decide():
    assert sorted(pass_order(20, 3, 0)) == list(range(20))
    assert pass_order(20, 3, 0) == pass_order(20, 3, 0)
    assert pass_order(20, 3, 0) != pass_order(20, 3, 1)
    assert pass_order(20, 3, 0) != pass_order(20, 4, 0)


def test_single_stream_runs_whole_passes_until_it_is_enough():
    groups = list(run_single_stream(echo, AUDIOS, 0, lambda n_passes, n_done: n_done >= 7))
    assert [len(group) for group in groups] == [1] * 10  # 7 are enough: two whole passes of 5
    measurements = [group[0] for group in groups]
    assert [m.repeat for m in measurements] == [0] * 5 + [1] * 5
    assert all(m.transcript == m.clip for m in measurements)
    assert [m.batch for m in measurements] == list(range(10))
    assert sorted(m.clip for m in measurements[:5]) == [0, 1, 2, 3, 4]


def test_offline_puts_clips_of_one_window_together_and_long_ones_alone():
    windows = [2.0, 5.0, 2.0, None, 2.0]
    groups = list(run_offline(echo, AUDIOS, windows, 2, 0, lambda n_passes, n_done: n_passes == 1))
    calls = [sorted(m.clip for m in group) for group in groups]
    assert sorted(len(call) for call in calls) == [1, 1, 1, 2]
    assert [3] in calls
    assert [1] in calls
    assert sorted(clip for call in calls for clip in call) == [0, 1, 2, 3, 4]
    pair = next(call for call in calls if len(call) == 2)
    assert set(pair) < {0, 2, 4}


def test_batches_keep_every_clip_once():
    windows = [1.0 if i % 3 else 2.0 for i in range(11)]
    calls = list(batches(range(11), windows, 4))
    assert sorted(clip for call in calls for clip in call) == list(range(11))
    assert max(len(call) for call in calls) == 4
    assert all(len({windows[clip] for clip in call}) == 1 for call in calls)


def test_server_latency_counts_from_the_arrival():
    """Arrivals at 1, 2, 2.5 and 20 s, 4 s of work each: done at 5, 9, 13 and 24 s."""
    clock = Clock()

    def work(audios):
        clock.now_s += 4.0
        return echo(audios)

    queries = [Query(0, 0, 1.0), Query(1, 0, 2.0), Query(2, 0, 2.5), Query(3, 0, 20.0)]
    windows = [2.0, 2.0, 2.0, 2.0]
    groups = list(run_server(work, AUDIOS, windows, 1, queries, clock, clock.sleep))
    assert [g[0].latency_ms for g in groups] == pytest.approx([4000.0, 7000.0, 10500.0, 4000.0])
    assert [g[0].waiting_ms for g in groups] == pytest.approx([0.0, 3000.0, 6500.0, 0.0])
    assert clock.slept_s == pytest.approx([1.0, 7.0])


def test_server_takes_waiting_clips_of_one_window_together():
    clock = Clock()

    def work(audios):
        clock.now_s += 4.0
        return echo(audios)

    queries = [Query(0, 0, 0.0), Query(1, 0, 1.0), Query(2, 0, 1.5), Query(3, 0, 2.0), Query(4, 0, 2.5)]
    windows = [2.0, 2.0, 5.0, 2.0, 2.0]
    groups = list(run_server(work, AUDIOS, windows, 2, queries, clock, clock.sleep))
    assert [[m.clip for m in group] for group in groups] == [[0], [1, 3], [2], [4]]
    # Done at 4, 8, 12, 16: clip 3 came at 2 and went with clip 1.
    assert groups[1][1].latency_ms == pytest.approx(6000.0)


def test_server_never_puts_clips_that_are_cut_together():
    queries = [Query(0, 0, 0.0), Query(1, 0, 0.0)]
    clock = Clock()
    groups = list(run_server(echo, AUDIOS, [None, None], 4, queries, clock, clock.sleep))
    assert [len(group) for group in groups] == [1, 1]


def test_poisson_arrivals_have_the_rate_and_the_spread_of_a_poisson_process():
    arrivals_s = np.array(poisson_arrivals(20000, 8.0, 1))
    gaps_s = np.diff(np.concatenate([[0.0], arrivals_s]))
    assert (gaps_s > 0).all()
    assert gaps_s.mean() == pytest.approx(1 / 8.0, rel=0.03)
    assert gaps_s.std() == pytest.approx(1 / 8.0, rel=0.03)  # exponential: as wide as its mean
    assert list(arrivals_s[:5]) == poisson_arrivals(5, 8.0, 1)


def test_server_queries_are_whole_passes():
    queries = server_queries(5, 11, 0.0, 2.0, 0)
    assert len(queries) == 15
    assert [q.repeat for q in queries] == [0] * 5 + [1] * 5 + [2] * 5
    assert sorted(q.clip for q in queries[5:10]) == [0, 1, 2, 3, 4]
    assert all(a.arrival_s < b.arrival_s for a, b in zip(queries, queries[1:]))


def test_server_queries_last_as_long_as_asked():
    """A Poisson process of few arrivals may be much shorter than its mean: more passes are drawn until it is not."""
    for seed in range(30):
        assert server_queries(3, 3, 20.0, 2.0, seed)[-1].arrival_s >= 20.0
    short, long = server_queries(3, 3, 0.0, 2.0, 1), server_queries(3, 30, 0.0, 2.0, 1)
    assert long[: len(short)] == short
