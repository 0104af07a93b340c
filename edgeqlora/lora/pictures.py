"""Pictures of ranks: a heatmap, the entropies by group, and rank against entropy. PNG of 800 px width, and SVG."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeqlora.lora.scores import spearman

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
"""Okabe and Ito's, which colour-blind readers tell apart."""
MARKS = ("o", "s", "^", "D")


def draw_ranks(content: Mapping[str, Any], beside: Path) -> list[Path]:
    """Draw the content of a ranks.json; returns the PNG files. Names: that of the file, with -heatmap and so on."""
    rows = content["scores"]
    stem = beside.with_suffix("")
    plan = content["plan"]
    title = f"mode {plan['mode']}, mean rank {plan['mean_rank']}, {content['budget']['spent']:,} parameters"
    return [
        _save(f"{stem}-heatmap", _heatmap, rows, title),
        _save(f"{stem}-entropy", _entropies, rows, title),
        _save(f"{stem}-scatter", _scatter, rows, title),
    ]


def draw_adapters(rows: Sequence[Mapping[str, Any]], beside: Path) -> list[Path]:
    """Draw adapters.jsonl, step by step: how many of its directions each adapter uses, and its rank where ranks moved.

    Nothing where there is one step.
    """
    if len({row["step"] for row in rows}) < 2:
        return []
    stem, most = str(beside.with_suffix("")), max(row["rank"] for row in rows)
    use = [row["effective_rank"] / max(1, row["rank"]) for row in rows]
    found = [_save(stem, _by_step, rows, use, 1, "effective rank / rank", "How many of their directions adapters use")]
    moved = {row["name"]: row["rank"] for row in rows}
    if any(row["rank"] != moved[row["name"]] for row in rows):
        ranks = [row["rank"] for row in rows]
        found.append(_save(f"{stem}-ranks", _by_step, rows, ranks, most, "rank", "How ranks moved"))
    return found


def draw_activations(rows: Sequence[Mapping[str, Any]], beside: Path) -> list[Path]:
    """Draw activations.jsonl: entropies of what linears hear at the first and at the last step, by group."""
    steps = sorted({row["step"] for row in rows})
    if len(steps) < 2:
        return []
    return [_save(str(beside.with_suffix("")), _before_and_after, rows, steps[0], steps[-1])]


def draw_differences(entries: Sequence[Mapping[str, Any]], reference: str, folder: Path) -> list[Path]:
    """Draw what arms of a study differ by, with intervals. entries: of conclude and compared. Nothing where none differs."""
    shown = [entry for entry in entries if "against" in entry]
    return [_save(str(folder / "differences"), _differences, shown, reference)] if shown else []


def _differences(entries: Sequence[Mapping[str, Any]], reference: str) -> Any:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 1.6 + 0.36 * len(entries)), layout="constrained", sharey=True)
    for axis, name, unit in zip(axes, ("loss", "wer"), ("loss, nats a token", "WER, points"), strict=True):
        axis.axvline(0, color="black", linewidth=1)
        for place, entry in enumerate(entries):
            one = entry["against"][name]
            decided = (one["high"] < 0) - (one["low"] > 0)  # 1: better, -1: worse, 0: neither
            axis.plot([one["low"], one["high"]], [place, place], color=COLOURS[(0, 2, 1)[decided]], linewidth=2)
            axis.plot(one["value"], place, "ov^"[decided], color=COLOURS[(0, 2, 1)[decided]])
        axis.set_xlabel(f"difference of {unit}", fontsize=11)
        axis.locator_params(axis="x", nbins=5)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(entries)), [_compared(entry) for entry in entries], fontsize=9)
    axes[0].invert_yaxis()
    figure.suptitle(f"Against {reference} where no other is named, 95 % intervals: below 0 is better", fontsize=11)
    return figure


