"""Which tiles an embedding holds to be alike, as pictures: the check that needs no label and no statistics."""

from __future__ import annotations

import base64
import hashlib

import numpy as np

from pathryoshka.evaluate.embed import Embedded
from pathryoshka.evaluate.scores import Frozen
from pathryoshka.evaluate.scoring import cut


class Picture(Frozen):
    """A small tile: JPEG in base64, its class, and its cosine similarity to the query (1 for the query itself)."""

    tile_id: str
    label: str
    similarity: float
    jpeg: str


class Query(Frozen):
    """A tile and the tiles of other groups that are nearest to it, by width."""

    query: Picture
    nearest: dict[int, tuple[Picture, ...]]


class Panel(Frozen):
    """Some queries of one data set."""

    dataset: str
    encoder: str
    queries: tuple[Query, ...]

    def agreement(self, width: int) -> float:
        """Share of the pictures shown at `width` that are of their query's class."""
        hits = [picture.label == q.query.label for q in self.queries for picture in q.nearest[width]]
        return sum(hits) / max(1, len(hits))


def nearest(
    dataset: str, embedded: Embedded, encoder: str, widths: tuple[int, ...], num_queries: int = 6, k: int = 5
) -> Panel:
    """The `k` nearest tiles of other patients for some queries, at each width.

    Queries are not picked by hand: classes take turns, in each the tile whose id has the smallest hash.
    """
    vectors = {width: cut(embedded.vectors[encoder], width) for width in widths}
    queries = []
    for row in choose_queries(embedded, num_queries):
        others = np.flatnonzero(embedded.patients != embedded.patients[row])
        found = {}
        for width, x_ND in vectors.items():
            similarity = x_ND[others] @ x_ND[row]
            order = np.argsort(-similarity, kind="stable")[:k]
            found[width] = tuple(picture(embedded, others[i], similarity[i]) for i in order)
        queries.append(Query(query=picture(embedded, row, 1.0), nearest=found))
    return Panel(dataset=dataset, encoder=encoder, queries=tuple(queries))


def choose_queries(embedded: Embedded, num_queries: int) -> list[int]:
    """Row numbers."""
    keys = [hashlib.blake2b(tile_id.encode(), digest_size=8).digest() for tile_id in embedded.tile_ids]
    by_class = {
        label: sorted(np.flatnonzero(embedded.labels == label), key=lambda row: keys[row])
        for label in np.unique(embedded.labels)
    }
    turns = max(len(rows) for rows in by_class.values())
    in_turn = [int(rows[turn]) for turn in range(turns) for rows in by_class.values() if turn < len(rows)]
    return in_turn[:num_queries]


def picture(embedded: Embedded, row: int, similarity: float) -> Picture:
    return Picture(
        tile_id=str(embedded.tile_ids[row]),
        label=str(embedded.labels[row]),
        similarity=round(float(similarity), 4),
        jpeg=base64.b64encode(embedded.thumbs[row]).decode(),
    )
