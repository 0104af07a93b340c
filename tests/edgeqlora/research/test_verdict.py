"""Statistics of a study on made-up runs whose truth is known."""

import numpy as np
import pytest

from edgeqlora.research.study import Arm, Comparison, Study
from edgeqlora.research.verdict import by_speaker, compared, conclude, difference, format_conclusion, holm, judge


def utterances(rng, effect, n_speakers=10, n_each=30, speaker_effects=None):
    """Clips of 10 words; errors drawn at 20 % plus `effect`, plus what a speaker takes from this arm."""
    found = []
    for speaker in range(n_speakers):
        extra = 0.0 if speaker_effects is None else speaker_effects[speaker]
        for i in range(n_each):
            errors = int(rng.binomial(10, min(max(0.2 + effect + extra, 0.0), 1.0)))
            loss = 20 * (1.0 + effect + extra + 0.05 * rng.standard_normal())
            found.append({"clip": f"{speaker}-{i}", "speaker": str(speaker), "errors": errors, "words": 10, "loss": loss, "tokens": 20})  # fmt: skip
    return found


def runs(effect, seed, n_seeds=5, **options):
    rng = np.random.default_rng(seed)
    return {s: utterances(rng, effect, **options) for s in range(n_seeds)}


def test_a_real_difference_is_found_and_none_is_not():
    same = difference(runs(0.0, 1), runs(0.0, 2), "errors", "words")
    better = difference(runs(-0.05, 3), runs(0.0, 2), "errors", "words")
    assert same.low < 0 < same.high
    assert better.high < 0
    assert better.value == pytest.approx(-0.05, abs=0.015)
    assert better.p < 0.01 < same.p
    assert (better.n_seeds, better.n_speakers) == (5, 10)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """No effect on average, but speakers differ: clips as independent observations would miss it half the time."""
    hits = 0
    for trial in range(60):
        rng = np.random.default_rng(100 + trial)
        effects = rng.normal(0, 0.05, 10)
        arm = {s: utterances(rng, 0.0, speaker_effects=effects) for s in range(3)}
        reference = {s: utterances(rng, 0.0) for s in range(3)}
        found = difference(arm, reference, "loss", "tokens")
        hits += found.low <= 0 <= found.high
    assert 48 <= hits <= 60


def test_equal_runs_differ_by_nothing():
    one = runs(0.0, 1)
    found = difference(one, one, "loss", "tokens")
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    assert judge(found, 0.01) == "not worse"


def test_clips_that_not_all_runs_count_are_left_out():
    """A clip longer than an arm's window has no loss there: that is no loss of 0."""
    one = runs(0.0, 1)
    other = {seed: [dict(u) for u in clips] for seed, clips in one.items()}
    for clips in other.values():
        for u in clips[::5]:
            u["loss"], u["tokens"] = 0.0, 0
    found = difference(other, one, "loss", "tokens")
    assert (found.value, found.n_left_out) == (0.0, 60)
    assert difference(one, one, "loss", "tokens").n_left_out == 0


def test_one_seed_or_one_speaker_decides_nothing():
    one, better = runs(0.0, 1, n_seeds=1), runs(-0.1, 2, n_seeds=1)
    assert judge(difference(better, one, "loss", "tokens"), 0.01).startswith("not decided (1 seeds and 10 speakers")
    one, better = runs(0.0, 1, n_speakers=1), runs(-0.1, 2, n_speakers=1)
    assert judge(difference(better, one, "loss", "tokens"), 0.01).startswith("not decided (5 seeds and 1 speakers")


def test_clips_that_do_not_match_are_refused():
    one, other = runs(0.0, 1), runs(0.0, 2)
    other[0] = list(reversed(other[0]))
    with pytest.raises(ValueError, match="is held against"):
        difference(other, one, "loss", "tokens")


def test_holm():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({}) == {}


