"""What a study says: differences to its reference with their uncertainty, and a verdict in words that may be no.

Both figures are ratios of sums over the test clips: errors / words, nats / tokens. Arms hear the same clips with the same
seeds, so differences are paired. Seeds and speakers are drawn again with replacement, each for itself (the pigeonhole
bootstrap, Owen 2007): clips of one speaker are no independent observations (Liu and Peng 2019, arXiv 1912.09508), and
neither are clips of one trained model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgeqlora.research.ranks import format_agreement
from edgeqlora.research.study import Study, chosen_rates

Tests = Mapping[int, Sequence[Mapping[str, Any]]]
"""By seed: what each test utterance, or each speaker, came to: clip, speaker, errors, words, loss, tokens."""

N_DRAWS = 10_000
LEVEL = 0.95


class Difference(NamedTuple):
    """An arm minus the reference; below 0 the arm is better."""

    value: float
    low: float
    """Of the 95 % interval."""
    high: float
    p: float
    """Share of draws in which the arm is not better: one-sided."""
    n_seeds: int
    n_speakers: int
    n_left_out: int
    """Clips that not all runs could count, such as those longer than a window: they count for none."""


def difference(arm: Tests, reference: Tests, top: str, bottom: str, seed: int = 0) -> Difference:
    """Difference of sum(top) / sum(bottom) over the seeds that both have."""
    seeds = sorted(set(arm) & set(reference))
    runs = [run[seed] for run in (arm, reference) for seed in seeds]
    for clips in zip(*runs, strict=True):
        if len({u["clip"] for u in clips}) > 1:
            raise ValueError(f"{clips[0]['clip']} is held against {clips[-1]['clip']}")
    counted = [
        i
        for i, clips in enumerate(zip(*runs, strict=True))
        if len({u[bottom] for u in clips}) == 1 and clips[0][bottom]
    ]
    speakers = sorted({reference[seeds[0]][i]["speaker"] for i in counted}) or [""]
    column = {speaker: i for i, speaker in enumerate(speakers)}
    gains = np.zeros((len(seeds), len(speakers)))
    sizes = np.zeros(len(speakers))
    for i in counted:
        one = reference[seeds[0]][i]
        sizes[column[one["speaker"]]] += one[bottom]
    for row, number in enumerate(seeds):
        for i in counted:
            one, other = arm[number][i], reference[number][i]
            gains[row, column[one["speaker"]]] += one[top] - other[top]
    draw = np.random.default_rng(seed)
    of_seeds = draw.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), N_DRAWS)
    of_speakers = draw.multinomial(len(speakers), np.full(len(speakers), 1 / len(speakers)), N_DRAWS)
    drawn = ((of_seeds @ gains) * of_speakers).sum(1) / np.maximum(len(seeds) * (of_speakers @ sizes), 1e-12)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    value = gains.sum() / max(len(seeds) * sizes.sum(), 1e-12)
    p = (1 + int((drawn >= 0).sum())) / (N_DRAWS + 1)
    n_left_out = len(runs[0]) - len(counted)
    return Difference(float(value), float(low), float(high), p, len(seeds), len(speakers), n_left_out)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction (1979): p-values that hold for all comparisons together."""
    adjusted, highest = {}, 0.0
    for i, (name, value) in enumerate(sorted(p.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(p) - i) * value))
        adjusted[name] = highest
    return adjusted


def judge(found: Difference, margin: float) -> str:
    """better, not worse, worse or not decided, with what the last would take."""
    if found.n_seeds < 2 or found.n_speakers < 2:
        return f"not decided ({found.n_seeds} seeds and {found.n_speakers} speakers: two of each are the least)"
    if found.high < 0:
        return "better"
    if found.high <= margin:
        return "not worse"
    if found.low > 0:
        return "worse"
    width = (found.high - found.low) / 2
    return f"not decided (about {max(2, math.ceil((width / margin) ** 2))} times the clips and seeds needed)"


