"""How a data set is scored, by what it is: classes, numbers measured at each tile, the same tissue several times, or
classes in several hospitals.

A ruler takes the rows of one encoder at one width and gives its scores; everything else of a comparison is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pathryoshka import config
from pathryoshka.evaluate import scoring
from pathryoshka.evaluate.datasets import alike_apart, describe, remarks_on
from pathryoshka.evaluate.embed import Embedded, EmbedError
from pathryoshka.evaluate.folds import Fold, make_folds
from pathryoshka.evaluate.protocols.consistency import consistency
from pathryoshka.evaluate.protocols.ridge import gene_expression
from pathryoshka.evaluate.protocols.robustness import Robustness, robustness_index
from pathryoshka.evaluate.scores import DataSet, Task
from pathryoshka.evaluate.scoring import Found
from pathryoshka.evaluate.slides import Bags, as_slides, missing
from pathryoshka.evaluate.tally import Tally, combine
from pathryoshka.tiles.measured import Measured, read_measured
from pathryoshka.tiles.places import place_of

TASKS: tuple[Task, ...] = ("classification", "regression", "pairs", "robustness")
OUT_OF_DOMAIN = "OOD"
"""The part of a data set for robustness that its index leaves out."""


@dataclass(frozen=True)
class Ruler:
    """Attributes:
    groups: names of those that are scored, in the order of the profiles.
    learned: [n] rows of each fold that a PCA of teachers may be fitted on.
    score: rows of length 1 [N, D], and those in other stains [n, D] -> scores.
    score_folds: the same where each fold has rows of its own, and none in other stains.
    bags: where slides are scored by their tiles.
    """

    groups: tuple[str, ...]
    learned: tuple[np.ndarray, ...]
    score: Callable[[np.ndarray, np.ndarray | None], Found]
    score_folds: Callable[[Sequence[np.ndarray]], Found]
    bags: Bags | None = None


def task_of(made_by: Mapping[str, Any]) -> Task:
    """What its manifest says a data set is for; classes, where it says nothing that can be scored otherwise."""
    return next((task for task in TASKS if task == made_by.get("task")), "classification")


def by_class(embedded: Embedded, folds: Sequence[Fold], protocols: Sequence[str], bags: Bags | None = None) -> Ruler:
    """Labels of tiles, or of slides where `bags` says whose tiles are."""
    task = scoring.make_task(embedded.labels, embedded.patients, folds, embedded.restained_rows)

    def score(x_ND: np.ndarray, restained: np.ndarray | None) -> Found:
        if bags is None:
            return scoring.score(task, x_ND, protocols, restained=restained)
        rows = scoring.normalise(bags.pooled(x_ND))
        return scoring.score(task, rows, protocols, restained=restained, tiles=(x_ND, bags.numbers))

    return Ruler(
        tuple(task.group_names[g] for g in task.scored_groups),
        tuple(fold.fit for fold in folds),
        score,
        lambda parts: scoring.score_folds(task, parts, protocols),
        bags,
    )


def measured_folds(embedded: Embedded, measured: Measured) -> tuple[Fold, ...]:
    """The official folds, which name slides; nothing is chosen, so nothing is set aside for it."""
    folds = []
    for learn, test in measured.folds:
        rows = [np.flatnonzero(np.isin(embedded.slides, names)) for names in (learn, test)]
        if not all(map(len, rows)):
            raise EmbedError(
                f"a fold tests {', '.join(test[:3])}, of which or of whose training slides no tile is there"
            )
        folds.append(Fold(rows[0], rows[0][:0], rows[1]))
    return tuple(folds)


def by_expression(embedded: Embedded, folds: Sequence[Fold], measured: Measured) -> Ruler:
    """Numbers measured at each tile, predicted by a ridge on the folds of the data set."""
    names, groups = np.unique(embedded.patients, return_inverse=True)
    genes = measured.of(embedded.tile_ids.tolist())
    scored = np.unique(np.concatenate([groups[fold.test] for fold in folds]))

    def score(x: np.ndarray | Sequence[np.ndarray]) -> Found:
        tally = gene_expression(x, genes, groups, folds).score
        return Found({"expression": Tally(tally.sums[scored], tally.finish).profile}, {})

    learned = tuple(fold.fit for fold in folds)
    return Ruler(tuple(names[scored].tolist()), learned, lambda x_ND, _: score(x_ND), score)


def whole_places(embedded: Embedded) -> np.ndarray:
    """bool [N]: tiles of places that every slide shows."""
    places = np.array([place_of(tile_id) for tile_id in embedded.tile_ids])
    names, number, count = np.unique(places, return_inverse=True, return_counts=True)
    return count[number] == len(np.unique(embedded.slides)) if len(names) else np.zeros(0, bool)


def by_pairs(embedded: Embedded) -> Ruler:
    """The same tissue on several slides; the site of a slide is its scanner, the label of a tile its stain.

    Args:
        embedded: places that every slide shows (`whole_places`), and no others.
    """
    slides, of_slide = np.unique(embedded.slides, return_inverse=True)
    places, of_place = np.unique([place_of(tile_id) for tile_id in embedded.tile_ids], return_inverse=True)
    grid_ST = np.zeros((len(slides), len(places)), int)
    grid_ST[of_slide, of_place] = np.arange(len(embedded))
    names, groups = np.unique(embedded.patients[grid_ST[0]], return_inverse=True)
    scanners, stains = (column[grid_ST[:, 0]].tolist() for column in (embedded.sites, embedded.labels))

    def score(x_ND: np.ndarray) -> Found:
        found = consistency(x_ND[grid_ST], scanners, stains, groups)
        profiles = {"pairs/cosine": found.cosine["all"].profile}
        profiles |= {f"pairs/{kind}": found.top[kind].profile for kind in ("scanner", "stain", "both")
                     if kind in found.top}  # fmt: skip
        if len(profiles) == 4:  # the published score is of all four
            profiles["pairs/score"] = combine(list(profiles.values()), [0.25] * 4)
        return Found(profiles, {})

    everything = (np.arange(len(embedded)),)
    return Ruler(tuple(names.tolist()), everything, lambda x_ND, _: score(x_ND), lambda parts: score(parts[0]))


def by_centres(embedded: Embedded) -> tuple[Ruler, int]:
    """Classes in several hospitals (sites), by neighbours; and their number, one for all that is compared.

    It is the median over encoders, whole, of what suits each of them best. Splits are parts, each by itself.
    """
    names, groups = np.unique(embedded.patients, return_inverse=True)

    def found(x_ND: np.ndarray, k: int | None) -> Robustness:
        return robustness_index(x_ND, embedded.labels, embedded.sites, groups, k, embedded.splits)

    best = [found(scoring.normalise(x_ND), None).k for x_ND in embedded.vectors.values()]
    k = int(np.median(best))

    def score(x_ND: np.ndarray) -> Found:
        said = found(x_ND, k)
        return Found({"robustness": said.score.profile, "robustness/vote": said.vote.profile}, {})

    everything = (np.arange(len(embedded)),)
    ruler = Ruler(tuple(names.tolist()), everything, lambda x_ND, _: score(x_ND), lambda parts: score(parts[0]))
    return ruler, k


def ruler_of(
    name: str,
    uri: str,
    task: Task,
    embedded: Embedded,
    made_by: Mapping[str, Any],
    seen: bool,
    families: Sequence[str],
    labelled: Mapping[str, tuple[str, str | None]] | None,
    cfg: config.Evaluate,
    storage: config.Storage,
) -> tuple[Embedded, Ruler, DataSet, list[str]]:
    """How a data set is scored, its rows as they are scored, what has to be said about it."""
    notes: list[str] = []
    if task == "pairs":
        whole = whole_places(embedded)
        if not whole.any():
            raise EmbedError(
                f"no place of {name} is shown by all of its slides; `pathryoshka datasets check` says more"
            )
        if not whole.all():
            notes.append(f"{(~whole).sum()} tiles of {name} show places that not every slide shows; left out.")
        embedded = embedded.keep(whole)
        facts = describe(name, embedded, (), made_by, seen, task=task)
        return embedded, by_pairs(embedded), facts, [*notes, *remarks_on(facts, cfg)]
    if task == "regression":
        measured = read_measured(uri, storage)
        folds = measured_folds(embedded, measured)
        facts = describe(name, embedded, folds, made_by, seen, task=task)
        return embedded, by_expression(embedded, folds, measured), facts, remarks_on(facts, cfg)
    if task == "robustness":
        within = embedded.splits != OUT_OF_DOMAIN
        if not within.any():
            raise EmbedError(
                f"{name} has no labelled tile outside of split {OUT_OF_DOMAIN}, which its index leaves out"
            )
        embedded = embedded.keep(within)
        ruler, k = by_centres(embedded)
        facts = describe(name, embedded, (), made_by, seen, task=task)
        notes.append(f"The robustness index of {name} is of {k} neighbours, the median of what suits each encoder.")
        return embedded, ruler, facts, [*notes, *remarks_on(facts, cfg)]
    bags = None
    if labelled:
        notes += missing(labelled, embedded.slides.tolist(), str(cfg.slides))
        embedded, bags = as_slides(embedded, labelled)
    folds = make_folds(embedded.labels, embedded.patients, cfg.folds, splits=embedded.splits)
    facts = describe(name, embedded, folds, made_by, seen, "slide" if bags else "tile")
    notes += [*remarks_on(facts, cfg), *alike_apart(name, embedded, folds)]
    return embedded, by_class(embedded, folds, families, bags), facts, notes
