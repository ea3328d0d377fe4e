"""Runs against runs: kept evaluations, paired by group, with the variance of seeds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from pathryoshka import config
from pathryoshka.evaluate.across import Side, contrast, lines, overall
from pathryoshka.evaluate.compare import Evaluation, evaluate
from pathryoshka.evaluate.record import (
    Kept,
    Place,
    RecordError,
    read_predictions,
    read_profiles,
    write_predictions,
    write_profiles,
)
from pathryoshka.evaluate.statistics import paired
from pathryoshka.evaluate.tally import mean, mean_of
from tests.blotches import CFG, CONTENDERS, SIZE, WIDTHS, rows, write

NUM_GROUPS = 20


def seed(level: float, number: int, dataset: str = "glas", groups: str = "g") -> dict[Place, Kept]:
    """The evaluation of one seed: accuracy about `level`, patients alike hard for everybody."""
    hard = np.random.default_rng(0).normal(0, 0.15, NUM_GROUPS)
    own = np.random.default_rng((number, round(1000 * level))).normal(0, 0.02, NUM_GROUPS)
    profile = mean_of(level + hard + own, np.arange(NUM_GROUPS), NUM_GROUPS).profile
    return {(dataset, "linear", "student", width): Kept("student", profile, groups) for width in (8, 24)}


def test_seeds_are_averaged_and_their_variance_added() -> None:
    a, b = (Side(name, tuple(seed(level, n) for n in range(3))) for name, level in (("a", 0.8), ("b", 0.7)))
    found = {c.widths: c for c in contrast(a, b)}
    assert set(found) == {(8, 8), (24, 24)}
    c = found[24, 24]
    place = ("glas", "linear", "student", 24)
    of_groups = paired(mean([s[place].profile for s in a.seeds]), mean([s[place].profile for s in b.seeds]))
    variance = of_groups.error**2 + sum(np.var(x, ddof=1) / 3 for x in (a.scores(place), b.scores(place)))
    assert c.difference.value == pytest.approx(np.mean(a.scores(place)) - np.mean(b.scores(place)))
    assert c.difference.error == pytest.approx(math.sqrt(variance))
    reach = stats.t.ppf(0.975, c.difference.freedom) * math.sqrt(variance)
    assert c.difference.high - c.difference.value == pytest.approx(reach)
    assert c.clear and c.spread[0] == pytest.approx(np.std(a.scores(place), ddof=1)) and c.noise > 0
    assert paired(a.profile(place), b.profile(place)).error < 0.02  # that patients differ cancels


def test_one_seed_says_that_it_knows_nothing_of_others() -> None:
    (c, _) = contrast(Side("a", (seed(0.8, 0),)), Side("b", (seed(0.7, 0),)))
    assert math.isnan(c.noise) and math.isnan(c.spread[0])
    assert "seeds alone" not in lines(Side("a", (seed(0.8, 0),)), Side("b", (seed(0.7, 0),)), [c])[1]


def test_other_tiles_of_the_same_name_are_refused() -> None:
    with pytest.raises(RecordError, match="scored on other groups of glas"):
        contrast(Side("a", (seed(0.8, 0),)), Side("b", (seed(0.7, 0, groups="h"),)))
    with pytest.raises(RecordError, match="not scored on a common data set"):
        contrast(Side("a", (seed(0.8, 0),)), Side("b", (seed(0.7, 0, dataset="crc"),)))


def test_mean_and_median_over_data_sets_close_the_table() -> None:
    sides = [
        Side(name, tuple({**seed(level, n, "glas"), **seed(level - 0.1, n, "crc")} for n in range(3)))
        for name, level in (("all", 0.8), ("single", 0.7))
    ]
    found = contrast(*sides)
    said = lines(*sides, found)
    assert len([line for line in said if line.startswith(("mean of 2", "median of 2"))]) == 4
    some = [c for c in found if c.widths == (24, 24)]
    assert overall(some).mean.value == pytest.approx(np.mean([c.difference.value for c in some]))
    assert all("better" in line for line in said[1:5])


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    uri = write(tmp_path_factory.mktemp("data") / "phantom", rows(72))
    return evaluate(CONTENDERS, WIDTHS, config.Evaluate(tiles=(uri,)), CFG, size=SIZE)


def test_an_evaluation_survives_being_kept(evaluation: Evaluation, tmp_path: Path) -> None:
    write_profiles(str(tmp_path), evaluation.sheets, CFG)
    kept = read_profiles(str(tmp_path), CFG)
    rows_of = {(r.dataset, r.protocol, r.encoder, r.width): r for r in evaluation.scores.rows}
    assert set(kept) == set(rows_of)
    assert all(one.profile.value == rows_of[place].score for place, one in kept.items())
    side = Side("x", (kept,))
    differences = {(d.protocol, d.width): d for d in evaluation.scores.differences if d.other == "t0"}
    found = contrast(side, side, encoders=("student", "start"))
    assert found and differences
    by_start = {(d.protocol, d.width): d for d in evaluation.scores.differences if d.other == "start"}
    for c in found:
        assert c.difference.low == pytest.approx(by_start[c.protocol, c.widths[0]].low, nan_ok=True)


def test_predictions_make_the_scores(evaluation: Evaluation, tmp_path: Path) -> None:
    from sklearn.metrics import balanced_accuracy_score

    write_predictions(str(tmp_path), evaluation.sheets, evaluation.embedded, CFG)
    table = read_predictions(str(tmp_path), CFG).to_pandas()
    for (dataset, protocol, encoder, width), part in table.groupby(["dataset", "protocol", "encoder", "width"]):
        row = evaluation.scores.row(dataset, protocol, encoder, width)
        assert row is not None and len(part) == 72
        assert balanced_accuracy_score(part["label"], part["predicted"]) == pytest.approx(row.score)
    assert table["confidence"].between(0, 1).all()


def test_nothing_kept_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="there is no evaluation at"):
        read_profiles(str(tmp_path), CFG)
    (tmp_path / "profiles.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(RecordError, match="is damaged"):
        read_profiles(str(tmp_path), CFG)