@pytest.mark.parametrize(
    ("effect", "n_each", "verdict"), [(-0.1, 30, "better"), (0.1, 30, "worse"), (0.0, 2, "not decided (about")]
)
def test_the_verdict_is_in_words(effect, n_each, verdict):
    arms = tuple(Arm(name, {}, None) for name in ("uniform", "ear"))
    study = Study("m", "t", "d", "e", arms, (0, 1), (1e-3,), 9, "uniform", ("ear",), 0.001, 0.1, 64)
    trained = {"trainable_parameters": 100, "samples_per_s": 2.0, "peak_rss": 800.0}
    rows = [
        {
            "arm": name,
            "seed": seed,
            "stage": "final",
            "learning_rate": 1e-3,
            "test": tests,
            "trained": trained,
            "adapter_bytes": 2**20,
        }
        for name, size, draw in (("uniform", 0.0, 1), ("ear", effect, 2))
        for seed, tests in runs(size, draw, 2, n_each=n_each).items()
    ]
    entries = conclude(study, rows)
    against = entries[1]["against"]["loss"]
    assert against["verdict"].startswith(verdict), against
    assert against["p_holm"] == against["p"]
    text = format_conclusion(study, entries)
    assert f"- ear against uniform (primary, 2 seeds, 10 speakers): loss {verdict}" in text
    assert text.count("\n| ") >= 2


def row_of(name, seed, tests, n_parameters=100):
    trained = {"trainable_parameters": n_parameters, "samples_per_s": 2.0, "peak_rss": 800.0}
    of = {"arm": name, "seed": seed, "stage": "final", "learning_rate": 1e-3}
    return {**of, "test": tests, "trained": trained, "adapter_bytes": 2**20}


def test_sums_of_speakers_give_the_same_verdicts_as_utterances():
    one, other = runs(-0.05, 1), runs(0.0, 2)
    whole = difference(one, other, "loss", "tokens")
    kept = [{seed: by_speaker(clips) for seed, clips in arm.items()} for arm in (one, other)]
    assert difference(*kept, "loss", "tokens") == pytest.approx(whole, abs=1e-6)


def test_an_arm_is_held_against_the_mean_of_others():
    arms = tuple(Arm(name, {}, None) for name in ("uniform", "ear", "p1", "p2"))
    asked = (Comparison("ear", ("p1", "p2")), Comparison("ear", ("uniform", "p9")))
    study = Study("m", "t", "d", "e", arms, (0, 1), (1e-3,), 9, "uniform", (), 0.001, 0.1, 64, asked)
    effects = {"uniform": 0.0, "ear": -0.1, "p1": 0.0, "p2": -0.1}
    rows = [
        row_of(name, seed, tests, 150 if name == "p2" else 100)
        for number, (name, effect) in enumerate(effects.items())
        for seed, tests in runs(effect, number, 2).items()
    ]
    (found,) = compared(study, rows)
    assert (found["arm"], found["others"]) == ("ear", ["p1", "p2"])
    loss = found["against"]["loss"]
    assert loss["value"] == pytest.approx(-0.05, abs=0.005)  # half of what p1 alone differs by
    alone = difference(runs(-0.1, 1, 2), runs(0.0, 2, 2), "loss", "tokens").value
    both = difference(runs(-0.1, 1, 2), runs(-0.1, 3, 2), "loss", "tokens").value
    assert loss["value"] == pytest.approx((alone + both) / 2)
    text = format_conclusion(study, conclude(study, rows), [found])
    assert "- ear against the mean of p1, p2 (not primary, 2 seeds, 10 speakers): loss -0.05" in text
    assert "| 150 (+50.0 %) |" in text, "an arm that trains more is marked"
    assert "| 100 |" in text
    rows = [{**row, "agreement_of_halves": 0.5} if row["arm"] == "ear" else row for row in rows]
    text = format_conclusion(study, conclude(study, rows))
    assert "- ear: ranks from the two halves of the clips: rank correlation 0.500, they do NOT agree" in text


def test_a_clip_that_one_of_the_others_cannot_count_is_counted_by_none():
    arms = tuple(Arm(name, {}, None) for name in ("uniform", "p1", "p2"))
    asked = (Comparison("uniform", ("p1", "p2")),)
    study = Study("m", "t", "d", "e", arms, (0, 1), (1e-3,), 9, "uniform", (), 0.001, 0.1, 64, asked)
    one = runs(0.0, 1, 2)
    cut = {seed: [{**u, "tokens": u["tokens"] * (i > 0)} for i, u in enumerate(clips)] for seed, clips in one.items()}
    rows = [row_of(n, s, t) for n, of in (("uniform", one), ("p1", one), ("p2", cut)) for s, t in of.items()]
    assert compared(study, rows)[0]["against"]["loss"]["n_left_out"] == 1
    assert compared(study, rows)[0]["against"]["wer"]["n_left_out"] == 0
