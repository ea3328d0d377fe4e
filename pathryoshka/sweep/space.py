"""What is swept: the `sweep:` section of a config file, and the run that each point of its space stands for.

The rest of the file is the base run, and its `name` the sweep's. A key of the space is a key of the run's tree; every
value it may take is laid over the base and validated before anything starts. Points hold plain YAML values.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from pathryoshka import config
from pathryoshka.config import ConfigError, Run, Section

Point = dict[str, Any]
MAX_POINTS = 10_000
"""A grid beyond this is a mistake: nobody trains so many students one by one."""
FIXED = re.compile(r"(name|recipe|storage|metrics|export)(\..*)?|train\.(log_every|checkpoint_every|keep|max_failures)")
"""What the sweep itself decides, or what changes nothing that is computed."""
YARDSTICK = re.compile(r"teachers\..*|standardise\..*|loss\.(summary|tokens|kinds.*)|views\..*")
"""What a fraction unexplained depends on for other reasons than how well a student learned."""
MOVABLE = re.compile(r"optim\.(lr|min_lr_share|warmup_share)|loss\.((weights|widths)\..*|teacher_drop|relation)")
"""Numbers that may change while a student trains: neither its shape nor its optimizer's state depends on them."""
METRICS = {
    "unexplained": "fraction unexplained, mean of the teachers, over at least the last twentieth of the training views",
    "validation": "the same on views of sweep.validation.tiles, which training never saw",
    "probe": "balanced accuracy of a linear probe by unseen group, mean of evaluate.tiles, at full width",
    "num_params": "parameters of the student",
    "gflops": "of the student, a view",
    "full_width": "largest of student.widths",
    "seconds": "of wall time the trial took",
}


