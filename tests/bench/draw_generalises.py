"""docs/store.png from what `generalises` has written down: what views a tile, mixing and coarser tokens are worth.

    python -m tests.bench.draw_generalises 19200 b        # of which trainings: views presented, half

One training a point. Above, what the student leaves unexplained of unmixed views of images that it never saw, at its
full width and an eighth; below, balanced accuracy, with the teachers' mean and random weights as lines.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pathryoshka.evaluate.pictures import STYLE, furnish, light, to_png
from tests.bench.common import RESULTS

PICTURE = Path(__file__).parents[2] / "docs" / "store.png"
FULL, EIGHTH = 384, 48
Table = dict[str, dict[str, float]]
Points = dict[str, Table]
"""Label on the axis -> what was measured there."""


def tables_of(views: int, half: str) -> dict[tuple[int, float, str], Table]:
    """(views a tile, share mixed, tokens) -> the newest table that has the unseen views."""
    found: dict[tuple[int, float, str], Table] = {}
    for line in RESULTS.read_text().splitlines():
        record = json.loads(line)
        for name, table in record.get("tables", {}).items() if record["name"] == "generalises" else ():
            _, its_half, its_views, per_tile, mixed, tokens = name.split("-")
            if (its_half, its_views) == (half, str(views)) and "unseen" in table:
                found[int(per_tile), float(mixed), tokens] = table
    return found


def unexplained_panel(ax: Axes, points: Points) -> None:
    for width, style in ((FULL, "-"), (EIGHTH, "--")):
        shares = [table["unseen"][f"validation/{width}"] for table in points.values()]
        ax.plot(list(points), shares, style, marker="o", color=light("student"), label=f"{width} numbers")


def score_panel(ax: Axes, points: Points) -> None:
    for name, colour in (("lc25000", "teacher1"), ("glas", "teacher2")):
        tables = [table[name] for table in points.values()]
        ax.plot(list(points), [t[f"student/{FULL}"] for t in tables], marker="o", color=light(colour), label=name)
        for who, style in (("teachers", ":"), ("random", (0, (1, 5)))):
            ax.axhline(tables[0][who], color=light(colour), linewidth=0.9, linestyle=style)  # type: ignore[arg-type]


def draw(tables: dict[tuple[int, float, str], Table]) -> Figure:
    views = {str(k): t for (k, m, how), t in sorted(tables.items()) if (m, how) == (0.5, "exact")}
    mixed = {f"{m:.0%}": t for (k, m, how), t in sorted(tables.items()) if (k, how) == (1, "exact")}
    tokens = {how: tables[1, 0.5, how] for how in ("exact", "int8", "projected") if (1, 0.5, how) in tables}
    panels = {"distinct views a tile": views, "share of mixed views": mixed, "tokens kept": tokens}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.4, 5.4), layout="constrained", facecolor=light("paper"))
        axes = figure.subplots(2, 3, sharey="row", sharex="col")
        for (above, below), (what, points) in zip(axes.T, panels.items(), strict=True):
            if points is not tokens:  # each form of tokens is measured by its own targets: they do not compare
                unexplained_panel(above, points)
            score_panel(below, points)
            below.set_xlabel(what, color=light("faint"))
            below.set_xlim(-0.4, len(points) - 0.6)
            furnish(above)
            furnish(below)
        axes[0, 2].axis("off")
        axes[0, 0].set_ylabel("unexplained, unseen images", color=light("faint"))
        axes[1, 0].set_ylabel("balanced accuracy", color=light("faint"))
        for row, place in ((0, "upper left"), (1, "lower left")):
            lines, names = axes[row, 0].get_legend_handles_labels()
            axes[0, 2].add_artist(axes[0, 2].legend(lines, names, frameon=False, fontsize=9, loc=place))
    return figure


def main() -> None:
    views, half = sys.argv[1:]
    PICTURE.write_bytes(to_png(draw(tables_of(int(views), half)), dpi=110))
    print(PICTURE)


if __name__ == "__main__":
    main()
