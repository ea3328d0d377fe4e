"""Estimates against arithmetic by hand, the simulation against closed forms, refusals by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from pathryoshka import cli, config, recipes
from pathryoshka.estimate import reckon
from pathryoshka.estimate.rates import SHARE, EstimateError, Measured, student_facts, work_of
from pathryoshka.estimate.simulate import Line, Pool, coarser, simulate
from pathryoshka.prices import TABLE, PriceError, read_prices


@pytest.fixture(scope="module")
def paper() -> config.Run:
    return recipes.recipe_by_name("paper_b")


def asked(run: config.Run, **over: Any) -> reckon.Ask:
    table = read_prices()
    base = {
        "teachers": reckon.fleet(table, "g6e.xlarge=8", "on_demand"),
        "students": reckon.fleet(table, "p4d.24xlarge=1", "on_demand"),
    }
    return reckon.Ask(run, table, **(base | over))


# ---------------------------------------------------------------- arithmetic


def test_hours_and_money_by_hand(paper: config.Run) -> None:
    found = reckon.estimate(asked(paper))
    gflop = sum(work_of(paper).teacher_gflop.values())
    views_a_second = SHARE[1] * 8 * 362e12 / (gflop * 1e9)
    hours = paper.plan.num_views / views_a_second / 3600
    assert found.bottleneck == "teachers"
    assert found.hours.mid == pytest.approx(hours) and found.usd.mid == pytest.approx(hours * (8 * 1.861 + 32.77))
    assert found.hours.low < found.hours.mid < found.hours.high
    assert found.hours.high / found.hours.low == pytest.approx(SHARE[2] / SHARE[0])


def test_the_students_operations_are_those_of_its_layers() -> None:
    """A ViT by hand: patch embedding, four products a block, attention; the heads are counted apart, by hand too."""
    run = recipes.debug()
    tree = {"student": {"model": "vit_tiny_patch16_224", "widths": [64, 192], "pool": "avg"}, "views": {"size": 224}}
    whole = config.overlay(run.model_dump(), tree)
    whole["student"]["model_args"] = {}
    run = config.make_run(whole)
    d, depth, tokens = 192, 12, 14 * 14 + 1
    block = 2 * tokens * (3 * d * d + d * d + 8 * d * d) + 2 * 2 * tokens * tokens * d
    trunk = depth * block + 2 * 14 * 14 * d * 16 * 16 * 3
    assert trunk / 1e9 < student_facts(run)[0] < 1.25 * trunk / 1e9


def test_measured_rates_take_the_place_of_reckoned_ones(paper: config.Run) -> None:
    names = list(paper.teachers.models)
    measured = Measured("L40S", "m", "2026-11-25", 200.0, {name: 30.0 for name in names}, 1.0)
    found = reckon.estimate(asked(paper, teachers_measured=measured))
    assert found.stages["teachers"].mid == pytest.approx(8 * 30 / len(names))
    with pytest.raises(EstimateError, match=f"{names[1]} was not measured"):
        one = Measured("L40S", "m", "2026-11-25", 200.0, {n: 30.0 for n in names if n != names[1]}, 1.0)
        reckon.estimate(asked(paper, teachers_measured=one))


def test_from_a_store_no_teacher_is_paid(paper: config.Run) -> None:
    live, stored = reckon.estimate(asked(paper)), reckon.estimate(asked(paper, stored=True))
    assert "teachers" not in stored.stages and stored.usd_per_hour == 32.77 and stored.usd.mid < 0.3 * live.usd.mid
    assert stored.read_bytes == pytest.approx(live.read_bytes + live.store_bytes) and stored.moved_bytes_per_s == 0


def test_advice_is_reckoned_and_sorted(paper: config.Run) -> None:
    found = reckon.advices(asked(paper))
    assert [a.usd.mid for a in found] == sorted(a.usd.mid for a in found) and len(found) >= 3
    balanced = next(a for a in found if "keeps both sides busy" in a.what)
    count = int(balanced.what.split()[0])
    again = reckon.estimate(asked(paper, teachers=reckon.fleet(read_prices(), f"g6e.xlarge={count}", "on_demand")))
    assert again.usd == balanced.usd and again.balance == pytest.approx(count, abs=0.5)


# ---------------------------------------------------------------- the command


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["estimate", *words])
    return int(ended.value.code or 0)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--recipe", "paper_b", "--teachers", "g6e.xlarge=8", "--students", "p4d.24xlarge=1"]
    assert run(*words) == 0
    assert "<- the bottleneck" in capsys.readouterr().out
    assert run(*words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bottleneck"] == "teachers" and found["usd"]["low"] < found["usd"]["high"] and found["cheaper"]
    assert run("--machines") == 0
    said = capsys.readouterr().out
    assert all(name in said for name in read_prices().machines)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "say on which machines: --students MACHINE=N"),
        (["--students", "p4d.24xlarge"], "machines are MACHINE=N, e.g. g6e.xlarge=8; got p4d.24xlarge"),
        (["--students", "p4d=1"], "p4d is not in the price table; it has g5.xlarge"),
        (["--students", "p4d.24xlarge=1"], "this run asks teachers; say on which machines"),
        (["--students", "p4d.24xlarge=1", "--teachers", "g5.xlarge=2", "--spot"], "no spot price of g5.xlarge"),
        (["--students", "p4d.24xlarge=1", "--prices", "nowhere.yaml"], "no price table at nowhere.yaml"),
        (
            ["--students", "p4d.24xlarge=1", "--student-rates", "nowhere"],
            "is not what `pathryoshka estimate --measure`",
        ),
    ],
)
def test_what_is_missing_is_said(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--recipe", "paper_b", *words) != 0
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_a_wrong_price_table_is_refused_by_field(tmp_path: Path) -> None:
    tree = yaml.safe_load(TABLE.read_text())
    tree["machines"]["g5.xlarge"]["gpu"] = 1
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(PriceError, match=r"machines\.g5\.xlarge\.gpu: Extra inputs are not permitted"):
        read_prices(tmp_path / "p.yaml")


# ---------------------------------------------------------------- the simulation


def line(**over: Any) -> Line:
    base: dict[str, Any] = {
        "block": 8,
        "read": Pool(4, 0.01),
        "teachers": {"a": Pool(2, 1.0)},
        "student": Pool(1, 0.01),
    }
    return Line(**(base | over))


@pytest.mark.parametrize(
    ("parts", "views_per_s"),
    [
        ({}, 2 * 8 / 1.0),
        ({"teachers": {"a": Pool(2, 1.0), "b": Pool(1, 0.25)}}, 16.0),
        ({"teachers": {"a": Pool(2, 1.0), "b": Pool(1, 1.0)}}, 8.0),
        ({"student": Pool(1, 2.0)}, 4.0),
        ({"read": Pool(1, 4.0)}, 2.0),
        ({"in_flight": 1}, 8.0),
        ({"in_flight": 1, "release_s": 0.6}, 5.0),
        ({"in_flight": 8, "release_s": 0.6}, 16.0),
        ({"teachers": {}, "student": Pool(4, 0.5)}, 64.0),
    ],
)
def test_the_slowest_stage_sets_the_pace(parts: dict[str, Any], views_per_s: float) -> None:
    assert simulate(line(**parts), 8 * 1000).views_per_s == pytest.approx(views_per_s, rel=0.01)


def test_a_replica_that_is_away_costs_its_share() -> None:
    """Two replicas of 16 views/s together; one is away for 100 s: 800 views less."""
    found = simulate(line(teachers={"a": Pool(2, 1.0, restart_s=100.0, killed_at=(50.0,))}), 16 * 400)
    assert found.failures == {"teacher a": 1} and found.seconds == pytest.approx(400 + 50, abs=2)


def test_failures_of_replicas_by_renewal_theory() -> None:
    """Up for 200 s and away for 50 s on average: four fifths of the rate."""
    found = simulate(line(teachers={"a": Pool(40, 1.0, mtbf_s=200.0, restart_s=50.0)}), 8 * 40 * 1500, seed=1)
    assert found.views_per_s == pytest.approx(320 * 0.8, rel=0.03)


def test_a_student_that_fails_makes_blocks_again() -> None:
    """Between failures the mean loss is half the checkpoint's distance, and the recovery (Young 1974)."""
    slow = line(teachers={}, student=Pool(4, 1.0, mtbf_s=4 * 2000.0), checkpoint_blocks=400, recover_s=60.0)
    found = simulate(slow, 8 * 120_000, seed=2)
    lost = 50 + 60  # 100 s between checkpoints
    assert found.failures["student"] > 8
    assert 32 / found.views_per_s == pytest.approx(1 + lost / 2000, rel=0.03)


