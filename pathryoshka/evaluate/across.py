"""Runs against runs: every seed of one recipe against every seed of another, on the same groups of the same data sets.

The scores of a recipe are the mean over its seeds. A difference has an interval over groups, paired, with the variance
between seeds added; beside it stands what seeds alone would explain. Mean and median over data sets close the table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pathryoshka.evaluate.record import Kept, Place, RecordError
from pathryoshka.evaluate.statistics import Estimate, Summary, interval, noise, over_benchmarks, with_seeds
from pathryoshka.evaluate.swaps import chance, swap_test
from pathryoshka.evaluate.tally import Profile, difference, mean


@dataclass(frozen=True)
class Side:
    """A recipe: its name and the evaluation of each of its seeds, as `record.read_profiles` gives it."""

    name: str
    seeds: tuple[Mapping[Place, Kept], ...]

    @property
    def student(self) -> str:
        """Name of its student.

        Raises:
            RecordError: there is none, or more than one.
        """
        names = {encoder for (_, _, encoder, _), kept in self.seeds[0].items() if kept.kind == "student"}
        if len(names) != 1:
            raise RecordError(f"{self.name} has {len(names)} students; evaluate each into a folder of its own")
        return names.pop()

    def scores(self, place: Place) -> list[float]:
        return [seed[place].profile.value for seed in self.seeds]

    def profile(self, place: Place) -> Profile:
        return mean([seed[place].profile for seed in self.seeds])


@dataclass(frozen=True)
class Contrast:
    """One recipe at one width minus another one at another, on one data set by one protocol.

    Attributes:
        a, b: means over seeds. difference: of them, interval over groups and seeds.
        spread: standard deviation over the seeds of each; NaN for one seed.
        noise: difference that seeds alone explain in 95 of 100 cases, by the larger of the two spreads.
        p: of the swap test over groups, of the means over seeds; it knows nothing of other seeds.
    """

    dataset: str
    protocol: str
    widths: tuple[int, int]
    a: float
    b: float
    difference: Estimate
    spread: tuple[float, float]
    noise: float
    p: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.difference.low > 0 or self.difference.high < 0


def contrast(a: Side, b: Side, *, encoders: tuple[str, str] | None = None) -> list[Contrast]:
    """Each data set, protocol and width that both sides were scored at.

    Args:
        encoders: of `a` and of `b`; none = the student of each.

    Raises:
        RecordError: nothing in common, or scores on other groups: another data set of the same name.
    """
    out = []
    mine, theirs = encoders or (a.student, b.student)
    for place in a.seeds[0]:
        dataset, protocol, encoder, width = place
        there = (dataset, protocol, theirs, width)
        if encoder == mine and all(there in seed for seed in b.seeds) and all(place in seed for seed in a.seeds):
            out.append(between(a, place, b, there))
    if not out:
        raise RecordError(f"{a.name} and {b.name} were not scored on a common data set, protocol and width")
    return out


def between(a: Side, place: Place, b: Side, there: Place) -> Contrast:
    """One score of `a` minus one of `b`; both may be of one side."""
    for seed in a.seeds + b.seeds:
        kept = seed.get(place) or seed[there]
        if kept.groups != a.seeds[0][place].groups:
            raise RecordError(
                f"{a.name} and {b.name} were scored on other groups of {place[0]}; evaluate both on the same tiles"
            )
    mine, theirs = a.scores(place), b.scores(there)
    both = difference(a.profile(place), b.profile(there))
    found = with_seeds(interval(both), (mine, theirs))
    spread = tuple(float(np.std(s, ddof=1)) if len(s) > 1 else math.nan for s in (mine, theirs))
    noises = [n for n in (noise(mine), noise(theirs)) if math.isfinite(n)]
    return Contrast(
        dataset=place[0],
        protocol=place[1],
        widths=(place[3], there[3]),
        a=float(np.mean(mine)),
        b=float(np.mean(theirs)),
        difference=found,
        spread=(spread[0], spread[1]),
        noise=max(noises, default=math.nan),
        p=swap_test(both),
    )


def overall(contrasts: Sequence[Contrast]) -> Summary:
    """Mean and median over data sets of one protocol at one pair of widths."""
    return over_benchmarks([c.difference for c in contrasts])


def lines(a: Side, b: Side, contrasts: Sequence[Contrast]) -> list[str]:
    """The comparison as text, a line a data set, protocol and width."""
    out = [f"{a.name} ({len(a.seeds)} seeds) minus {b.name} ({len(b.seeds)} seeds), points, 95 % over groups and seeds"]
    for c in contrasts:
        d = c.difference
        said = "better" if d.low > 0 else "worse" if d.high < 0 else "unclear"
        seeds = f", seeds alone {100 * c.noise:.1f}" if math.isfinite(c.noise) else ""
        out.append(
            f"{c.dataset:<18} {c.protocol:<16} {c.widths[0]:>5}  {100 * c.a:5.1f} {100 * c.b:5.1f}  "
            f"{100 * d.value:+5.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}] {said}, swap p {chance(c.p)}{seeds}"
        )
    for protocol, width in dict.fromkeys((c.protocol, c.widths[0]) for c in contrasts):
        some = [c for c in contrasts if (c.protocol, c.widths[0]) == (protocol, width)]
        if len(some) > 1:
            found = overall(some)
            for name, e in (("mean", found.mean), ("median", found.median)):
                out.append(
                    f"{name + ' of ' + str(len(some)):<18} {protocol:<16} {width:>5}  {'':11}  "
                    f"{100 * e.value:+5.1f} [{100 * e.low:+.1f}, {100 * e.high:+.1f}]"
                )
    return out