def number(value: Any) -> Any:
    """1e-3 without a dot is a string in YAML, and a number everywhere else."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value) else value


class Axis(Section):
    """The values that one key may take: exactly one of the five."""

    choice: tuple[Annotated[Any, BeforeValidator(number)], ...] | None = None
    subsets: tuple[tuple[str, ...], ...] | None = Field(None, description="for teachers.models: which of the base's")
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    integers: tuple[int, int] | None = Field(None, description="first and last")

    @model_validator(mode="after")
    def _one(self) -> Axis:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"write one of {', '.join(type(self).model_fields)}; got {', '.join(given) or 'none'}")
        if self.values == ():
            raise ValueError("there is nothing to choose from")
        ends = self.uniform or self.loguniform or self.integers
        if ends and not ends[0] < ends[1]:
            raise ValueError(f"a range is [low, high] with low < high; got {list(ends)}")
        if self.loguniform and self.loguniform[0] <= 0:
            raise ValueError(f"loguniform starts above 0; got {list(self.loguniform)}")
        return self

    @property
    def values(self) -> tuple[Any, ...] | None:
        """All that may come up, or None where it is a range."""
        return self.choice if self.choice is not None else self.subsets

    @property
    def corners(self) -> tuple[Any, ...]:
        """Values of which each must make a run: all of a list, both ends of a range."""
        ends = self.uniform or self.loguniform or self.integers
        return ends if ends else self.values or ()

    def draw(self, rng: np.random.Generator) -> Any:
        if self.uniform:
            return float(rng.uniform(*self.uniform))
        if self.loguniform:
            return math.exp(rng.uniform(math.log(self.loguniform[0]), math.log(self.loguniform[1])))
        if self.integers:
            return int(rng.integers(self.integers[0], self.integers[1] + 1))
        values = self.values or ()
        return values[int(rng.integers(len(values)))]


class Objective(Section):
    metric: str = Field("unexplained", description=f"{', '.join(METRICS)}, or one of a width: probe/64")
    mode: Literal["min", "max"] = "min"

    @model_validator(mode="after")
    def _known(self) -> Objective:
        stem, slash, width = self.metric.partition("/")
        if stem not in METRICS or (slash and (stem not in ("probe", "validation") or not width.isdigit())):
            near = difflib.get_close_matches(stem, METRICS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METRICS)} and probe/<width>"
            raise ValueError(f"unknown metric {self.metric!r}; {hint}")
        if (stem == "probe") != (self.mode == "max"):
            raise ValueError(f"{self.metric} is better when it is {'higher' if stem == 'probe' else 'lower'}")
        return self


class Validation(Section):
    """Tiles that training never sees, streamed through the same teachers once a trial has ended."""

    tiles: config.Names = ()
    splits: config.Names = ()
    num_views: int = Field(512, ge=1)


class Rungs(Section):
    """Where trials are compared: asha and halving at `grace_share` of the plan, `reduction` times that, and so on; pbt
    at each `grace_share`."""

    grace_share: float = Field(0.15, gt=0, le=1, description="share of plan.num_views that no trial is denied")
    reduction: float = Field(4, gt=1, description="one of so many goes on at each rung; pbt: takes over a better one")


class Sweep(Section):
    """How a space of runs is searched, and when it is enough."""

    space: dict[str, Axis]
    search: Literal["grid", "random", "optuna"] = "grid"
    num_trials: int = Field(16, ge=1, description="of random and optuna; a grid has as many as it has points")
    seed: int = 0
    objective: Annotated[tuple[Objective, ...], BeforeValidator(lambda v: (v,) if isinstance(v, Mapping) else v)] = (
        Objective(),
    )
    validation: Validation = Validation()
    scheduler: Literal["none", "asha", "halving", "pbt"] = Field(
        "none",
        description="what becomes of trials that are behind by fraction unexplained: asha stops each by itself, "
        "halving in lock-step, pbt has them take over better ones, in lock-step",
    )
    rungs: Rungs = Rungs()
    lockstep: int = Field(0, ge=0, description="students a stream, trained together; 0 = each its own")
    max_concurrent: int | None = Field(None, ge=1, description="trials at a time; none = as many as the devices hold")
    share_teachers: bool = Field(True, description="one pool for all trials where their teachers are the same")
    max_failures: int = Field(1, ge=0, description="times a failed trial is tried again; it continues where it stood")
    max_hours: float | None = Field(None, gt=0, description="of wall time, all sessions of the sweep together")
    max_views: int | None = Field(None, ge=1, description="tile-views, all trials together")
    cost_per_hour: float = Field(0, ge=0, description="of one trial's devices, in any currency")
    max_cost: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> Sweep:
        if not self.space:
            raise ValueError("space is empty; name at least one key, e.g. optim.lr: {loguniform: [1e-4, 1e-2]}")
        if not self.objective:
            raise ValueError("objective is empty")
        if self.lockstep and (self.search == "optuna" or self.scheduler == "asha"):
            raise ValueError(
                "lockstep trains known trials together; use search: grid or random, scheduler: halving or pbt"
            )
        if self.scheduler in ("halving", "pbt") and not self.lockstep:
            raise ValueError(
                f"{self.scheduler} is for trials in lock-step; say how many, lockstep: 8, or use scheduler: asha"
            )
        if self.scheduler == "pbt":
            self.refuse_what_cannot_move()
        if self.max_cost and not self.cost_per_hour:
            raise ValueError("max_cost needs cost_per_hour")
        if any(o.metric.startswith("validation") for o in self.objective) and not self.validation.tiles:
            raise ValueError("an objective of validation needs validation.tiles, which training never sees")
        yardsticks = [key for key in self.space if YARDSTICK.fullmatch(key)]
        by_share = [o.metric for o in self.objective if o.metric.split("/")[0] in ("unexplained", "validation")]
        if yardsticks and (by_share or self.scheduler != "none"):
            raise ValueError(
                f"{yardsticks[0]} changes what {by_share[0] if by_share else 'the scheduler'} is measured with, so its "
                "trials cannot be compared by it; use objective {metric: probe, mode: max} and scheduler none"
            )
        for key, axis in self.space.items():
            if self.search == "grid" and axis.values is None:
                raise ValueError(f"a grid needs values for {key}; write choice: [...], or search: random")
            if (axis.subsets is not None) != (key == "teachers.models"):
                raise ValueError(f"{key}: subsets is for teachers.models, and teachers.models takes nothing else")
            if FIXED.fullmatch(key):
                raise ValueError(f"{key} cannot be swept: the sweep decides it, or nothing depends on it")
        return self

    def refuse_what_cannot_move(self) -> None:
        for key, axis in self.space.items():
            if not MOVABLE.fullmatch(key):
                raise ValueError(
                    f"pbt cannot move {key} while a student trains; it moves learning rates and weights of losses, use "
                    "scheduler: halving for the rest"
                )
            if not all(isinstance(value, int | float) for value in axis.corners):
                raise ValueError(f"pbt moves numbers; {key} has others")


def load_sweep(file: str | Path, recipe: str = "demo", settings: Sequence[str] = ()) -> tuple[Sweep, Run]:
    """(sweep, base run) of a config file with a `sweep:` section; `--set sweep.num_trials=8` reaches into it.

    Raises:
        ConfigError: either cannot be, or a point of the space cannot.
    """
    over = config.read_file(file)
    for text in settings:
        over = config.overlay(over, config.parse_setting(text))
    tree = over.pop("sweep", None)
    if not isinstance(tree, Mapping):
        raise ConfigError(f"--config {file} has no section sweep with what is swept; see the README")
    config.refuse_unknown_keys(Sweep, tree, "sweep.")
    base = config.resolve(recipe, over)
    try:
        sweep = Sweep.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(config.sentence_of(error, "sweep")) from None
    refuse_impossible_points(sweep, base)
    return sweep, base


def refuse_impossible_points(sweep: Sweep, base: Run) -> None:
    """Every point of a grid, every point that random search will draw, and where points are found on the way (Optuna,
    pbt) every corner of the space.

    Raises:
        ConfigError: names the point.
    """
    on_the_way = sweep.search == "optuna" or sweep.scheduler == "pbt"
    for point in [*points(sweep), *(corners(sweep) if on_the_way else [])]:
        run_of(base, point)


def points(sweep: Sweep) -> list[Point]:
    """What grid or random search will try, in this order; empty for Optuna, which decides on the way."""
    if sweep.search == "optuna":
        return []
    if sweep.search == "grid":
        num = math.prod(len(axis.values or ()) for axis in sweep.space.values())
        if num > MAX_POINTS:
            raise ConfigError(f"the grid has {num} points, more than {MAX_POINTS}; use search: random or optuna")
        values = itertools.product(*(axis.values or () for axis in sweep.space.values()))
        return [dict(zip(sweep.space, chosen, strict=True)) for chosen in values]
    rng = np.random.default_rng(sweep.seed)
    return [{key: axis.draw(rng) for key, axis in sweep.space.items()} for _ in range(sweep.num_trials)]


def corners(sweep: Sweep) -> list[Point]:
    """Each value that an axis may end at, beside the first of every other axis."""
    first = {key: axis.corners[0] for key, axis in sweep.space.items()}
    return [first | {key: value} for key, axis in sweep.space.items() for value in axis.corners]


def run_of(base: Run, point: Point) -> Run:
    """The run that a point stands for; weights of teachers or widths that the point leaves out are dropped.

    Raises:
        ConfigError: it cannot be; the sentence names the point.
    """
    tree = base.model_dump()
    for key, value in point.items():
        if key == "teachers.models":
            unknown = [name for name in value if name not in base.teachers.models]
            if unknown or not value:
                known = ", ".join(base.teachers.models)
                raise ConfigError(f"sweep.space: a subset of teachers.models is one or more of {known}; got {value}")
            tree["teachers"]["models"] = {name: tree["teachers"]["models"][name] for name in value}
        else:
            nested: Any = value
            for part in reversed(key.split(".")):
                nested = {part: nested}
            config.refuse_unknown_keys(Run, nested, "")
            tree = config.overlay(tree, nested)
    loss = tree["loss"]
    if "teachers.models" in point:
        unknown = [name for name in loss["weights"] if name not in base.teachers.models]
        kept = (*tree["teachers"]["models"], *unknown)  # what nobody knows is for the run to refuse
        loss["weights"] = {name: weight for name, weight in loss["weights"].items() if name in kept}
    if "student.widths" in point:
        widths = {int(width) for width in tree["student"]["widths"]}
        loss["widths"] = {width: weight for width, weight in loss["widths"].items() if int(width) in widths}
    try:
        return config.make_run(tree)
    except ConfigError as error:
        raise ConfigError(f"{error} (at the point {describe(point)} of sweep.space)") from None


def describe(point: Point) -> str:
    """`optim.lr=0.003 student.widths=[16, 48]`."""
    return " ".join(f"{key}={short(value)}" for key, value in point.items())


def short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)
