"""What is made of a sweep's figures, without Ray: the winner, the front, importances, budgets, the page, the widths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pathryoshka import config
from pathryoshka.changes import differences
from pathryoshka.evaluate.scores import Row, Scores
from pathryoshka.recipes import debug
from pathryoshka.sweep.follow import spent
from pathryoshka.sweep.objective import late_share
from pathryoshka.sweep.record import Record, Recorder, Takeover, Trial, read_record
from pathryoshka.sweep.report import render, report_sweep
from pathryoshka.sweep.space import Objective, Sweep
from pathryoshka.sweep.widths import WidthError, choose_widths, mean_curve
from pathryoshka.sweep.worth import Importance, best, importance, pareto, position

LOWER = Objective(metric="unexplained")
SIZE = Objective(metric="num_params")
SPACE = {"optim.lr": {"loguniform": [1e-4, 1e-2]}, "student.widths": {"choice": [[16, 48], [48]]}}
SWEEP = Sweep.model_validate({"space": SPACE, "search": "random"})


def trial(number: int, unexplained: float, size: float = 1.0, status: Any = "finished", **more: Any) -> Trial:
    values = {"unexplained": unexplained, "num_params": size} if status == "finished" else {}
    point = more.pop("point", {"optim.lr": 1e-3, "student.widths": [48]})
    return Trial(id=f"t{number}", number=number, point=point, status=status, values=values, **more)


def test_the_best_is_the_best_of_those_that_finished() -> None:
    trials = [
        trial(0, 0.5),
        trial(1, 0.3),
        trial(2, 0.1, status="stopped"),
        trial(3, 0.3),
        trial(4, 0, status="failed"),
    ]
    won = best(trials, LOWER)
    assert won is not None and won.number == 1
    assert best(trials[2:3], LOWER) is None
    score = Objective(metric="probe", mode="max")
    for t, value in zip(trials, (0.5, 0.7, 0, 0.6, 0), strict=True):
        t.values["probe"] = value
    won = best(trials, score)
    assert won is not None and won.number == 1


def test_the_front_is_what_no_other_trial_beats() -> None:
    trials = [
        trial(0, 0.5, 1),
        trial(1, 0.3, 2),
        trial(2, 0.4, 3),
        trial(3, 0.2, 9),
        trial(4, 0.3, 2),
        trial(5, 0.2, 10),
    ]
    assert [t.number for t in pareto(trials, (LOWER, SIZE))] == [3, 1, 4, 0]
    assert [t.number for t in pareto(trials, (LOWER,))] == [3, 5]


def test_positions_on_an_axis() -> None:
    assert position("optim.lr", 1e-3, SWEEP) == pytest.approx(0.5)
    assert position("student.widths", [48], SWEEP) == 1.0 and position("student.widths", (16, 48), SWEEP) == 0.0


def many(effect: float, noise: float) -> list[Trial]:
    rng = np.random.default_rng(0)
    out = []
    for number in range(60):
        lr, widths = 10 ** rng.uniform(-4, -2), [[16, 48], [48]][int(rng.integers(2))]
        value = effect * np.log10(lr) + noise * rng.normal()
        out.append(trial(number, float(value), point={"optim.lr": lr, "student.widths": widths}))
    return out


def test_importance_finds_what_matters_and_says_when_nothing_does() -> None:
    found = importance(many(1.0, 0.05), SWEEP)
    assert isinstance(found, Importance)
    assert next(iter(found.share)) == "optim.lr" and found.share["optim.lr"] > 0.95 and found.explained > 0.9
    nothing = importance(many(0.0, 1.0), SWEEP)
    assert isinstance(nothing, Importance) and nothing.explained < 0.2
    few = importance(many(1.0, 0.05)[:9], SWEEP)
    assert few == "Importances need at least 10 finished trials; there are 9."
    assert "same value" in str(importance([trial(n, 0.5, point=t.point) for n, t in enumerate(many(1, 1))], SWEEP))


def test_budgets() -> None:
    record = Record(trials={"a": trial(0, 1, views=60, seconds=1800), "b": trial(1, 1, views=40, seconds=5400)})
    record.seconds = 3600
    assert spent(SWEEP, record) is None
    assert spent(SWEEP.model_copy(update={"max_views": 101}), record) is None
    assert "max_views=100 is spent" in str(spent(SWEEP.model_copy(update={"max_views": 100}), record))
    assert "max_hours=1 is spent" in str(spent(SWEEP.model_copy(update={"max_hours": 1.0}), record))
    costly = {"cost_per_hour": 3.0, "max_cost": 6.0}
    assert "max_cost=6 is spent (6)" in str(spent(SWEEP.model_copy(update=costly), record))


@pytest.fixture
def base(tmp_path: Path) -> config.Run:
    return config.make_run(
        config.overlay(
            debug().model_dump(), {"name": "s", "storage": {"root": str(tmp_path)}, "loss": {"widths": {16: 2}}}
        )
    )


def test_the_record_goes_on_with_the_time_of_earlier_sessions(base: config.Run) -> None:
    first = Recorder(base)
    first.record.trial("t0", {"optim.lr": 0.1}).views = 7
    first.before_s = 100
    first.write(force=True)
    second = Recorder(base)
    assert second.record.trials["t0"].views == 7 and second.record.seconds >= 100
    second.write(force=True)
    assert read_record(base).seconds >= 100
    assert second.record.trial("t1", {}).number == 1 and second.record.trial("t0", {}).number == 0


def test_the_page_tells_of_every_trial_and_the_winner_becomes_a_config(base: config.Run, tmp_path: Path) -> None:
    recorder = Recorder(base)
    for made in many(1.0, 0.05)[:14]:
        made.curve = [(48, 1.0), (96, made.values["unexplained"])]
        made.values["num_params"] = 100.0 + made.number
        recorder.record.trials[made.id] = made
    recorder.record.trials["x"] = trial(14, 0, status="failed", error="the disk is <full>", failures=2)
    recorder.record.trials["y"] = trial(15, 0, status="stopped", curve=[(48, 0.987)])
    recorder.write(force=True)
    won = best(list(recorder.record.trials.values()), LOWER)
    assert won is not None
    written = report_sweep(SWEEP, base)
    text = (tmp_path / "s" / "report.html").read_text()
    assert written == [str(tmp_path / "s" / "report.html"), str(tmp_path / "s" / "best.yaml")]
    for words in (
        "the disk is &lt;full&gt;",
        "0.987",
        "16 trials: 14 finished, 1 stopped, 1 failed",
        "views that were being",
    ):
        assert words in text
    assert f"Trial {won.number} is best" in text and 'src="http' not in text and "<script" not in text
    assert text.count("<svg") == 6 and "What better costs" in text  # three drawings in two shapes
    run = config.load_run("demo", tmp_path / "s" / "best.yaml")
    changed = {key for key, _, _ in differences(base.model_dump(mode="json"), run.model_dump(mode="json"))}
    assert changed <= {"name", "optim.lr", "student.widths", "loss.widths.16"} and "optim.lr" in changed
    assert run.name == "s-best" and run.optim.lr == won.point["optim.lr"]
    assert yaml.safe_load((tmp_path / "s" / "best.yaml").read_text())["storage"]["root"] == str(tmp_path)


def test_the_page_of_a_population_says_who_took_over_what(base: config.Run) -> None:
    sweep = Sweep.model_validate({"space": {"optim.lr": {"loguniform": [1e-4, 1e-2]}}, "scheduler": "pbt",
                                  "search": "random", "lockstep": 4})  # fmt: skip
    taken = [Takeover(views=600, of="t0", before={"optim.lr": 1e-4})]
    trials = [trial(0, 0.5, point={"optim.lr": 1e-3}), trial(1, 0.3, point={"optim.lr": 8e-4}, taken=taken)]
    recorder = Recorder(base)
    recorder.record.trials = {t.id: t for t in trials}
    recorder.write(force=True)
    page, best_file = (Path(where).read_text() for where in report_sweep(sweep, base))
    assert "optim.lr=0.0008<br><small>600 views: from trial 0; was optim.lr=0.0001</small>" in page
    assert "How much each parameter matters" not in page and "what it had before, and from whom" in page
    assert "the student that was measured is <code>trials/t1</code>" in page
    assert "# Its values changed while it trained" in best_file and "/trials/t1." in best_file
    assert config.load_run("demo", Path(report_sweep(sweep, base)[1])).optim.lr == 8e-4


def test_a_page_of_a_sweep_of_which_nothing_finished(base: config.Run) -> None:
    with pytest.raises(config.ConfigError, match="has no trial yet"):
        report_sweep(SWEEP, base)
    text = render(SWEEP, base, Record(trials={"x": trial(0, 0, status="failed", error="no")}))
    assert "None has finished" in text and "Importances need" in text and "The winner" not in text


@pytest.mark.parametrize(
    ("curve", "drop", "chosen"),
    [
        ({16: 0.5, 32: 0.7, 64: 0.8, 128: 0.80, 256: 0.80}, 0.01, (16, 32, 64, 256)),  # flat, then steep
        ({16: 0.5, 32: 0.7, 64: 0.8, 128: 0.80, 256: 0.80}, 0.2, (16, 32, 256)),
        ({16: 0.8, 32: 0.8, 64: 0.8}, 0.0, (16, 64)),
        ({16: 0.9, 32: 0.7, 64: 0.8}, 0.01, (16, 32, 64)),  # a dip is a loss to who stops in it
        ({16: 0.1, 64: 0.8}, 0.01, (16, 64)),
    ],
)
def test_widths_follow_the_curve(curve: dict[int, float], drop: float, chosen: tuple[int, ...]) -> None:
    assert choose_widths(curve, drop) == chosen


def test_a_drop_counts_from_the_last_width_that_was_kept_not_from_the_next_one() -> None:
    """A slow slope adds up: each step is small, and still a width is kept as soon as the sum is above `drop`."""
    curve = {width: 0.8 - 0.004 * i for i, width in enumerate(range(100, 0, -10))}
    assert choose_widths(curve, 0.01) == (10, 20, 40, 60, 80, 100)
    with pytest.raises(WidthError, match="two widths or more; there are 1"):
        choose_widths({64: 0.5}, 0.1)


def test_the_curve_is_the_students_mean_over_data_sets() -> None:
    made = [("a", "student", 16, 0.5), ("b", "student", 16, 0.7), ("a", "student", 32, 0.8), ("a", "t", 64, 0.9)]
    rows = tuple(
        Row(dataset=d, protocol="linear", encoder=e, kind="student" if e == "student" else "teacher", width=w, score=s,
            low=s, high=s, error=0.0, freedom=2, num_tiles=9, num_groups=3, unit="patient")
        for d, e, w, s in made
    )  # fmt: skip
    scores = Scores(rows=rows, differences=(), datasets=(), costs=(), widths=(16, 32))
    assert mean_curve(scores) == pytest.approx({16: 0.6, 32: 0.8})


def test_a_students_last_state_is_not_measured_by_a_few_views() -> None:
    lines = [
        {"views": v, "unexplained/a": x, "unexplained/b": x + 0.2} for v, x in ((500, 0.9), (960, 0.5), (1000, 0.1))
    ]
    assert late_share(lines, 1000) == pytest.approx((460 * 0.6 + 40 * 0.2) / 500), "40 views are less than a twentieth"
    assert late_share(lines, 800) == pytest.approx(0.2)
    assert late_share(lines[:1], 100_000) == pytest.approx(1.0), "what there is, where it is less"
