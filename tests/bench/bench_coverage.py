"""How often 95 % intervals hold the truth, by method, at 8, 16 and 50 groups and at those of the data sets here.

Two encoders with a known difference are scored by balanced accuracy; groups (patients) differ in difficulty, for both
encoders alike and for each of its own. `nested`: a patient's tiles are of one class, as grades are. 1,000 simulations.
The ratio is the share of cases in which the method that evaluation uses covers 92 to 98 %.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
from scipy import stats

from pathryoshka.evaluate.statistics import interval
from pathryoshka.evaluate.tally import Profile, Tally, balanced_mean_of, difference
from tests.bench.common import finish

TILES, BASE, BETTER = 12, 1.2, 0.4
SHARED, OWN = 1.0, 0.7
NUM_DRAWS = 1000
WANTED = (0.92, 0.98)
HERE = {
    "GlaS, 16 patients, 9 and 12 a class": (16, 2),
    "CRC sample, 70 tiles": (70, 7),
    "LC25000, 100 images": (100, 5),
}


def truth() -> tuple[float, float]:
    """Accuracy of the better encoder and how much better it is, by numerical integration over groups."""
    z, weight = np.polynomial.hermite_e.hermegauss(80)
    weight = weight / weight.sum()
    spread = np.hypot(SHARED, OWN) * z
    right = [float(weight @ (1 / (1 + np.exp(-(BASE + shift + spread))))) for shift in (BETTER, 0.0)]
    return right[0], right[0] - right[1]


def simulate(rng: np.random.Generator, num_groups: int, num_classes: int, nested: bool) -> tuple[Tally, Tally]:
    groups = np.repeat(np.arange(num_groups), TILES)
    labels = groups % num_classes if nested else rng.integers(0, num_classes, len(groups))
    shared = SHARED * rng.standard_normal(num_groups)
    out = []
    for shift in (BETTER, 0.0):
        ease = BASE + shift + (shared + OWN * rng.standard_normal(num_groups))[groups]
        right = (ease + rng.logistic(size=len(groups)) > 0).astype(float)
        out.append(balanced_mean_of(right, labels, groups, num_groups))
    return out[0], out[1]


def percentile(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def expanded(drawn: np.ndarray, n: int) -> tuple[float, float]:
    """Percentiles moved apart for few groups (Hesterberg 2015, section 3.3)."""
    tail = stats.norm.cdf(-np.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1))
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def bca(drawn: np.ndarray, score: Profile) -> tuple[float, float]:
    """Bias-corrected and accelerated (Efron 1987)."""
    value = score.value
    centred = score.without.mean() - score.without
    skew = (centred**3).sum() / (6 * (centred**2).sum() ** 1.5 + 1e-12)
    bias = stats.norm.ppf(np.clip((np.mean(drawn < value) + np.mean(drawn <= value)) / 2, 1e-4, 1 - 1e-4))
    tails = [stats.norm.cdf(bias + (bias + z) / (1 - skew * (bias + z))) for z in stats.norm.ppf([0.025, 0.975])]
    low, high = np.nanquantile(drawn, tails)
    return float(low), float(high)


def coverage(
    num_groups: int, *, num_classes: int, nested: bool, num_simulations: int, seed: int = 0
) -> dict[str, dict[str, float]]:
    """`difference` and `score` -> method -> share of intervals that hold the truth."""
    rng = np.random.default_rng(seed)
    right, better = truth()
    held: dict[str, dict[str, int]] = {"difference": {}, "score": {}}
    for _ in range(num_simulations):
        a, b = simulate(rng, num_groups, num_classes, nested)
        counts = rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=NUM_DRAWS)
        drawn = a.under(counts)
        both = difference(a.profile, b.profile)
        cases = (("difference", both, drawn - b.under(counts), better), ("score", a.profile, drawn, right))
        for what, score, values, true in cases:
            own = interval(score, share=what == "score")
            found = {"percentile": percentile(values), "expanded": expanded(values, num_groups)}
            found |= {"bca": bca(values, score), "jackknife": (own.low, own.high)}
            for method, (low, high) in found.items():
                held[what][method] = held[what].get(method, 0) + (low <= true <= high)
    return {what: {m: n / num_simulations for m, n in methods.items()} for what, methods in held.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--simulations", type=int, default=1000)
    args = parser.parse_args()
    cases = {
        f"{n} groups{', one class each' if nested else ''}": (n, 2, nested)
        for n, nested in itertools.product((8, 16, 50), (False, True))
    }
    cases |= {name: (n, num_classes, True) for name, (n, num_classes) in HERE.items()}
    table, good = {}, 0
    for name, (num_groups, num_classes, nested) in cases.items():
        found = coverage(num_groups, num_classes=num_classes, nested=nested, num_simulations=args.simulations)
        table[name] = found
        good += all(WANTED[0] <= found[what]["jackknife"] <= WANTED[1] for what in found)
        for what, methods in found.items():
            print(f"{name:<36} {what:<11}" + "  ".join(f"{m} {v:.3f}" for m, v in methods.items()), flush=True)
    finish("coverage", [good / len(cases)], 1.0, simulations=args.simulations, table=table)


if __name__ == "__main__":
    main()