def by_speaker(utterances: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sums of each speaker, in the form of an utterance: all that verdicts need where all runs count the same clips."""
    found: dict[str, dict[str, Any]] = {}
    for one in utterances:
        sums = found.setdefault(one["speaker"], {"clip": one["speaker"], "speaker": one["speaker"]})
        for name in ("errors", "words", "loss", "tokens"):
            sums[name] = round(sums.get(name, 0) + one[name], 6)
    return [found[speaker] for speaker in sorted(found)]


def _mean_of(arms: Sequence[Tests]) -> dict[int, list[dict[str, Any]]]:
    """One arm that did as these did on average; an utterance that not all of them count is counted by none."""
    seeds = set[int].intersection(*(set(tests) for tests in arms))
    found: dict[int, list[dict[str, Any]]] = {}
    for seed in sorted(seeds):
        found[seed] = []
        for clips in zip(*(tests[seed] for tests in arms), strict=True):
            one = {**clips[0], **{top: math.fsum(c[top] for c in clips) / len(clips) for top in ("errors", "loss")}}
            for bottom in ("words", "tokens"):
                one[bottom] = clips[0][bottom] if len({c[bottom] for c in clips}) == 1 else 0
            found[seed].append(one)
    return found


def _final(
    study: Study, rows: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, dict[int, Mapping[str, Any]]], dict[str, list[int]]]:
    """Rows of each arm by seed, and the seeds of those that diverged, at the rate that counts."""
    final: dict[str, dict[int, Mapping[str, Any]]] = {}
    rates = chosen_rates(study, rows)
    diverged: dict[str, list[int]] = {}
    for row in rows:
        # Where a rate was added later, runs at the one that was best before do not count any more.
        if row["stage"] == "final" and rates.get(row["arm"]) == row["learning_rate"]:
            if "test" in row:
                final.setdefault(row["arm"], {})[row["seed"]] = row
            else:
                diverged.setdefault(row["arm"], []).append(row["seed"])
    return final, diverged


def _both(study: Study, arm: Tests, other: Tests) -> dict[str, dict[str, Any]]:
    """Differences of loss and WER (points), with a verdict each."""
    loss, wer = difference(arm, other, "loss", "tokens"), difference(arm, other, "errors", "words")
    wer = wer._replace(value=100 * wer.value, low=100 * wer.low, high=100 * wer.high)
    return {
        "loss": {**loss._asdict(), "verdict": judge(loss, study.margin_loss)},
        "wer": {**wer._asdict(), "verdict": judge(wer, study.margin_wer)},
    }


def compared(study: Study, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the study's own comparisons came to, of those whose arms have a seed in common."""
    final, _ = _final(study, rows)
    tests = {name: {seed: row["test"] for seed, row in of_arm.items()} for name, of_arm in final.items()}
    found = []
    for arm, against in study.compare:
        if all(name in tests for name in (arm, *against)):
            other = _mean_of([tests[name] for name in against])
            if set(tests[arm]) & set(other):
                found.append({"arm": arm, "others": list(against), "against": _both(study, tests[arm], other)})
    return found


def conclude(study: Study, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One dict an arm that has final rows: its figures, and against the reference loss and WER with a verdict each."""
    final, diverged = _final(study, rows)
    reference = {seed: row["test"] for seed, row in final.get(study.reference, {}).items()}
    found = []
    for arm in study.arms:
        of_arm = final.get(arm.name, {})
        if not of_arm:
            continue
        one, rates = next(iter(of_arm.values())), study.rates_of(arm)
        tests = {seed: row["test"] for seed, row in of_arm.items()}
        entry: dict[str, Any] = {
            "arm": arm.name,
            "learning_rate": one["learning_rate"],
            "is_at_edge": len(rates) > 1 and one["learning_rate"] in (min(rates), max(rates)),
            "seeds": sorted(of_arm),
            "diverged": sorted(diverged.get(arm.name, [])),
            "loss": _mean(of_arm, lambda row: _ratio(row["test"], "loss", "tokens")),
            "wer": 100 * _mean(of_arm, lambda row: _ratio(row["test"], "errors", "words")),
            "wer_interval": _wer_interval(tests),
            "canary_wer": 100 * _mean(of_arm, lambda row: _ratio(row["canary"], "errors", "words"))
            if all("canary" in row for row in of_arm.values())
            else None,
            "trainable_parameters": one["trained"]["trainable_parameters"],
            "samples_per_s": _mean(of_arm, lambda row: row["trained"]["samples_per_s"] or math.nan),
            "peak_rss_mib": max(row["trained"]["peak_rss"] or 0 for row in of_arm.values()),
            "held_mib": one["trained"].get("held_mib"),  # older rows have none
            "adapter_mib": one["adapter_bytes"] / 2**20,
            "agreement_of_halves": one.get("agreement_of_halves"),
        }
        if arm.name != study.reference and set(tests) & set(reference):
            entry["against"] = _both(study, tests, reference)
        found.append(entry)
    size = next((entry["trainable_parameters"] for entry in found if entry["arm"] == study.reference), None)
    for entry in found:
        entry["more_parameters"] = entry["trainable_parameters"] / size - 1 if size else 0.0
    asked = [entry for entry in found if entry["arm"] in study.primary and "against" in entry]
    for figure in ("loss", "wer"):
        adjusted = holm({entry["arm"]: entry["against"][figure]["p"] for entry in asked})
        for entry in asked:
            entry["against"][figure]["p_holm"] = adjusted[entry["arm"]]
            if entry["against"][figure]["verdict"] == "better" and adjusted[entry["arm"]] > 0.05:
                entry["against"][figure]["verdict"] = "not decided (better alone, not after Holm's correction)"
    return found


def _wer_interval(tests: Tests) -> tuple[float, float] | None:
    """95 % interval of an arm's WER in %, over seeds and speakers as for differences; None of one speaker."""
    nothing = {seed: [{**one, "errors": 0} for one in utterances] for seed, utterances in tests.items()}
    found = difference(tests, nothing, "errors", "words")
    return (100 * found.low, 100 * found.high) if found.n_speakers > 1 else None


def format_conclusion(
    study: Study, entries: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]] = ()
) -> str:
    """The table of a study as Markdown, and the verdicts in words under it. entries, comparisons: of conclude, compared."""
    head = ["arm", "rate", "seeds", "loss, nats/token", "difference", "WER, % [95 %]", "difference, points", "trained",
            "clips/s", "peak RSS, MiB", "model held, MiB", "adapter, MiB",
            *(["canary WER, %"] if study.canary else [])]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for entry in entries:
        against = entry.get("against")
        within = f" [{entry['wer_interval'][0]:.2f}, {entry['wer_interval'][1]:.2f}]" if entry["wer_interval"] else ""
        lines.append(
            f"| {entry['arm']} | {entry['learning_rate']:g}{' (edge)' * entry['is_at_edge']} | {len(entry['seeds'])} | {entry['loss']:.4f} | "
            f"{_shown(against, 'loss', 4)} | {entry['wer']:.2f}{within} | {_shown(against, 'wer', 2)} | "
            f"{entry['trainable_parameters']:,}{_more(entry)} | {entry['samples_per_s']:.1f} | {entry['peak_rss_mib']:,.0f} | "
            f"{'--' if entry['held_mib'] is None else format(entry['held_mib'], '.2f')} | {entry['adapter_mib']:.3f} |"
            + (
                f" {'--' if entry['canary_wer'] is None else format(entry['canary_wer'], '.2f')} |"
                if study.canary
                else ""
            )
        )
    lines.append("")
    for entry in entries:
        if "against" in entry:
            loss, wer = entry["against"]["loss"], entry["against"]["wer"]
            kind = "primary" if entry["arm"] in study.primary else "not primary"
            left_out = (
                f"; {loss['n_left_out']} clips left out, which not all runs could count" if loss["n_left_out"] else ""
            )
            lines.append(
                f"- {entry['arm']} against {study.reference} ({kind}, {loss['n_seeds']} seeds, {loss['n_speakers']} speakers): "
                f"loss {loss['verdict']}{_p(loss)}; WER {wer['verdict']}{_p(wer)}{left_out}"
            )
    for one in comparisons:
        loss, wer = one["against"]["loss"], one["against"]["wer"]
        others = f"the mean of {', '.join(one['others'])}" if len(one["others"]) > 1 else one["others"][0]
        lines.append(
            f"- {one['arm']} against {others} (not primary, {loss['n_seeds']} seeds, {loss['n_speakers']} speakers): "
            f"loss {_shown(one['against'], 'loss', 4)}, {loss['verdict']}; "
            f"WER {_shown(one['against'], 'wer', 2)} points, {wer['verdict']}"
        )
    lines += [f"- {entry['arm']}: {text}" for entry in entries if (text := format_agreement(entry))]
    for entry in entries:
        if entry["diverged"]:
            seeds = ", ".join(map(str, entry["diverged"]))
            lines.append(f"- {entry['arm']} diverged with seeds {seeds}: its figures are those of the other seeds")
    if any(entry["is_at_edge"] for entry in entries):
        lines.append("- (edge): the best rate is the lowest or highest that was tried; add one beyond it and run again")
    if entries and not any("against" in entry for entry in entries):
        lines.append(f"Nothing to compare yet: no seed of {study.reference} and of another arm is done.")
    return "\n".join(lines)


def _more(entry: Mapping[str, Any]) -> str:
    """Where an arm trains more or fewer parameters than the reference: it is no comparison at an equal budget."""
    more = 100 * entry["more_parameters"]
    return f" ({more:+,.1f} %)" if abs(more) > 0.1 else ""


def _p(figure: Mapping[str, Any]) -> str:
    return f", p = {figure['p_holm']:.4f} after Holm" if "p_holm" in figure else ""


def _shown(against: Mapping[str, Any] | None, figure: str, digits: int) -> str:
    if against is None:
        return "--"
    one = against[figure]
    return f"{one['value']:+.{digits}f} [{one['low']:+.{digits}f}, {one['high']:+.{digits}f}]"


def _ratio(utterances: Sequence[Mapping[str, Any]], top: str, bottom: str) -> float:
    total: float = sum(u[top] for u in utterances) / max(1, sum(u[bottom] for u in utterances))
    return total


def _mean(of_arm: Mapping[int, Mapping[str, Any]], figure: Callable[[Mapping[str, Any]], float]) -> float:
    return math.fsum(figure(row) for row in of_arm.values()) / len(of_arm)
