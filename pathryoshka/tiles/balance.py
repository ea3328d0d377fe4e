"""How often tiles come up against each other: weights for a plan, out of what tiles say of themselves.

Balance of the data is worth more than any loss: left alone, a few large patients or sites are most of what is seen. A
category with n tiles gets a share of the draws proportional to n ** (1 - power): 0 leaves them as they come, 1 makes
them equal. Inside a category tiles are equal. Dropped tiles have weight 0.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pathryoshka import config, storage
from pathryoshka.tiles.plan import PlanError, Weights
from pathryoshka.tiles.shards import DROPPED, Manifest, iter_tiles

CLUSTERS = "_clusters.parquet"
COLUMNS = {"patient": ("site", "patient_id"), "site": ("site",), "label": ("label",), "cluster": ("tile_id",)}
"""What tells a category; equal names of patients at two sites are two patients."""


def identity(uri: str, cfg: config.Storage, manifest: Manifest, balance: str) -> str:
    """Names what a plan over the data set is made from: the manifest, and the lists beside it that change the plan."""
    parts = [manifest.digest()]
    for name in (DROPPED, *([CLUSTERS] if balance == "cluster" else [])):
        where = storage.join(uri, name)
        if storage.exists(where, cfg):
            parts.append(f"{name}:{hashlib.sha256(storage.read_bytes(where, cfg)).hexdigest()}")
    return " ".join(parts)


def weights_of(
    tiles: Mapping[str, Manifest], cfg: config.Storage, splits: Sequence[str], plan: config.Plan
) -> Weights | None:
    """Weights of the tiles of `splits` in the order of a plan's row groups; none where all are 1.

    Raises:
        PlanError: `plan.balance` asks for clusters that were not made, or of other tiles.
    """
    dropped_any = any(storage.exists(storage.join(uri, DROPPED), cfg) for uri in tiles)
    if plan.balance == "none" and not dropped_any:
        return None
    categories: list[np.ndarray] = []
    kept: list[np.ndarray] = []
    known: dict[tuple[str | None, ...], int] = {}
    for uri, manifest in tiles.items():
        if not any(not splits or shard.split in splits for shard in manifest.shards):
            continue
        clusters = read_clusters(uri, cfg) if plan.balance == "cluster" else None
        columns = COLUMNS.get(plan.balance, ("tile_id",))
        for table in iter_tiles(uri, cfg, splits, (*columns, "kept"), dropped=True):
            kept.append(table["kept"].to_numpy(zero_copy_only=False))
            if plan.balance == "none":
                categories.append(np.zeros(table.num_rows, np.int64))
                continue
            names = list(zip(*(table[column].to_pylist() for column in columns), strict=True))
            if clusters is not None:
                missing = [name for (name,) in names if name not in clusters]
                if missing:
                    raise PlanError(
                        f"tile {missing[0]} of {uri} has no cluster; run `pathryoshka tiles cluster {uri}` again"
                    )
                names = [(uri, str(clusters[name])) for (name,) in names]
            categories.append(np.array([known.setdefault(name, len(known)) for name in names], np.int64))
    category, there = np.concatenate(categories), np.concatenate(kept).astype(bool)
    sizes = np.bincount(category[there], minlength=category.max() + 1).astype(np.float64)
    power = plan.balance_power if plan.balance != "none" else 0.0
    return Weights.of(np.where(there, np.maximum(sizes, 1)[category] ** -power, 0.0))


def read_clusters(uri: str, cfg: config.Storage) -> dict[str, int]:
    """Tile id -> cluster, as `pathryoshka tiles cluster` wrote them."""
    try:
        data = storage.read_bytes(storage.join(uri, CLUSTERS), cfg)
    except storage.NotFound:
        raise PlanError(
            f"plan.balance=cluster needs {CLUSTERS} beside the tiles; run `pathryoshka tiles cluster {uri}`"
        ) from None
    table: pa.Table = pq.read_table(io.BytesIO(data), columns=["tile_id", "cluster"])
    return dict(zip(table["tile_id"].to_pylist(), table["cluster"].to_pylist(), strict=True))
