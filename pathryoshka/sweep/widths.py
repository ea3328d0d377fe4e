"""Nested widths from a measured curve: given what a trained student scores at many widths, which ones are worth having.

Every width costs heads and time in training, and a width between two that score alike is one nobody needs. From the
full width downwards, the next width is the smallest one that loses no more than `drop` against the last one chosen.
Check the choice by training it: widths share their numbers, so a set trained alone may score a little differently.
"""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from pathryoshka import config
from pathryoshka.evaluate.scores import Scores
from pathryoshka.runs import results


class WidthError(ValueError):
    """A curve from which nothing can be chosen."""


def choose_widths(curve: Mapping[int, float], drop: float) -> tuple[int, ...]:
    """Widths, ascending, so that each step down from the full one loses at most `drop`, with as few steps as greed can.

    Args:
        curve: width -> score, more is better. Where a smaller width scores better than a larger one, nothing is lost.
        drop: what the score may fall from one chosen width to the next.

    Returns:
        The full width and what follows. Where even the next smaller width loses more than `drop`, that one is taken,
        for the curve holds nothing between; below the last one the curve ends.

    Raises:
        WidthError: fewer than two widths.
    """
    widths = sorted(curve)
    if len(widths) < 2:
        raise WidthError(f"a choice needs scores at two widths or more; there are {len(widths)}")
    chosen = [widths[-1]]
    while chosen[-1] > widths[0]:
        here = chosen[-1]
        smaller = [width for width in widths if width < here]
        enough = []
        for width in reversed(smaller):  # a dip between two is a loss to whoever stops there, so it ends the search
            if curve[here] - curve[width] > drop:
                break
            enough.append(width)
        chosen.append(enough[-1] if enough else smaller[-1])
    return tuple(reversed(chosen))


def mean_curve(scores: Scores, probe: str = "linear") -> dict[int, float]:
    """Width -> score of the student, mean over the data sets."""
    student = scores.names("student")[0]
    rows = [row for row in scores.rows if row.encoder == student and row.protocol == probe]
    out = {}
    for width in sorted({row.width for row in rows}):
        mine = [row.score for row in rows if row.width == width]
        out[width] = sum(mine) / len(mine)
    return out


def widths_of_run(run: config.Run, drop: float, probe: str = "linear") -> str:
    """The choice for an evaluated run, the curve it is made from, the config that trains it, and the command.

    Raises:
        ResultError: the run was not evaluated.
    """
    curve = mean_curve(results.scores_of(run), probe)
    chosen = choose_widths(curve, drop)
    full = curve[chosen[-1]]
    lines = [
        f"{width:>6}  {curve[width]:.3f}  {curve[width] - full:+.3f}{'  <-' * (width in chosen)}" for width in curve
    ]
    tree = {"name": f"{run.name}-widths", "student": {"widths": list(chosen)}}
    weights = {width: weight for width, weight in run.loss.widths.items() if width in chosen}
    if weights != run.loss.widths:
        tree["loss"] = {"widths": weights}
    said = yaml.safe_dump(tree, sort_keys=False, default_flow_style=None)
    listed = "[" + ",".join(map(str, chosen)) + "]"
    command = f"pathryoshka distill --config run.yaml --set name={run.name}-widths --set student.widths={listed}"
    return "\n".join([" width  score  against the full one", *lines, "", said.rstrip(), "", f"check it: {command}"])
