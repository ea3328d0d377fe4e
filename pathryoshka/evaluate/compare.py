"""The comparison: student, its start, random weights, every teacher and the teachers' PCA, by one ruler on one pass.

A width is judged against what one could have for less work at the same width: the weights the student started from,
weights that never saw an image, and the teachers' vectors cut by PCA (which costs all teachers at every use).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pathryoshka import config
from pathryoshka.evaluate import probes
from pathryoshka.evaluate.datasets import describe, is_phantom, remarks_on, short_names, without_seen
from pathryoshka.evaluate.embed import Embedded, EmbedError, Encode, embed_tiles
from pathryoshka.evaluate.scores import PCA, TEACHERS_MEAN, Cost, DataSet, Difference, Kind, Row, Scores
from pathryoshka.export.seen import Seen

NESTED: tuple[Kind, ...] = ("student", "start", "random")


@dataclass(frozen=True)
class Contender:
    """An encoder that takes part. `gflop`: of one view, a multiply-add as two; counted here where None."""

    name: str
    kind: Kind
    encode: Encode
    num_params: int
    gflop: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Scores, and the embedded tiles of each data set by name for pictures."""

    scores: Scores
    embedded: dict[str, Embedded]


@dataclass
class Sheet:
    """One data set: [R] draws of each (probe, encoder, width), of which the first is the score."""

    draws: dict[tuple[str, str, int], np.ndarray] = field(default_factory=dict)
    kinds: dict[str, Kind] = field(default_factory=dict)


