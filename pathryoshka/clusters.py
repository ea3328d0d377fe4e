"""Tiles grouped by what a frozen teacher sees in them, for `plan.balance=cluster`: teachers and tiles meet here.

Clusters stand in for classes where nobody labelled: rare morphology gets a cluster of its own and then its share of the
draws (Vo et al. 2024, arXiv 2405.15613, balance web images so).
"""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.cluster import MiniBatchKMeans

from pathryoshka import config, storage
from pathryoshka.teachers.encoder import Encoder, load_encoder
from pathryoshka.tiles.balance import CLUSTERS
from pathryoshka.tiles.shards import iter_tiles
from pathryoshka.tiles.views import TileError, decode, identity_view

GRID = (1, 1)
"""Tokens are not looked at."""


class ClusterError(ValueError):
    """Tiles that cannot be grouped as asked."""


def cluster_tiles(
    uri: str, cfg: config.Storage, teacher: config.Teacher, *, num_clusters: int, seed: int = 0, size: int = 224
) -> np.ndarray:
    """Writes `_clusters.parquet` (tile_id, cluster) beside the manifest of `uri`, with the teacher's fingerprint.

    K-means (mini-batches, k-means++) on summaries of length 1, which are held in memory as float16: 2.6 GB for a
    million tiles of 1,280 numbers. A tile that cannot be decoded joins cluster 0; the run reports it.

    Args:
        size: side of the views in pixels.

    Returns:
        int64 [num_clusters], tiles of each cluster.

    Raises:
        ShardError: no data set at `uri`. EncoderError: the teacher cannot be loaded.
        ClusterError: fewer tiles than clusters.
    """
    device = "cuda" if teacher.device in ("auto", "cuda") and torch.cuda.is_available() else "cpu"
    encoder = load_encoder("teacher", teacher, GRID, device, cfg)
    ids, unreadable, vectors = summaries(encoder, uri, cfg, size)
    if len(vectors) < num_clusters:
        raise ClusterError(f"{uri} has {len(vectors)} tiles that can be read, too few for {num_clusters} clusters")
    means = MiniBatchKMeans(num_clusters, batch_size=4096, n_init=3, random_state=seed)
    found = means.fit_predict(vectors.astype(np.float32))
    cluster = np.concatenate([found, np.zeros(len(unreadable), found.dtype)]).astype(np.int32)
    table = pa.table({"tile_id": [*ids, *unreadable], "cluster": cluster})
    facts = {"encoder": encoder.fingerprint, "num_clusters": num_clusters, "seed": seed, "size": size}
    sink = io.BytesIO()
    described = table.replace_schema_metadata({"pathryoshka.clusters": json.dumps(facts, sort_keys=True)})
    pq.write_table(described, sink, compression="ZSTD")
    storage.write_bytes(storage.join(uri, CLUSTERS), sink.getvalue(), cfg)
    return np.bincount(cluster, minlength=num_clusters)


def summaries(encoder: Encoder, uri: str, cfg: config.Storage, size: int) -> tuple[list[str], list[str], np.ndarray]:
    """Tiles that can be read and those that cannot, and float16 [N, D] of length 1 of the former."""
    ids: list[str] = []
    unreadable: list[str] = []
    parts: list[np.ndarray] = []
    for table in iter_tiles(uri, cfg, (), ("tile_id", "image"), dropped=True):
        views = []
        for row in table.to_pylist():
            try:
                views.append(identity_view(decode(row["image"]), size))
                ids.append(row["tile_id"])
            except TileError:
                unreadable.append(row["tile_id"])
        if views:
            summary_BD = encoder(np.stack(views))["summary"].float()
            parts.append(torch.nn.functional.normalize(summary_BD, dim=1).half().cpu().numpy())
    return ids, unreadable, np.concatenate(parts) if parts else np.empty((0, 1), np.float16)
