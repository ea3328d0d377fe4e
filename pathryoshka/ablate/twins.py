"""What is trained: the `ablate:` section of a config file, and the runs that it stands for.

All twins see the same views under the same budget and differ in what they are asked for. A teacher that a twin does
not learn from, or a width that it does not train, has weight 0 in its losses: no gradient of it reaches the student,
and the twins still share one stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from pathryoshka import config, storage
from pathryoshka.ablate.published import published
from pathryoshka.config import ConfigError, Run, Section

What = Literal["single", "flat", "widths", "raw", "weights"]
ALL = "all"
MORE = 4.0
"""Times its weight in the base run: a teacher that weighs more."""


class Ablate(Section):
    """Which twins, and how often each is trained."""

    what: tuple[What, ...] = Field(
        ("single", "flat", "raw"),
        description="single: one teacher each; flat: no nesting, full width; widths: one student a width; raw: no "
        "standardisation; weights: each teacher in turn weighs four times as much",
    )
    published: config.Names = Field((), description="published recipes, by name")
    seeds: int = Field(3, ge=1, description="of training; views and plan are the same for all")
    lockstep: int = Field(8, ge=1, description="students that share a stream")


@dataclass(frozen=True)
class Twin:
    """A recipe of the ablation. `over` is laid over the base run; `says`: what it is, in words."""

    name: str
    over: Mapping[str, Any]
    says: str


def load_ablation(file: str | Path, recipe: str = "demo", settings: Sequence[str] = ()) -> tuple[Ablate, Run]:
    """(ablation, base run) of a config file with an `ablate:` section.

    Raises:
        ConfigError: either cannot be, or a twin cannot.
    """
    over = config.read_file(file)
    for text in settings:
        over = config.overlay(over, config.parse_setting(text))
    tree = over.pop("ablate", {})
    if not isinstance(tree, Mapping):
        raise ConfigError(f"--config {file}: ablate is a section, e.g. ablate: {{seeds: 3}}")
    config.refuse_unknown_keys(Ablate, tree, "ablate.")
    base = config.resolve(recipe, over)
    try:
        ablate = Ablate.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(config.sentence_of(error, "ablate")) from None
    runs_of(ablate, base)
    return ablate, base


def twins(ablate: Ablate, base: Run) -> list[Twin]:
    """The recipes, `all` (the base run as it is) first."""
    teachers, widths = list(base.teachers.models), base.student.widths
    out = [Twin(ALL, {}, f"all {len(teachers)} teachers, nested")]
    if "single" in ablate.what:
        for name in teachers:
            others: dict[str, float] = {other: 0.0 for other in teachers if other != name}
            out.append(Twin(f"only-{name}", {"loss": {"weights": others}}, f"{name} alone, nested"))
    if "flat" in ablate.what:
        out.append(Twin("flat", only_width(widths, widths[-1]), "all teachers, full width only"))
    if "widths" in ablate.what:
        for width in widths[:-1]:
            out.append(Twin(f"width-{width}", only_width(widths, width), f"all teachers, width {width} only"))
    if "raw" in ablate.what:
        over = {"standardise": {"summary": "none", "tokens": "none"}}
        out.append(Twin("raw", over, "all teachers, features as they are"))
    if "weights" in ablate.what:
        for name in teachers:
            more = {name: MORE * base.loss.weights.get(name, 1.0)}
            out.append(Twin(f"more-{name}", {"loss": {"weights": more}}, f"{name} weighs {MORE:g} times as much"))
    for name in ablate.published:
        recipe = published(name)
        over = dict(recipe.over)
        if not recipe.nested:
            over = config.overlay(over, only_width(widths, widths[-1]))
        out.append(Twin(name, over, recipe.source))
    return out


def only_width(widths: Sequence[int], width: int) -> dict[str, Any]:
    """Losses of one width alone, at every step."""
    weights: dict[int, float] = {other: float(other == width) for other in widths}
    return {"loss": {"widths": weights, "widths_per_step": 0, "token_widths_per_step": 0}}


def runs_of(ablate: Ablate, base: Run) -> dict[str, list[Run]]:
    """Twin -> its runs, one a seed: `<storage.root>/<name>/<twin>-s<seed>`.

    Raises:
        ConfigError: a twin that cannot be; names it.
    """
    root = storage.absolute(storage.join(base.storage.root, base.name))
    keep = base.evaluate.keep or storage.join(root, "_embeddings")
    out: dict[str, list[Run]] = {}
    for twin in twins(ablate, base):
        for seed in range(ablate.seeds):
            mine = {"name": f"{twin.name}-s{seed}", "storage": {"root": root}, "evaluate": {"keep": keep}}
            tree = config.overlay(config.overlay(base.model_dump(), twin.over), mine | {"train": {"seed": seed}})
            try:
                out.setdefault(twin.name, []).append(config.make_run(tree))
            except ConfigError as error:
                raise ConfigError(f"{error} (of twin {twin.name})") from None
    return out