def evaluate(
    contenders: Sequence[Contender],
    widths: Sequence[int],
    cfg: config.Evaluate,
    storage: config.Storage,
    *,
    size: int,
    seen: Seen | None = None,
    batch: int = 64,
    say: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Scores every contender on every data set of `cfg.tiles`.

    Student, start and random weights are cut to each of `widths`, teachers stay whole, and PCA of the teachers is cut
    to each width that the training rows can span.

    Args:
        size: side of the views, as in distillation.
        seen: what distillation saw; None where it is not known, which the notes then say.

    Raises:
        SeenError: tiles or patients that distillation saw, unless `cfg.allow_seen`.
        EmbedError, ProbeError, ShardError: tiles that cannot be read or scored.
    """
    if not cfg.tiles:
        raise config.ConfigError("evaluate.tiles is empty; name one or more labelled tile data sets")
    names = short_names(cfg.tiles)
    encoders = {c.name: c.encode for c in contenders}
    rows: list[Row] = []
    differences: list[Difference] = []
    datasets: list[DataSet] = []
    kept: dict[str, Embedded] = {}
    notes = [] if seen else ["What distillation saw is not known, so seen tiles and patients could not be refused."]
    for name, uri in zip(names, cfg.tiles, strict=True):
        embedded = embed_tiles(
            encoders, uri, storage, splits=cfg.splits, size=size, max_tiles=cfg.max_tiles, batch=batch
        )  # fmt: skip
        embedded, was_seen, remarks = without_seen(name, embedded, seen, cfg.allow_seen)
        folds = probes.make_folds(embedded.labels, embedded.patients, cfg.folds)
        facts = describe(name, embedded, len(folds), is_phantom(uri, storage), was_seen)
        notes += [*remarks, *remarks_on(facts, cfg)]
        sheet = score(contenders, widths, embedded, folds)
        rows += table(sheet, facts)
        reach = max((width for _, other, width in sheet.draws if other == PCA), default=0)
        if reach < widths[-1] and any(c.kind == "teacher" for c in contenders):
            notes.append(
                f"PCA of the teachers ends at width {reach} on {name}: its training tiles span no further one."
            )
        differences += compare(sheet, facts, widths[-1])
        datasets.append(facts)
        kept[name] = embedded
        say(f"scored {name}: {facts.num_tiles} tiles of {facts.num_groups} {facts.unit}s, {len(sheet.draws)} rows")
    vectors = kept[names[0]].vectors
    costs = tuple(
        Cost(
            encoder=c.name,
            kind=c.kind,
            width=vectors[c.name].shape[1],
            num_params=c.num_params,
            gflop=c.gflop if c.gflop is not None else count_gflop(c.encode, size),
        )
        for c in contenders
    )
    scores = Scores(
        rows=tuple(rows),
        differences=tuple(differences),
        datasets=tuple(datasets),
        costs=costs,
        widths=tuple(widths),
        notes=tuple(notes),
    )
    return Evaluation(scores, kept)


def score(
    contenders: Sequence[Contender], widths: Sequence[int], embedded: Embedded, folds: Sequence[probes.Fold]
) -> Sheet:
    """Every contender at every width it is cut to, by both probes."""
    sheet = Sheet()
    draws = probes.redraw(embedded.patients)
    labels = embedded.labels

    def enter(name: str, kind: Kind, width: int, features: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        sheet.kinds[name] = kind
        for probe, fit in probes.PROBES.items():
            predicted = probes.predict_folds(iter(features), labels, folds, fit)
            sheet.draws[probe, name, width] = probes.balanced_accuracies(labels, predicted, draws)

    for contender in contenders:
        x_ND = embedded.vectors[contender.name]
        if contender.kind in NESTED and x_ND.shape[1] < widths[-1]:
            raise EmbedError(f"{contender.name} gives {x_ND.shape[1]} numbers, so it has no width {widths[-1]}")
        for width in widths if contender.kind in NESTED else (x_ND.shape[1],):
            cut = probes.cut(x_ND, width)
            enter(contender.name, contender.kind, width, [(cut[train], cut[test]) for train, test in folds])
    teachers = [embedded.vectors[c.name] for c in contenders if c.kind == "teacher"]
    if teachers:
        components = probes.pca_folds(teachers, folds, widths[-1])
        for width in (w for w in widths if all(train.shape[1] >= w for train, _ in components)):
            enter(PCA, "pca", width, [(probes.cut(a, width), probes.cut(b, width)) for a, b in components])
    return sheet


def table(sheet: Sheet, facts: DataSet) -> list[Row]:
    rows = []
    for (probe, name, width), draws in sheet.draws.items():
        value, low, high = probes.interval(draws)
        rows.append(
            Row.model_validate(
                {"dataset": facts.name, "probe": probe, "encoder": name, "kind": sheet.kinds[name], "width": width}
                | {"score": value, "low": low, "high": high, "num_tiles": facts.num_tiles}
                | {"num_groups": facts.num_groups, "unit": facts.unit, "seen": facts.seen}
            )
        )
    return rows


def compare(sheet: Sheet, facts: DataSet, full: int) -> list[Difference]:
    """Each width of the student against teachers, start, random and PCA (of that width), and its own full width."""
    out = []
    of_kind: dict[str, list[str]] = {}
    for name, kind in sheet.kinds.items():
        of_kind.setdefault(kind, []).append(name)
    for probe in probes.PROBES:
        wholes = {n: w for p, n, w in sheet.draws if p == probe and sheet.kinds[n] == "teacher"}
        teachers = [(name, width, sheet.draws[probe, name, width]) for name, width in wholes.items()]
        if teachers:
            teachers.append((TEACHERS_MEAN, 0, np.mean([draws for _, _, draws in teachers], axis=0)))
        for name in of_kind.get("student", []):
            for width in sorted(w for p, n, w in sheet.draws if (p, n) == (probe, name)):
                mine = sheet.draws[probe, name, width]
                others = list(teachers)
                for other in (n for kind in ("start", "random", "pca") for n in of_kind.get(kind, [])):
                    if (probe, other, width) in sheet.draws:
                        others.append((other, width, sheet.draws[probe, other, width]))
                if width < full:
                    others.append((name, full, sheet.draws[probe, name, full]))
                for other, other_width, theirs in others:
                    value, low, high = probes.interval(mine - theirs)
                    out.append(
                        Difference.model_validate(
                            {"dataset": facts.name, "probe": probe, "encoder": name, "width": width, "other": other}
                            | {"other_width": other_width, "value": value, "low": low, "high": high}
                        )
                    )
    return out


def count_gflop(encode: Encode, size: int) -> float | None:
    """GFLOP of one view by torch's counter, a multiply-add as two; None where nothing runs in this process."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        encode(np.zeros((1, size, size, 3), np.uint8))
    return counter.get_total_flops() / 1e9 or None
