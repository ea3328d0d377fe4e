"""The space of a sweep, without Ray: what is refused before anything starts, which points there are, what they mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pathryoshka import config
from pathryoshka.config import ConfigError
from pathryoshka.recipes import debug
from pathryoshka.sweep.space import Sweep, corners, describe, load_sweep, points, run_of

PROBE = {"metric": "probe", "mode": "max"}


def write(folder: Path, sweep: Any, **base: Any) -> Path:
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({"recipe": "debug", "sweep": sweep, **base}))
    return file


def axes(**space: Any) -> dict[str, Any]:
    return {"space": {key.replace("__", "."): axis for key, axis in space.items()}}


def test_the_rest_of_the_file_is_the_base_and_settings_reach_both(tmp_path: Path) -> None:
    file = write(tmp_path, axes(optim__lr={"choice": [1e-3, 1e-2]}), plan={"num_views": 96})
    sweep, base = load_sweep(file, settings=["plan.window=4", "sweep.num_trials=3"])
    assert (base.recipe, base.plan.num_views, base.plan.window, sweep.num_trials) == ("debug", 96, 4, 3)
    assert points(sweep) == [{"optim.lr": 1e-3}, {"optim.lr": 1e-2}]


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        (None, "has no section sweep"),
        ({"spce": {}}, "unknown key sweep.spce; did you mean sweep.space?"),
        ({"space": {}}, "space is empty"),
        (axes(optim__lrr={"choice": [1]}), "unknown key optim.lrr; did you mean optim.lr?"),
        (axes(optim__lr={"chioce": [1]}), "unknown key sweep.space.optim.lr.chioce; did you mean"),
        (axes(optim__lr={"choice": []}), "nothing to choose from"),
        (axes(optim__lr={"choice": [1], "uniform": [0, 1]}), "write one of choice, subsets"),
        (axes(optim__lr={"uniform": [2, 1]}) | {"search": "random"}, "low < high"),
        (axes(optim__lr={"loguniform": [0, 1]}) | {"search": "random"}, "starts above 0"),
        (axes(optim__lr={"uniform": [0.1, 1]}), "a grid needs values for optim.lr"),
        (axes(optim__lr={"uniform": [-1, 1]}) | {"search": "random"}, r"optim.lr: .*greater than 0.*optim.lr=-"),
        (axes(optim__lr={"uniform": [-1, 1]}) | {"search": "optuna"}, r"at the point optim.lr=-1 of sweep.space"),
        (axes(loss__weights__nobody={"choice": [1]}), "loss.weights names 'nobody', which is none of mock0, mock1"),
        (axes(student__widths={"choice": [[16, 48], [48, 16]]}), r"widths must ascend.*student.widths=\[48, 16\]"),
        (axes(teachers__models={"subsets": [["mock2"]]}) | {"objective": PROBE}, "one or more of mock0, mock1"),
        (axes(teachers__models={"choice": [1]}) | {"objective": PROBE}, "subsets is for teachers.models"),
        (axes(storage__root={"choice": ["x"]}), "storage.root cannot be swept"),
        (axes(standardise__summary={"choice": ["none", "phi_s"]}), "cannot be compared by it; use objective"),
        (
            axes(standardise__summary={"choice": ["none"]}) | {"objective": PROBE, "scheduler": "asha"},
            "changes what the scheduler is measured with",
        ),
        (axes(optim__lr={"choice": [1]}) | {"objective": {"metric": "unexplaind"}}, "did you mean unexplained?"),
        (axes(optim__lr={"choice": [1]}) | {"objective": {"metric": "probe"}}, "better when it is higher"),
        (axes(optim__lr={"choice": [1]}) | {"objective": {"metric": "validation"}}, "needs validation.tiles"),
        (axes(optim__lr={"choice": [1]}) | {"max_cost": 5}, "max_cost needs cost_per_hour"),
        (axes(**{f"k{n}": {"choice": list(range(11))} for n in range(4)}), "14641 points"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(tmp_path: Path, sweep: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_sweep(write(tmp_path, sweep))


def test_a_grid_has_every_point_and_random_search_is_its_seed() -> None:
    space = {"optim.lr": {"loguniform": [1e-4, 1e-2]}, "student.heads.kind": {"choice": ["tied", "separate"]}}
    space |= {"student.heads.hidden": {"integers": [0, 2]}}
    draw = {seed: points(Sweep(space=space, search="random", num_trials=40, seed=seed)) for seed in (0, 1)}
    assert draw[0] == points(Sweep(space=space, search="random", num_trials=40)) != draw[1]
    assert all(1e-4 <= point["optim.lr"] <= 1e-2 for point in draw[0])
    assert {point["student.heads.hidden"] for point in draw[0]} == {0, 1, 2}
    below = sum(point["optim.lr"] < 1e-3 for point in draw[0])
    assert 10 <= below <= 30  # half of them, on a logarithmic axis
    assert points(Sweep(space=space, search="optuna")) == []
    assert {p["optim.lr"] for p in corners(Sweep(space=space, search="optuna"))} == {1e-4, 1e-2}
    grid = points(Sweep(space={"a": {"choice": [1, 2]}, "b": {"choice": [3, 4, 5]}}))
    assert len(grid) == 6 and {(p["a"], p["b"]) for p in grid} == {(a, b) for a in (1, 2) for b in (3, 4, 5)}


def test_numbers_that_yaml_reads_as_strings_are_numbers() -> None:
    assert points(Sweep.model_validate({"space": {"optim.lr": {"choice": ["1e-3", "2E2", "text"]}}})) == [
        {"optim.lr": 1e-3}, {"optim.lr": 200.0}, {"optim.lr": "text"}
    ]  # fmt: skip


def test_a_point_is_the_base_with_its_values_and_without_weights_of_what_it_leaves_out() -> None:
    base = config.make_run(config.overlay(debug().model_dump(), {"loss": {"weights": {"mock0": 2.0, "mock1": 3.0}}}))
    base = config.make_run(config.overlay(base.model_dump(), {"loss": {"widths": {16: 2.0, 32: 3.0}}}))
    run = run_of(base, {"teachers.models": ["mock1"], "student.widths": [16, 48], "loss.weights.mock0": 9.0})
    assert list(run.teachers.models) == ["mock1"] and run.loss.weights == {"mock1": 3.0}
    assert run.student.widths == (16, 48) and run.loss.widths == {16: 2.0}
    assert run_of(base, {}) == base
    with pytest.raises(ConfigError, match="loss.weights names 'typo'"):
        run_of(base, {"teachers.models": ["mock1"], "loss.weights.typo": 1.0})


def test_tune_holds_points_as_scalars_and_gives_back_what_it_got() -> None:
    from pathryoshka.sweep.trial import decode, encode

    space = {"student.widths": {"choice": [[16, 48], [48]]}, "teachers.models": {"subsets": [["mock0"]]}}
    space |= {"student.heads.kind": {"choice": ["tied"]}, "optim.lr": {"choice": [0.5]}}
    sweep = Sweep.model_validate({"space": space, "objective": PROBE})
    for point in points(sweep):
        held = encode(point)
        assert all(isinstance(value, str | float) for value in held.values())
        assert decode(sweep, json.loads(json.dumps(held))) == point
    assert describe(points(sweep)[0]).startswith("student.widths=[16, 48] teachers.models=[mock0] ")
