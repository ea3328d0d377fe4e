"""The comparison: student, its start, random weights, every teacher and the teachers' PCA, by one ruler on one pass.

A width is judged against what one could have for less work at the same width: the weights the student started from,
weights that never saw an image, and the teachers' vectors cut by PCA (which costs all teachers at every use).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pathryoshka import config
from pathryoshka.evaluate import rulers, scoring
from pathryoshka.evaluate.contenders import Contender
from pathryoshka.evaluate.datasets import short_names, without_seen
from pathryoshka.evaluate.embed import Embedded, EmbedError, embed_tiles
from pathryoshka.evaluate.pca import pca_of
from pathryoshka.evaluate.rulers import Ruler
from pathryoshka.evaluate.scores import NESTED, PCA, TEACHERS_MEAN, Cost, DataSet, Difference, Kind, Row, Scores
from pathryoshka.evaluate.scoring import PROTOCOLS, Found
from pathryoshka.evaluate.slides import slide_labels, with_pooled
from pathryoshka.evaluate.statistics import Estimate, interval
from pathryoshka.evaluate.swaps import swap_tests
from pathryoshka.evaluate.tally import Profile, difference, mean
from pathryoshka.export.seen import Seen
from pathryoshka.tiles.places import place_of
from pathryoshka.tiles.shards import read_manifest

Key = tuple[str, str, int]
"""(protocol, encoder, width)"""


@dataclass(frozen=True)
class Sheet:
    """One data set: what was found of each encoder at each width."""

    facts: DataSet
    groups: tuple[str, ...]
    """Names of those that are scored, in the order of the profiles."""
    found: dict[tuple[str, int], Found] = field(default_factory=dict)
    kinds: dict[str, Kind] = field(default_factory=dict)

    @property
    def profiles(self) -> dict[Key, Profile]:
        return {
            (p, name, width): profile
            for (name, width), one in self.found.items()
            for p, profile in one.profiles.items()
        }


@dataclass(frozen=True)
class Evaluation:
    """Scores; the embedded tiles and the sheet of each data set by name."""

    scores: Scores
    embedded: dict[str, Embedded]
    sheets: dict[str, Sheet]


def evaluate(
    contenders: Sequence[Contender],
    widths: Sequence[int],
    cfg: config.Evaluate,
    storage: config.Storage,
    *,
    size: int,
    seen: Sequence[Seen] = (),
    keep: str | None = None,
    protocols: Sequence[str] = (),
    batch: int = 64,
    say: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Scores every contender on every data set of `cfg.tiles`.

    Student, start and random weights are cut to each of their widths (`widths` where they name none), teachers and
    others stay whole, and PCA of the teachers is cut to each of `widths` that the training rows can span.

    Args:
        size: side of the views, as in distillation.
        seen: what each student's distillation saw; none where it is not known, which the notes then say.
        keep: folder or URI in which embeddings are kept for the next evaluation.
        protocols: families of `scoring`; none = linear, knn and those of `cfg`.

    Raises:
        SeenError: tiles or patients that distillation saw, unless `cfg.allow_seen`.
        EmbedError, FoldError, ShardError: tiles that cannot be read or scored.
    """
    if not cfg.tiles:
        raise config.ConfigError("evaluate.tiles is empty; name one or more labelled tile data sets")
    names = short_names(cfg.tiles)
    notes = [] if seen else ["What distillation saw is not known, so seen tiles and patients could not be refused."]
    labelled = slide_labels(cfg.slides, storage) if cfg.slides else None
    families = protocols or (*scoring.ALWAYS, *cfg.protocols)
    kept: dict[str, Embedded] = {}
    sheets: dict[str, Sheet] = {}
    for name, uri in zip(names, cfg.tiles, strict=True):
        made_by = read_manifest(uri, storage).made_by
        task = rulers.task_of(made_by)
        embedded = embed_tiles(
            {c.name: c.encode for c in contenders}, uri, storage, splits=cfg.splits, size=size,
            max_tiles=cfg.max_tiles, batch=batch, keys={c.name: c.key for c in contenders}, keep=keep,
            count=[c.name for c in contenders if c.gflop is None], at_once=max(1, cfg.replicas),
            slides={slide: label for slide, (label, _) in labelled.items()} if labelled else None,
            together=place_of if task == "pairs" else None,
        )  # fmt: skip
        was_seen = False
        for one in seen:
            embedded, found, remarks = without_seen(name, embedded, one, cfg.allow_seen)
            was_seen |= found
            notes += remarks
        embedded, ruler, facts, remarks = rulers.ruler_of(
            name, uri, task, embedded, made_by, was_seen, families, labelled, cfg, storage
        )
        notes += remarks
        sheets[name] = score(contenders, widths, embedded, ruler, facts)
        reach = max((width for other, width in sheets[name].found if other == PCA), default=0)
        if widths and reach < widths[-1] and any(c.kind == "teacher" for c in contenders):
            notes.append(
                f"PCA of the teachers ends at width {reach} on {name}: its training tiles span no further one."
            )
        kept[name] = embedded if ruler.bags is None else with_pooled(embedded, ruler.bags)
        say(
            f"scored {name}: {facts.num_scored} {facts.thing}s of {facts.num_groups} {facts.unit}s, "
            f"{len(sheets[name].found)} encoders and widths"
        )
    first = kept[names[0]]
    costs = tuple(
        Cost(
            encoder=c.name,
            kind=c.kind,
            width=first.vectors[c.name].shape[1],
            num_params=c.num_params,
            gflop=c.gflop if c.gflop is not None else first.gflop[c.name],
            key=c.key,
        )
        for c in contenders
    )
    scores = Scores(
        rows=tuple(row for sheet in sheets.values() for row in table(sheet)),
        differences=tuple(d for sheet in sheets.values() for d in compare(sheet)),
        datasets=tuple(sheet.facts for sheet in sheets.values()),
        costs=costs,
        widths=tuple(widths),
        notes=tuple(notes),
    )
    return Evaluation(scores, kept, sheets)


