"""The picture of a search for a precision: error rate against size, and against time here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeqlora_export.precision.search import front

FILE = "precision.png"
OPEN, BEST, REFUSED = "#0072B2", "#009E73", "#D55E00"
"""Okabe and Ito's, which colour-blind readers tell apart."""


def draw_front(rows: Sequence[Mapping[str, Any]], chosen: int, path: Path) -> None:
    """Draw `tried` of a manifest's `precision` as a PNG of 800 px width. chosen: number of the row that ships."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    best = set(front(rows))
    panels = [("bytes", 1e6, "graphs, MB"), ("ms_per_clip", 1, "a clip on this machine, ms")]
    panels = panels[: 1 if rows[0]["ms_per_clip"] is None else 2]
    size = 8, 3.4 + 0.17 * len(rows)
    figure, grid = plt.subplots(1, len(panels), figsize=size, layout="constrained", sharey=True, squeeze=False)
    axes = grid[0]
    for axis, (key, scale, label) in zip(axes, panels, strict=True):
        line = sorted((rows[i][key] / scale, rows[i]["wer"]) for i in best)
        axis.plot(*zip(*line, strict=True), color=BEST, linewidth=1, alpha=0.6)
        for i, row in enumerate(rows):
            colour = REFUSED if row["refused"] else BEST if i in best else OPEN
            place = row[key] / scale, row["wer"]
            axis.plot(*place, "x" if row["refused"] else "o", color=colour, markersize=7)
            if i == chosen:
                axis.plot(*place, "o", markersize=14, fillstyle="none", color="black")
            axis.annotate(
                chr(ord("A") + i), place, xytext=(-3, 9 + 11 * (i % 3)), textcoords="offset points", fontsize=10
            )
        axis.set_xlabel(label, fontsize=11)
        axis.margins(0.15, 0.3)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
    if max(row["wer"] for row in rows) > 5 * min(row["wer"] for row in rows) > 0:
        axes[0].set_yscale("log")
    axes[0].set_ylabel("error rate, %", fontsize=11)
    figure.suptitle("Ring: ships. Cross: refused. Line: mixes that no other beats.", fontsize=11)
    names = []
    for i, row in enumerate(rows):
        counts = [f"{len(row[name])} {name}" for name in ("int8", "fp16", "bf16") if row.get(name)]
        mix = f"{' and '.join(counts)} parts" if counts else "fp32"
        time = "" if row["ms_per_clip"] is None else f", {row['ms_per_clip']:.0f} ms"
        figures = f"{row['wer']:.2f} %, {row['bytes'] / 1e6:.1f} MB{time}"
        names.append(f"{chr(ord('A') + i)}: {mix}, {figures}{', refused' if row['refused'] else ''}")
    figure.supxlabel("\n".join(names), fontsize=9, x=0.02, ha="left")
    figure.savefig(path, dpi=100)
    plt.close(figure)
