"""Neighbours of a vector, by width, and the pictures of the tiles they are: an index, as a door needs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from pathryoshka import config, search
from pathryoshka.search.filters import Filter
from pathryoshka.search.manifest import refuse_foreign
from pathryoshka.serve.schema import Hit


class Index(Protocol):
    """What a door needs of an index."""

    @property
    def model_id(self) -> str: ...

    def __len__(self) -> int: ...

    def search(
        self, vector_D: np.ndarray, widths: list[int], k: int, not_patient: str | None, not_slide: str | None
    ) -> dict[int, list[Hit]]: ...

    def image(self, tile_id: str) -> bytes | None: ...

    def on_slide(self, slide_id: str) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class Lookup:
    """An index of `pathryoshka index build`, see docs/search.md."""

    index: search.Index

    @property
    def model_id(self) -> str:
        return self.index.model_id

    def __len__(self) -> int:
        return len(self.index)

    def search(
        self, vector_D: np.ndarray, widths: list[int], k: int, not_patient: str | None, not_slide: str | None
    ) -> dict[int, list[Hit]]:
        """The k nearest for each width, by cosine over that many leading numbers."""
        only = Filter(() if not_patient is None else (not_patient,), () if not_slide is None else (not_slide,))
        found = self.index.search(vector_D, widths, k, only)
        return {width: [hit_of(one) for one in hits] for width, hits in found.items()}

    def image(self, tile_id: str) -> bytes | None:
        return self.index.image(self.index.find(tile_id))

    def on_slide(self, slide_id: str) -> tuple[np.ndarray, np.ndarray]:
        """fp64 [N, 3] left, top, side and fp32 [N, D] of the tiles of a slide that have a place."""
        return self.index.on_slide(slide_id)


def hit_of(one: search.Neighbour) -> Hit:
    return Hit(
        score=one.score, tile_id=one.tile_id, slide_id=one.slide_id, patient_id=one.patient_id, site=one.site,
        label=one.label, has_image=one.has_image,
    )  # fmt: skip


def open_lookup(uri: str | Path, model_id: str, width: int, storage: config.Storage) -> Lookup:
    """The index at `uri`. Raises SearchError where it is corrupt, of another model, or of other widths."""
    index = search.open_index(str(uri), storage)
    refuse_foreign(str(uri), index.manifest, "the student", model_id, width)
    return Lookup(index)
