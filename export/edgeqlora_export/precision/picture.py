"""The picture of a search for a precision: error rate against size, and against time here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeqlora_export.precision.search import front

FILE = "precision.png"
OPEN, BEST, REFUSED = "#0072B2", "#009E73", "#D55E00"
"""Okabe and Ito's, which colour-blind readers tell apart."""


def draw_front(rows: Sequence[Mapping[str, Any]], chosen: int, n_parts: int, path: Path) -> None:
    """Draw `tried` of a manifest's `precision` as a PNG of 800 px width. chosen: number of the row that ships."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    best = set(front(rows))
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4 + 0.17 * len(rows)), layout="constrained", sharey=True)
    for axis, key, scale, label in zip(
        axes, ("bytes", "ms_per_clip"), (1e6, 1), ("graphs, MB", "a clip on this machine, ms"), strict=True
    ):
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
        mix = f"{len(row['int8'])} of {n_parts} parts in int8" if row["int8"] else "fp32"
        figures = f"{row['wer']:.2f} %, {row['bytes'] / 1e6:.1f} MB, {row['ms_per_clip']:.0f} ms"
        names.append(f"{chr(ord('A') + i)}: {mix}, {figures}{', refused' if row['refused'] else ''}")
    figure.supxlabel("\n".join(names), fontsize=9, x=0.02, ha="left")
    figure.savefig(path, dpi=100)
    plt.close(figure)
