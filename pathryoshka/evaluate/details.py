"""What lies behind the scores of one data set: which classes are taken for which, and which tiles were worst."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from sklearn.metrics import confusion_matrix

from pathryoshka.evaluate.embed import Embedded
from pathryoshka.evaluate.neighbours import Panel, Picture, picture
from pathryoshka.evaluate.scores import Frozen
from pathryoshka.evaluate.token_map import TokenMap

if TYPE_CHECKING:
    from pathryoshka.evaluate.compare import Sheet

PROBE = "linear"
NUM_WORST = 10


class Confusion(Frozen):
    """Tiles of each class (rows, in the order of `labels`) by the class that the linear probe said (columns)."""

    dataset: str
    encoder: str
    width: int
    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    @property
    def recalls(self) -> dict[str, float]:
        """Share of each class's tiles that were recognised; classes without a scored tile are left out."""
        sums = {label: sum(row) for label, row in zip(self.labels, self.counts, strict=True)}
        return {label: self.counts[i][i] / sums[label] for i, label in enumerate(self.labels) if sums[label]}


class Worst(Frozen):
    """Tiles in whose true class the student's linear probe believed least, at most one of a group.

    `said`: the class it gave each instead; a picture's `similarity` is the probability of the true class.
    """

    dataset: str
    encoder: str
    width: int
    tiles: tuple[Picture, ...]
    said: tuple[str, ...]


class Details(Frozen):
    """Everything of an evaluation that is looked at, not computed with."""

    panels: tuple[Panel, ...] = ()
    confusions: tuple[Confusion, ...] = ()
    worst: tuple[Worst, ...] = ()
    token_maps: tuple[TokenMap, ...] = ()


def confusions_of(name: str, sheet: Sheet, embedded: Embedded) -> list[Confusion]:
    """Of every encoder at its largest width, and of students at their smallest too."""
    out = []
    labels = sorted(set(embedded.labels.tolist()))
    for encoder, kind in sheet.kinds.items():
        widths = sorted(width for other, width in sheet.found if other == encoder)
        for width in dict.fromkeys([*widths[-1:], *(widths[:1] if kind == "student" else [])]):
            said = sheet.found[encoder, width].predictions.get(PROBE)
            if said is None:
                continue
            counts = confusion_matrix(embedded.labels[said.rows], said.labels, labels=labels)
            rows = tuple(tuple(int(n) for n in row) for row in counts)
            out.append(Confusion(dataset=name, encoder=encoder, width=width, labels=tuple(labels), counts=rows))
    return out


def worst_of(name: str, sheet: Sheet, embedded: Embedded, encoder: str) -> Worst | None:
    """The worst tiles of `encoder` at its largest width; None where no probe gave probabilities."""
    width = max(width for other, width in sheet.found if other == encoder)
    said = sheet.found[encoder, width].predictions.get(PROBE)
    if said is None:
        return None
    wrong = said.labels != embedded.labels[said.rows]
    order = [i for i in np.argsort(said.confidence, kind="stable") if wrong[i]]
    taken: dict[str, int] = {}
    for i in order:
        taken.setdefault(str(embedded.patients[said.rows[i]]), i)
    chosen = list(taken.values())[:NUM_WORST]
    return Worst(
        dataset=name,
        encoder=encoder,
        width=width,
        tiles=tuple(picture(embedded, int(said.rows[i]), float(said.confidence[i])) for i in chosen),
        said=tuple(str(said.labels[i]) for i in chosen),
    )


def details_of(
    sheets: Mapping[str, Sheet],
    embedded: Mapping[str, Embedded],
    panels: tuple[Panel, ...],
    maps: tuple[TokenMap, ...] = (),
) -> Details:
    confusions: list[Confusion] = []
    worst: list[Worst] = []
    for name, sheet in sheets.items():
        confusions += confusions_of(name, sheet, embedded[name])
        for encoder in (n for n, kind in sheet.kinds.items() if kind == "student"):
            found = worst_of(name, sheet, embedded[name], encoder)
            worst += [found] if found and found.tiles else []
    return Details(panels=panels, confusions=tuple(confusions), worst=tuple(worst), token_maps=maps)