def score(
    contenders: Sequence[Contender], widths: Sequence[int], embedded: Embedded, ruler: Ruler, facts: DataSet
) -> Sheet:
    """Every contender at every width it is cut to."""
    sheet = Sheet(facts, ruler.groups)
    for contender in contenders:
        x_ND = embedded.vectors[contender.name]
        sheet.kinds[contender.name] = contender.kind
        asked = (contender.widths or widths) if contender.kind in NESTED else (x_ND.shape[1],)
        if x_ND.shape[1] < asked[-1]:
            raise EmbedError(f"{contender.name} gives {x_ND.shape[1]} numbers, so it has no width {asked[-1]}")
        restained = embedded.restained.get(contender.name)
        for width in asked:
            anew = None if restained is None else scoring.cut(restained, width)
            sheet.found[contender.name, width] = ruler.score(scoring.cut(x_ND, width), anew)
    teachers = [embedded.vectors[c.name] for c in contenders if c.kind == "teacher"]
    if teachers and ruler.bags is not None:
        teachers = [ruler.bags.pooled(scoring.normalise(x_ND)) for x_ND in teachers]
    if teachers:
        sheet.kinds[PCA] = "pca"
        parts = [pca_of(teachers, rows, widths[-1]) for rows in ruler.learned]
        for width in (w for w in widths if all(part.shape[1] >= w for part in parts)):
            sheet.found[PCA, width] = ruler.score_folds([scoring.cut(part, width) for part in parts])
    return sheet


def table(sheet: Sheet) -> list[Row]:
    facts = sheet.facts
    rows = []
    for (protocol, name, width), profile in sheet.profiles.items():
        what = PROTOCOLS[protocol]
        found = interval(profile, share=what.share and not what.signed, signed=what.signed)
        rows.append(
            Row(
                dataset=facts.name, protocol=protocol, encoder=name, kind=sheet.kinds[name], width=width,
                score=found.value, low=found.low, high=found.high, error=found.error, freedom=found.freedom,
                num_tiles=facts.num_scored, num_groups=facts.num_groups, unit=facts.unit, seen=facts.seen,
            )
        )  # fmt: skip
    return rows


def compare(sheet: Sheet) -> list[Difference]:
    """Each width of the student against teachers, start, random and PCA (of that width), and its own full width."""
    found = [(place, other, difference(own, theirs)) for place, own, other, theirs in pairs_of(sheet)]
    chances = swap_tests([both for _, _, both in found])
    return [
        difference_of(sheet.facts.name, place, other, interval(both), p)
        for (place, other, both), p in zip(found, chances, strict=True)
    ]


Pair = tuple[Key, Profile, tuple[str, int], Profile]
"""(protocol, student, width), its score, (other, width), that one's score"""


def pairs_of(sheet: Sheet) -> list[Pair]:
    out: list[Pair] = []
    profiles, kinds = sheet.profiles, sheet.kinds
    for protocol in dict.fromkeys(p for p, _, _ in profiles):
        mine = {(name, width): p for (which, name, width), p in profiles.items() if which == protocol}
        whole = {name: (width, p) for (name, width), p in mine.items() if kinds[name] in ("teacher", "other")}
        others: list[tuple[str, int, Profile]] = [(name, width, p) for name, (width, p) in whole.items()]
        teachers = [p for name, (_, p) in whole.items() if kinds[name] == "teacher"]
        if teachers:
            others.append((TEACHERS_MEAN, 0, mean(teachers)))
        for (name, width), own in mine.items():
            if kinds[name] != "student":
                continue
            against = [*others]
            against += [
                (other, w, p)
                for (other, w), p in mine.items()
                if w == width and kinds[other] in ("start", "random", "pca")
            ]
            full = max(w for n, w in mine if n == name)
            if width < full:
                against.append((name, full, mine[name, full]))
            out += [((protocol, name, width), own, (other, w), theirs) for other, w, theirs in against]
    return out


def difference_of(dataset: str, place: Key, other: tuple[str, int], found: Estimate, p: float) -> Difference:
    return Difference(
        dataset=dataset, protocol=place[0], encoder=place[1], width=place[2], other=other[0], other_width=other[1],
        value=found.value, low=found.low, high=found.high, error=found.error, freedom=found.freedom, p=p,
    )  # fmt: skip
