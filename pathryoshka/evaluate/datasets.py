"""The data sets that are scored on: their names, what has to be said about them, and what may not be scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pathryoshka import config
from pathryoshka.evaluate.embed import Embedded
from pathryoshka.evaluate.folds import Fold
from pathryoshka.evaluate.scores import DataSet, Task
from pathryoshka.export.seen import Seen, SeenError

CHANCE_MATCHES = 0.01
"""Share of tiles that may look like seen ones by accident: they are left out. More than that is no accident."""
FEW_GROUPS = 20


def without_seen(name: str, embedded: Embedded, seen: Seen, allow: bool) -> tuple[Embedded, bool, list[str]]:
    """The tiles that may be scored, whether some of them were seen after all, and what has to be said about it."""
    known = seen.patients(list(embedded.patients), list(embedded.sites)) | seen.slides(embedded.slides)
    alike = seen.looks_like(embedded.hashes) & ~known
    patients = sorted(set(embedded.patients[known]))
    if not known.any() and not alike.any():
        return embedded, False, []
    accident = not known.any() and alike.mean() <= CHANCE_MATCHES
    more = " ..." if len(patients) > 3 else ""
    what = (
        f"{len(patients)} of {len(set(embedded.patients))} patients ({', '.join(patients[:3])}{more})"
        if patients
        else f"{alike.sum()} of {len(embedded)} tiles"
    )
    if allow:
        return embedded, True, [f"SEEN: {what} of {name} were in the distillation; its scores flatter the student."]
    if accident:
        remark = f"{alike.sum()} tiles of {name} look like tiles of the distillation; left out."
        return embedded.keep(~alike), False, [remark]
    raise SeenError(
        f"distillation saw {what} of {name}, which flatters the student; name tiles of other patients in "
        "evaluate.tiles or another split in evaluate.splits, or set evaluate.allow_seen=true to score them all the same"
    )


def describe(
    name: str,
    embedded: Embedded,
    folds: Sequence[Fold],
    made_by: Mapping[str, Any],
    seen: bool,
    thing: str = "tile",
    task: Task = "classification",
) -> DataSet:
    """What is known of a data set; `made_by` is what its manifest says of where it is from."""
    num_groups = len(set(embedded.patients))
    unit = "patient"
    if task == "pairs":
        unit = "block"
    elif num_groups == len(embedded):
        unit = thing
    elif (embedded.patients == embedded.slides).all():
        unit = "slide"
    return DataSet(
        name=name,
        labels=dict(sorted(Counter(embedded.labels.tolist()).items())),
        unit=unit,
        thing=thing,
        num_tiles=len(embedded),
        num_groups=num_groups,
        num_folds=len(folds),
        num_scored=len(set(np.concatenate([fold.test for fold in folds]))) if folds else len(embedded),
        num_unlabelled=embedded.num_unlabelled,
        num_failed=len(embedded.failures),
        phantom=made_by.get("kind") == "phantom",
        seen=seen,
        task=task,
        licence=str(made_by.get("licence", "")),
    )


def remarks_on(facts: DataSet, cfg: config.Evaluate) -> list[str]:
    notes = []
    if facts.phantom:
        notes.append(f"{facts.name} is PHANTOM tissue, drawn by a program: it shows that the machinery works, not what "
                     "the student is worth on patients.")  # fmt: skip
    if facts.num_groups < FEW_GROUPS:
        notes.append(f"{facts.name} has only {facts.num_groups} {facts.unit}s; its intervals are rough.")
    if facts.unit == facts.thing and facts.num_tiles < 200:
        notes.append(f"{facts.name} has only {facts.num_tiles} {facts.thing}s; differences of some points are noise.")
    if facts.task == "classification" and 1 < facts.num_folds < cfg.folds:
        notes.append(f"{facts.name} has {facts.num_folds} folds, as its rarest class has no more {facts.unit}s.")
    if facts.num_failed:
        notes.append(f"{facts.num_failed} tiles of {facts.name} could not be decoded and were left out.")
    if facts.num_unlabelled:
        notes.append(f"{facts.num_unlabelled} tiles of {facts.name} have no label and were left out.")
    return notes


def alike_apart(name: str, embedded: Embedded, folds: Sequence[Fold]) -> list[str]:
    """Says how many tiles that are scored look like a tile that was learned from: re-encoded or resized copies."""
    alike = np.zeros(len(embedded), bool)
    for fold in folds:
        alike[fold.test] |= near(embedded.hashes[fold.test], embedded.hashes[fold.fit])
    if not alike.any():
        return []
    share = alike.sum() / sum(len(fold.test) for fold in folds)
    return [
        f"{alike.sum()} tiles of {name} ({share:.1%}) look like tiles of other units that probes learn from; "
        "`pathryoshka tiles duplicates` lists them."
    ]


def near(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """bool [N]: is one of `others` within the distance at which two tiles are held to be the same? Never for hash 0."""
    others = np.unique(others[others != 0])
    seen = Seen(b"", frozenset(), others, len(others))
    return seen.looks_like(hashes)


def short_names(uris: Sequence[str]) -> tuple[str, ...]:
    """As many last parts of each URI as tell them apart."""
    for parts in range(1, 1 + max(uri.count("/") for uri in uris) + 1):
        names = tuple("/".join(uri.rstrip("/").split("/")[-parts:]) for uri in uris)
        if len(set(names)) == len(uris):
            return names
    raise config.ConfigError("evaluate.tiles names a data set twice")
