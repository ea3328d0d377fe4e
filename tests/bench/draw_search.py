"""The picture of docs/search.md: recall against time, by short-list width and length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = {16: "#9c4f00", 32: "#c98500", 64: "#0a6e8a", 128: "#5a3d8a"}


def draw(facts: dict[str, Any], to: Path) -> None:
    figure = Figure((7.2, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for short, marker in zip(COLOURS, "^so D".replace(" ", ""), strict=True):
        rows = [row for row in facts["by_width"] if row["short"] == short]
        axes.plot([r["ms"] for r in rows], [r["recall"] for r in rows], color=COLOURS[short], marker=marker, lw=1.8,
                  label=f"short-list by {short} numbers")  # fmt: skip
        for row in rows:
            if short == 64 and row["listed"] in (25, 100, 400, 1600):
                axes.annotate(str(row["listed"]), (row["ms"], row["recall"]), (4, -12), textcoords="offset points",
                              fontsize=8, color=COLOURS[short])  # fmt: skip
    exact = min(value for key, value in facts["ms"].items() if not key.startswith("index"))
    axes.axvline(exact, color="#555555", ls="--", lw=1.2)
    axes.text(exact, 0.62, " exact, all 384", color="#555555", fontsize=9, rotation=90, va="bottom", ha="right")
    axes.axhline(0.95, color="#bbbbbb", lw=0.8)
    axes.set_xscale("log")
    axes.set_ylim(0.4, 1.02)
    axes.set_xlabel("milliseconds a query (median, logarithmic)")
    axes.set_ylabel("recall@10")
    axes.set_title(f"{facts['rows']:,} simulated vectors; numbers beside points: rows listed", fontsize=10.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    figure.savefig(to, dpi=150)