def test_stragglers_cost_little_behind_a_queue() -> None:
    even, uneven = (simulate(line(teachers={"a": Pool(4, 1.0, spread=s)}), 8 * 4000) for s in (0.0, 0.5))
    assert 0.85 * even.views_per_s < uneven.views_per_s < even.views_per_s * 1.02


def test_a_thousand_servers_are_simulated_as_fewer() -> None:
    large = line(read=Pool(2000, 1.0), teachers={"a": Pool(900, 1.0, mtbf_s=1e5)}, student=Pool(100, 0.05))
    small = coarser(large, 64)
    assert max(small.read.servers, small.teachers["a"].servers, small.student.servers) <= 64
    for pool, fewer in ((large.read, small.read), (large.teachers["a"], small.teachers["a"])):
        assert fewer.servers / fewer.seconds == pytest.approx(pool.servers / pool.seconds)
    assert small.teachers["a"].servers / small.teachers["a"].mtbf_s == pytest.approx(900 / 1e5)
    assert simulate(large, 8 * 100_000).views_per_s == pytest.approx(900 * 8, rel=0.02)


@pytest.mark.parametrize("in_flight", [0, 210])
def test_what_passes_between_blocks_is_made_fewer_with_the_servers(in_flight: int) -> None:
    latencies = {"handover_s": 0.1, "release_s": 0.5}
    large = line(
        read=Pool(400, 1.0), teachers={"a": Pool(200, 1.0)}, student=Pool(8, 0.01), in_flight=in_flight, **latencies
    )
    whole = simulate(large, 8 * 20_000, at_most=1000).views_per_s
    assert whole == pytest.approx(8 * (210 / 1.5 if in_flight else 200 / 1.1), rel=0.02)
    assert simulate(large, 8 * 20_000, at_most=64).views_per_s == pytest.approx(whole, rel=0.03)


def test_the_same_seed_is_the_same_outcome() -> None:
    noisy = line(teachers={"a": Pool(3, 1.0, spread=0.3, mtbf_s=50.0, restart_s=5.0)})
    one, two, other = (simulate(noisy, 8000, seed=seed) for seed in (1, 1, 2))
    assert one == two != other and math.isfinite(one.views_per_s)


def test_an_empty_line_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one block of views and one server"):
        simulate(line(read=Pool(0, 1.0)), 100)
