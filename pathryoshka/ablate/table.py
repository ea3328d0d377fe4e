"""What an ablation says: every twin at every width, and the questions it was made for, with intervals.

A score is the mean over seeds. A difference is paired by group, with the variance of seeds added (`across.between`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pathryoshka.ablate.twins import ALL
from pathryoshka.evaluate.across import Contrast, Side, between, overall
from pathryoshka.evaluate.record import Place
from pathryoshka.evaluate.statistics import Summary

STUDENT = "student"
SHOWN = ("linear", "knn")


@dataclass(frozen=True)
class Question:
    """One question on every data set: its contrasts, and mean and median over the data sets."""

    says: str
    protocol: str
    contrasts: tuple[Contrast, ...]
    overall: Summary


@dataclass(frozen=True)
class Score:
    """Mean over seeds and their standard deviation (NaN for one seed)."""

    dataset: str
    protocol: str
    twin: str
    width: int
    mean: float
    spread: float
    num_seeds: int


@dataclass(frozen=True)
class Ablation:
    """Everything that was found. `failed`: run -> why it was not trained."""

    scores: tuple[Score, ...]
    questions: tuple[Question, ...]
    failed: Mapping[str, str] = field(default_factory=dict)


def conclude(
    sides: Mapping[str, Side], teachers: Sequence[str], widths: Sequence[int], failed: Mapping[str, str]
) -> Ablation:
    """The table of twins that were scored; `sides` holds `all` at least."""
    scores = []
    for name, side in sides.items():
        for place in side.seeds[0]:
            if place[2] == STUDENT and all(place in seed for seed in side.seeds):
                values = side.scores(place)
                spread = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
                scores.append(Score(*place[:2], name, place[3], float(np.mean(values)), spread, len(values)))
    return Ablation(tuple(scores), tuple(questions(sides, teachers, widths)), dict(failed))


def questions(sides: Mapping[str, Side], teachers: Sequence[str], widths: Sequence[int]) -> list[Question]:
    out: list[Question] = []
    mine, full = sides[ALL], widths[-1]
    first = Side("first seed", sides[ALL].seeds[:1])
    eighth = min(widths, key=lambda width: abs(width / full - 1 / 8))
    singles = [sides[f"only-{name}"] for name in teachers if f"only-{name}" in sides]
    for protocol in SHOWN:
        datasets = [d for d, p, e, w in mine.seeds[0] if (p, e, w) == (protocol, STUDENT, full)]

        def at(dataset: str, width: int, encoder: str = STUDENT, protocol: str = protocol) -> Place:
            return (dataset, protocol, encoder, width)

        def ask(says: str, pairs: Sequence[tuple[Side, Place, Side, Place]], protocol: str = protocol) -> None:
            found = [between(*pair) for pair in pairs if all(pair[3] in seed for seed in pair[2].seeds)]
            if found:
                out.append(Question(says, protocol, tuple(found), overall(found)))

        for width in dict.fromkeys((full, eighth)):
            if singles:
                ranked = {
                    d: sorted(singles, key=lambda side, d=d, width=width: np.mean(side.scores(at(d, width))))  # type: ignore[misc]
                    for d in datasets
                }
                ask(
                    f"all teachers against the median single-teacher twin, {width} numbers",
                    [(mine, at(d, width), ranked[d][(len(singles) - 1) // 2], at(d, width)) for d in datasets],
                )
                ask(
                    f"all teachers against the best single-teacher twin, {width} numbers",
                    [(mine, at(d, width), ranked[d][-1], at(d, width)) for d in datasets],
                )
            ask(
                f"all teachers against random weights, {width} numbers",
                [(mine, at(d, width), first, at(d, width, "random")) for d in datasets],
            )
        for name in teachers:
            places = {d: next((p for p in first.seeds[0] if p[:3] == (d, protocol, name)), None) for d in datasets}
            pairs = [(mine, at(d, full), first, place) for d, place in places.items() if place]
            ask(f"all teachers, {full} numbers, against the teacher {name} itself", pairs)
        ask(
            f"first {eighth} of {full} numbers against all",
            [(mine, at(d, eighth), mine, at(d, full)) for d in datasets],
        )
        for width in widths:
            if "flat" in sides:
                ask(
                    f"nested against not nested, {width} numbers",
                    [(mine, at(d, width), sides["flat"], at(d, width)) for d in datasets],
                )
            if f"width-{width}" in sides:
                ask(
                    f"nested against a student of width {width} alone",
                    [(mine, at(d, width), sides[f"width-{width}"], at(d, width)) for d in datasets],
                )
        for name in (n for n in sides if n != ALL and not n.startswith(("only-", "width-")) and n != "flat"):
            ask(f"all teachers against {name}, {full} numbers",
                [(mine, at(d, full), sides[name], at(d, full)) for d in datasets])  # fmt: skip
    return out


def as_lines(found: Ablation) -> list[str]:
    """For a terminal: each question with its answer on each data set and over all of them."""
    out = []
    for q in found.questions:
        out.append(f"{q.says} ({q.protocol}), points")
        for c in q.contrasts:
            d = c.difference
            said = "better" if d.low > 0 else "worse" if d.high < 0 else "unclear"
            noise = f"; seeds alone {100 * c.noise:.1f}" if np.isfinite(c.noise) else ""
            out.append(
                f"  {c.dataset:<16} {100 * c.a:5.1f} against {100 * c.b:5.1f}: {100 * d.value:+5.1f} "
                f"[{100 * d.low:+.1f}, {100 * d.high:+.1f}] {said}{noise}"
            )
        if len(q.contrasts) > 1:
            e = q.overall.mean
            out.append(f"  {'mean':<16} {100 * e.value:+22.1f} [{100 * e.low:+.1f}, {100 * e.high:+.1f}]")
    return out + [f"not trained: {name}: {why}" for name, why in found.failed.items()]


def as_csv(found: Ablation) -> str:
    sink = io.StringIO()
    writer = csv.DictWriter(sink, fieldnames=[f for f in Score.__dataclass_fields__], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(score) for score in found.scores)
    return sink.getvalue()


def as_tree(found: Ablation) -> dict[str, Any]:
    """As JSON; NaN, which JSON has not, as null."""
    return clean(asdict(found))


def clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: clean(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
