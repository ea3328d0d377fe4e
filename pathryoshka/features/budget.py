"""What filling a store will cost, in bytes, requests and money, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass

from pathryoshka import config
from pathryoshka.features.coverage import StoreError
from pathryoshka.prices import read_prices

ROW_BYTES = 60
"""Of a view beside its vectors: names, hash, view id, after compression."""
GIB = 2**30


@dataclass(frozen=True)
class Budget:
    """Of what a filling adds: views (of tiles, each with every teacher), bytes, files, row groups of all teachers."""

    num_tiles: int
    num_views: int
    num_bytes: int
    num_files: int
    num_row_groups: int

    def lines(self) -> list[str]:
        a_view, price = self.num_bytes / max(1, self.num_views), read_prices().storage
        return [
            f"store: {self.num_tiles:,} tiles, {self.num_views:,} views of them to fill, {a_view:,.0f} bytes a view, "
            f"{self.num_bytes / max(1, self.num_tiles):,.0f} a tile, {in_words(self.num_bytes)} in all",
            f"store: to write, {self.num_files:,} files "
            f"({self.num_files / 1000 * price.per_1000_put:.2f} USD of requests); to read all of it once, "
            f"{self.num_row_groups:,} requests ({self.num_row_groups / 1000 * price.per_1000_get:.2f} USD); "
            f"to keep it, {self.num_bytes / 1e9 * price.gb_month:.2f} USD a month",
        ]


def in_words(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:.1f} MiB"


def token_bytes(cfg: config.Store, kept_tokens: int, token_dim: int) -> int:
    """Bytes of the tokens of a view."""
    per_token = {"none": 0, "exact": 2 * token_dim, "int8": token_dim, "projected": 2 * cfg.directions}
    return kept_tokens * per_token[cfg.tokens]


def bytes_per_view(cfg: config.Store, kept_tokens: int, summary_dim: int, token_dim: int) -> int:
    """Bytes of one teacher's features of a view."""
    return ROW_BYTES + 2 * summary_dim + token_bytes(cfg, kept_tokens, token_dim)


def refuse_too_large(budget: Budget, held: int, run: config.Run) -> None:
    """Refuses what would be more than `store.max_bytes` with what is held already.

    Raises:
        StoreError: with what to lower, and how far.
    """
    most = run.store.max_bytes
    if held + budget.num_bytes <= most:
        return
    fits = int(run.views.per_tile * most / (held + budget.num_bytes))
    fewer = f"set views.per_tile={fits}, " if fits else ""
    raise StoreError(
        f"the store would be {in_words(held + budget.num_bytes)} and store.max_bytes is {in_words(most)}; "
        f"raise it, {fewer}lower teachers.tokens_per_view, or keep tokens smaller (store.tokens=int8, projected, none)"
    )
