"""Slides instead of tiles: a lab's slide labels, bags of tile embeddings, and one embedding a slide.

Every tile of a slide is embedded, whatever label it has itself. A slide's embedding is the mean of its tiles' (each
cut to the width and normalised first), normalised again; attention learns which tiles matter instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pathryoshka import config, storage
from pathryoshka.evaluate.embed import Embedded, EmbedError
from pathryoshka.evaluate.scoring import normalise
from pathryoshka.tiles.sources import read_csv

COLUMNS = ("slide", "label", "patient")


@dataclass(frozen=True)
class Bags:
    """`numbers`: [N] of each tile's slide, 0 to S - 1, in the order of the slides."""

    numbers: np.ndarray

    def pooled(self, tiles_ND: np.ndarray) -> np.ndarray:
        """[S, D] mean over each slide's tiles."""
        sums = np.zeros((self.numbers.max() + 1, tiles_ND.shape[1]))
        np.add.at(sums, self.numbers, tiles_ND)
        return sums / np.bincount(self.numbers)[:, None]


def slide_labels(where: str, cfg: config.Storage) -> dict[str, tuple[str, str | None]]:
    """(label, patient) of each slide of a CSV with the columns slide, label and, if it likes, patient.

    Raises:
        ImportRefused: no such CSV, or one that says something else. EmbedError: a slide without a label.
    """
    rows = read_csv(storage.absolute(where), cfg, COLUMNS)
    for slide, row in rows.items():
        if not row["label"]:
            raise EmbedError(f"{where} gives slide {slide} no label; fill the cell or leave the slide out")
    return {slide: (str(row["label"]), row["patient"]) for slide, row in rows.items()}


def as_slides(embedded: Embedded, known: Mapping[str, tuple[str, str | None]]) -> tuple[Embedded, Bags]:
    """The slides as rows, whose vectors are still those of tiles (see `Bags`); the first tile stands for its slide."""
    names, first, numbers = np.unique(embedded.slides, return_index=True, return_inverse=True)
    labels = np.array([known[name][0] for name in names])
    patients = np.array([known[name][1] or embedded.patients[row] for name, row in zip(names, first, strict=True)])
    slides = replace(
        embedded,
        tile_ids=names,
        slides=names,
        patients=patients,
        sites=embedded.sites[first],
        labels=labels,
        splits=embedded.splits[first],
        hashes=embedded.hashes[first],
        thumbs=tuple(embedded.thumbs[row] for row in first),
        restained={name: x_ND[:0] for name, x_ND in embedded.restained.items()},
        restained_rows=np.empty(0, int),
    )
    return slides, Bags(numbers)


def with_pooled(slides: Embedded, bags: Bags) -> Embedded:
    """The same with one vector a slide, for pictures of neighbours."""
    return replace(slides, vectors={name: bags.pooled(normalise(x)) for name, x in slides.vectors.items()})


def missing(known: Mapping[str, object], found: Sequence[str], where: str) -> list[str]:
    """A note on slides of the CSV of which there is no tile."""
    lost = sorted(set(known) - set(found))
    if not lost:
        return []
    return [f"{len(lost)} slides of {where} have no tile ({', '.join(lost[:3])}{' ...' if len(lost) > 3 else ''})."]