def _compared(entry: Mapping[str, Any]) -> str:
    others = entry.get("others", ())
    return entry["arm"] + (
        f" against\nthe mean of {len(others)}" if len(others) > 1 else f" against\n{others[0]}" if others else ""
    )


def _before_and_after(rows: Sequence[Mapping[str, Any]], first: int, last: int) -> Any:
    import matplotlib.pyplot as plt
    import numpy as np

    groups = list(dict.fromkeys(row["group"] for row in rows))
    figure, axes = plt.subplots(1, len(groups), figsize=(8, 3.4), layout="constrained", squeeze=False, sharey=True)
    edges = np.linspace(0, max(row["entropy"] for row in rows) * 1.05, 16).tolist()
    for axis, group in zip(axes[0], groups, strict=True):
        for step, colour, style in (
            (first, COLOURS[0], {"alpha": 0.5}),
            (last, COLOURS[1], {"histtype": "step", "linewidth": 2}),
        ):
            values = [row["entropy"] for row in rows if row["group"] == group and row["step"] == step]
            mean = sum(values) / len(values)
            axis.hist(values, bins=edges, color=colour, label=f"step {step}: mean {mean:.2f}", **style)
        axis.set_title(group, fontsize=11)
        axis.legend(frameon=False, fontsize=9)
    axes[0][0].set_ylim(top=1.4 * axes[0][0].get_ylim()[1])  # room for the legends
    axes[0][0].set_ylabel("linears")
    figure.supxlabel("Rényi-2 entropy of the inputs, nats", fontsize=11)
    figure.suptitle("What linears hear, before and after training", fontsize=11)
    return figure


