"""Whether a folder is the data set that a row describes: files, classes, counts, units, images that can be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from pathryoshka import config
from pathryoshka.benchmarks.layouts import BenchmarkError, Sample
from pathryoshka.benchmarks.row import Benchmark
from pathryoshka.tiles.places import place_of
from pathryoshka.tiles.views import TileError, decode

SPLITS = ("train", "val", "test")
LOOKED_AT = 20
"""Images of each class and split that are decoded, unless all are asked for."""


@dataclass(frozen=True)
class Checked:
    """What was found: `counts` a split and class; `problems`, a sentence each."""

    counts: dict[str, dict[str, int]]
    num_units: int
    problems: tuple[str, ...]


def samples_of(row: Benchmark, root: str, cfg: config.Storage) -> Iterator[Sample]:
    """The images of a benchmark, lazily.

    Raises:
        BenchmarkError: nothing where it should lie.
    """
    return row.layout.samples(root, cfg)


def check(row: Benchmark, root: str, cfg: config.Storage, *, everything: bool = False) -> Checked:
    """Compares the folder `root` with its row.

    Args:
        everything: decode every image instead of `LOOKED_AT` a class and split.

    Raises:
        BenchmarkError: nothing there, or files that are not what they should be.
    """
    counts: dict[str, Counter[str]] = {}
    splits: dict[str, set[str]] = {}
    unreadable: list[str] = []
    places: dict[str, set[str]] = {}
    for sample in samples_of(row, root, cfg):
        split = sample.split or "all"
        found = counts.setdefault(split, Counter())
        found[sample.label] += 1
        splits.setdefault(sample.patient, set()).add(split)
        if row.task == "pairs":
            places.setdefault(sample.slide, set()).add(place_of(sample.path))
        if everything or found[sample.label] <= LOOKED_AT:
            try:
                decode(sample.read())
            except (TileError, OSError, ValueError) as error:
                unreadable.append(f"{sample.path}: {str(error).splitlines()[0]}")
    if not counts:
        raise BenchmarkError(f"{root} holds no image of {row.name}; it must lie like this: {row.get}")
    problems = [*wrong_counts(row, counts), *wrong_classes(row, counts), *wrong_places(places)]
    shared = sorted(unit for unit, there in splits.items() if len(there) > 1)
    if shared and row.task != "robustness":  # its parts are scored one by one, nothing is learned
        where = " and ".join(sorted(splits[shared[0]]))
        problems.append(f"{len(shared)} units are in two splits, e.g. {shared[0]} in {where}; scores would leak")
    if unreadable:
        problems.append(f"{len(unreadable)} images cannot be read, e.g. {unreadable[0]}")
    return Checked({s: dict(sorted(c.items())) for s, c in sorted(counts.items())}, len(splits), tuple(problems))


def wrong_counts(row: Benchmark, counts: dict[str, Counter[str]]) -> Iterator[str]:
    for split, expected in (row.counts or {}).items():
        found = counts.get(split, Counter()).total()
        if found != expected:
            yield f"split {split} has {found:,} images, its row says {expected:,}; is something missing or there twice?"
    for split in () if row.task == "robustness" else sorted(set(counts) - {*SPLITS, "all"}):
        yield f"split {split} is none of {', '.join(SPLITS)}"


def wrong_classes(row: Benchmark, counts: dict[str, Counter[str]]) -> Iterator[str]:
    if not row.classes:
        return
    for split, found in sorted(counts.items()):
        missing = [name for name in row.classes if name not in found]
        unknown = sorted(set(found) - set(row.classes))
        if missing:
            yield f"split {split} has no image of class {', '.join(missing)}"
        if unknown:
            yield f"split {split} has classes that {row.name} has not: {', '.join(unknown)}"


def wrong_places(places: dict[str, set[str]]) -> Iterator[str]:
    """Of slides that should all show the same places."""
    everywhere = set().union(*places.values())
    for slide, there in sorted(places.items()):
        if lost := sorted(everywhere - there):
            yield f"slide {slide} lacks {len(lost):,} places that others have, e.g. {lost[0]}; fetch it again"
