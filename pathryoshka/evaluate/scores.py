"""What an evaluation found, as plain values: what reports are drawn from and what travels with an exported student."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal["student", "start", "random", "teacher", "pca", "other"]
Task = Literal["classification", "regression", "pairs", "robustness"]
"""What a data set is: classes, numbers measured at each tile, the same tissue on several slides, classes in several
hospitals."""
NESTED: tuple[Kind, ...] = ("student", "start", "random")
"""Kinds whose embedding is cut to each width; `other` encoders, like teachers, are scored whole."""
PCA = "PCA of teachers"
TEACHERS_MEAN = "mean of teachers"


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Row(Frozen):
    """One score with its 95 % interval over groups; `error` and `freedom`: its standard error and t's freedom.

    `protocol` is a key of `scoring.PROTOCOLS`, which says what the score is.
    """

    dataset: str
    protocol: str
    encoder: str
    kind: Kind
    width: int
    score: float
    low: float
    high: float
    error: float
    freedom: float
    num_tiles: int
    num_groups: int
    unit: str
    seen: bool = False


class Difference(Frozen):
    """`encoder` at `width` minus `other` at `other_width` (0: no one width), paired by group.

    `p`: of the swap test over groups (`swaps.py`); no correction for how many differences are looked at.
    """

    dataset: str
    protocol: str
    encoder: str
    width: int
    other: str
    other_width: int
    value: float
    low: float
    high: float
    error: float
    freedom: float
    p: float


class DataSet(Frozen):
    """What was scored on. `unit`: what is drawn and split as a whole; `thing`: what has a label, a tile or a slide;
    `labels`: of these in each class; `num_tiles` counts them.

    `num_folds`: of the cross-validation; 1 where the data set's own split was used. `num_scored`: tiles that are in a
    test part, all of them in cross-validation. `task`: how it is scored; `labels` are stains of `pairs` and the name
    of a `regression`. `licence`: of the data, where the data set records one.
    """

    name: str
    labels: dict[str, int]
    unit: str
    num_tiles: int
    num_groups: int
    num_folds: int
    num_scored: int
    num_unlabelled: int
    num_failed: int
    thing: str = "tile"
    phantom: bool = False
    seen: bool = False
    task: Task = "classification"
    licence: str = ""

    @property
    def chance(self) -> float | None:
        """What guessing scores; None where nobody can guess."""
        return 1 / len(self.labels) if self.task == "classification" else None

    @property
    def how_scored(self) -> str:
        """In words that follow a comma."""
        if self.task == "pairs":
            return "every pair of slides; nothing is learned"
        if self.task == "robustness":
            return f"the nearest tiles of other {self.unit}s; nothing is learned"
        if self.task == "regression":
            folds = "fold" if self.num_folds == 1 else "folds"
            return f"the data set's own {self.num_folds} {folds}, {self.num_scored:,} tiles scored"
        if self.num_folds == 1:
            return f"the data set's own split, {self.num_scored:,} {self.thing}s scored"
        return f"{self.num_folds}-fold cross-validation split by {self.unit}"


class Cost(Frozen):
    """What an encoder takes: `width` numbers out, parameters without classifier, GFLOP a view (None: not countable).

    `key`: digest of all that it computes from; of an exported student its model id.
    """

    encoder: str
    kind: Kind
    width: int
    num_params: int
    gflop: float | None
    key: str = ""


class Scores(Frozen):
    """Everything an evaluation found, as JSON: `scores.model_dump_json()`, `Scores.model_validate_json(text)`."""

    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    datasets: tuple[DataSet, ...]
    costs: tuple[Cost, ...]
    widths: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def row(self, dataset: str, protocol: str, encoder: str, width: int | None = None) -> Row | None:
        """The row, of the largest width where none is given; None when it was not scored."""
        rows = [r for r in self.rows if (r.dataset, r.protocol, r.encoder) == (dataset, protocol, encoder)]
        rows = [r for r in rows if width in (None, r.width)]
        return max(rows, key=lambda r: r.width) if rows else None

    def names(self, kind: Kind) -> tuple[str, ...]:
        """Encoders of a kind that were scored, in the order in which they were given."""
        return tuple(dict.fromkeys(r.encoder for r in self.rows if r.kind == kind))


def as_csv(kind: type[Row] | type[Difference], rows: Sequence[Row] | Sequence[Difference]) -> str:
    """A table: a line a row, columns as the fields of its kind."""
    sink = io.StringIO()
    writer = csv.DictWriter(sink, fieldnames=list(kind.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.model_dump() for row in rows)
    return sink.getvalue()