def _by_step(rows: Sequence[Mapping[str, Any]], shown: Sequence[float], most: float, what: str, title: str) -> Any:
    import matplotlib.pyplot as plt
    import numpy as np

    steps = sorted({row["step"] for row in rows})
    groups: dict[str, list[str]] = {}
    for row in rows:
        members = groups.setdefault(row["group"] or "", [])
        if row["name"] not in members:
            members.append(row["name"])
    tallest = max(map(len, groups.values()))
    figure, axes = plt.subplots(1, len(groups), figsize=(8, 1.8 + 0.17 * tallest), layout="constrained", squeeze=False)
    for axis, (group, names) in zip(axes[0], groups.items(), strict=True):
        values = np.full((len(names), len(steps)), np.nan)
        for row, value in zip(rows, shown, strict=True):
            if row["group"] == group:
                values[names.index(row["name"]), steps.index(row["step"])] = value
        image = axis.imshow(values, cmap="cividis", vmin=0, vmax=most, aspect="auto")
        labels = [f"{_place(name)[0]} {_place(name)[1]}" for name in names]
        axis.set_yticks(range(len(names)), labels, fontsize=7)
        ticks = range(0, len(steps), max(1, len(steps) // 4))
        axis.set_xticks(list(ticks), [str(steps[i]) for i in ticks], fontsize=9)
        axis.set_title(group, fontsize=11)
    axes[0][0].set_ylabel("layer and linear")
    figure.supxlabel("step", fontsize=11)
    figure.colorbar(image, ax=axes[0].tolist(), label=what, shrink=0.9)
    figure.suptitle(title, fontsize=11)
    return figure


def _save(stem: str, draw: Callable[..., Any], *arguments: Any) -> Path:
    """PNG and SVG of one figure; the bytes of an SVG are the same in each run."""
    import matplotlib

    matplotlib.use("Agg")
    own: dict[Any, Any] = {
        "svg.hashsalt": "edgeqlora",
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # optuna's pictures set a style for the whole process
        matplotlib.rcParams.update(own)
        figure = draw(*arguments)
        figure.savefig(f"{stem}.png", dpi=100)
        figure.set_layout_engine("none")  # found once for both files
        figure.savefig(f"{stem}.svg", metadata={"Date": None})
        matplotlib.pyplot.close(figure)
    return Path(f"{stem}.png")


def _groups(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, row in rows.items():
        found.setdefault(row["group"], []).append(name)
    return found


def _place(name: str) -> tuple[int, str]:
    """Layer number and what is left of a linear's name: `model.encoder.layers.3.self_attn.q_proj` -> 3, q_proj."""
    number = re.search(r"\.(\d+)\.", name)
    return (int(number[1]) if number else 0), name.rsplit(".", 1)[-1]


def _heatmap(rows: Mapping[str, Mapping[str, Any]], title: str) -> Any:
    import matplotlib.pyplot as plt
    import numpy as np

    groups = _groups(rows)
    n_layers = max(_place(name)[0] for name in rows) + 1
    figure, axes = plt.subplots(
        1, len(groups), figsize=(8, 1.6 + 0.36 * n_layers), layout="constrained", squeeze=False,
        width_ratios=[len({_place(name)[1] for name in names}) for names in groups.values()],
    )  # fmt: skip
    most = max(row["rank"] for row in rows.values())
    for axis, (group, names) in zip(axes[0], groups.items(), strict=True):
        kinds = list(dict.fromkeys(_place(name)[1] for name in names))
        numbers = sorted({_place(name)[0] for name in names})
        values = np.full((len(numbers), len(kinds)), np.nan)
        for name in names:
            number, kind = _place(name)
            values[numbers.index(number), kinds.index(kind)] = rows[name]["rank"]
        image = axis.imshow(values, cmap="cividis", vmin=0, vmax=most, aspect="auto")
        for y, x in zip(*np.nonzero(~np.isnan(values)), strict=True):
            dark = values[y, x] < 0.6 * most
            axis.text(x, y, int(values[y, x]), ha="center", va="center", fontsize=9, color="white" if dark else "black")
        axis.set_title(group, fontsize=11)
        axis.set_xticks(range(len(kinds)), kinds, rotation=60, ha="right", fontsize=9)
        axis.set_yticks(range(len(numbers)), [str(number) for number in numbers], fontsize=9)
    axes[0][0].set_ylabel("layer")
    figure.supxlabel("linear", fontsize=11)
    figure.colorbar(image, ax=axes[0].tolist(), label="rank", shrink=0.9)
    figure.suptitle(title, fontsize=11)
    return figure


def _entropies(rows: Mapping[str, Mapping[str, Any]], title: str) -> Any:
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
    values = [row["input_entropy"] for row in rows.values()]
    edges = np.linspace(0, max(values) * 1.05, 16).tolist()
    groups = _groups(rows)
    axis.hist(
        [[rows[name]["input_entropy"] for name in names] for names in groups.values()],
        bins=edges, stacked=True, label=list(groups), color=COLOURS[: len(groups)], edgecolor="white",
    )  # fmt: skip
    axis.set_xlabel("Rényi-2 entropy of the inputs, nats")
    axis.set_ylabel("linears")
    axis.legend(frameon=False)
    axis.set_title(title, fontsize=11)
    return figure


def _scatter(rows: Mapping[str, Mapping[str, Any]], title: str) -> Any:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for number, (group, names) in enumerate(_groups(rows).items()):
        axis.scatter(
            [rows[name]["input_entropy"] for name in names],
            [rows[name]["rank"] for name in names],
            label=f"{group}{_told(rows, names)}",
            color=COLOURS[number % len(COLOURS)], marker=MARKS[number % len(MARKS)], alpha=0.8,
        )  # fmt: skip
    axis.set_xlabel("Rényi-2 entropy of the inputs, nats")
    axis.set_ylabel("rank")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, title="Spearman's correlation in brackets", title_fontsize=9, fontsize=10)
    axis.set_title(title, fontsize=11)
    return figure


def _told(rows: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    found = spearman([rows[name]["input_entropy"] for name in names], [rows[name]["rank"] for name in names])
    return " (constant)" if found is None else f" ({found:+.2f})"
