"""Neighbours in an index, one question at a time: how much faster than exact search, at which recall?

The exact search is every cosine of fp32 rows in memory, by the fastest of NumPy on one core, NumPy on all cores and
faiss's flat index. The index is asked through `Index.search`, from its files, with checks, facts and all. They take
turns.

simulated   a million rows of 384 numbers, as in bench_adaptive_retrieval.py; the ratio is of these.
real        EfficientNet-Lite0 (ImageNet weights) of all tiles and slides below PATHRYOSHKA_REAL_DATA, rotated to its
            principal directions and cut to 384 numbers; queries are a tenth of the images, held out. Recall only: a few
            thousand rows are searched in a moment anyway. Left out, loudly, without the data.

By short-list width (16 ... 128) and length; docs/search.png is drawn of it with `ARGS=--draw`. Goal: at least 2 times
the speed at a recall@10 of at least .95 on both; less recall counts as no speed at all.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pathryoshka import config
from pathryoshka.features.table import as_lists
from pathryoshka.search import index as index_room
from pathryoshka.search import open_index, writing
from pathryoshka.search.filters import Filter
from pathryoshka.search.index import LISTED, Index, cosines
from pathryoshka.search.manifest import SHORT
from pathryoshka.search.scan import Coding, Scanner, head, short_list
from pathryoshka.search.source import MODEL_ID
from tests.bench.bench_adaptive_retrieval import CLUSTERS, DECAY, filled
from tests.bench.common import finish
from tests.bench.tissue import real_embeddings

GOAL, RECALL = 2.0, 0.95
WIDTH, ROWS, QUERIES, K = 384, 1_000_000, 200, 10
SHORTS, LENGTHS = (16, 32, 64, 128), (25, 50, 100, 200, 400, 800, 1600)
CFG = config.Storage()
Search = Callable[[np.ndarray], np.ndarray]
"""A query -> row numbers of the K nearest."""


def simulated(num: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(WIDTH)
    spectrum = (np.arange(1, WIDTH + 1) ** -DECAY).astype(np.float32)
    centres = rng.standard_normal((CLUSTERS, WIDTH), dtype=np.float32)

    def make(n: int) -> np.ndarray:
        noise = 0.7 * rng.standard_normal((n, WIDTH), dtype=np.float32)
        return (centres[rng.integers(0, CLUSTERS, n)] + noise) * spectrum

    return filled(num, WIDTH, make), filled(QUERIES, WIDTH, make)


def build_index(folder: Path, x_ND: np.ndarray) -> Index:
    """200 tiles a slide, four slides a patient."""

    def facts(start: int, n: int) -> dict[str, list[str]]:
        rows = range(start, start + n)
        return {"tile_id": [str(i) for i in rows], "slide_id": [f"s{i // 200}" for i in rows],
                "patient_id": [f"p{i // 800}" for i in rows], "site": [f"c{i // 800 % 5}" for i in rows]}  # fmt: skip

    def part(start: int) -> pa.Table:
        x = x_ND[start : start + 50_000]
        return pa.table({**facts(start, len(x)), "vector": as_lists(x, pa.float32())}).replace_schema_metadata(
            {MODEL_ID: b"0" * 64}
        )

    with pq.ParquetWriter(folder / "t.parquet", part(0).schema) as writer:
        for start in range(0, len(x_ND), 50_000):
            writer.write_table(part(start))
    began = time.perf_counter()
    writing.build(str(folder / "t.parquet"), str(folder / "index"), CFG)
    built = time.perf_counter() - began
    (folder / "t.parquet").unlink()
    size = sum(path.stat().st_size for path in (folder / "index").rglob("*")) / len(x_ND)
    began = time.perf_counter()
    index = open_index(str(folder / "index"), CFG)
    print(f"{len(index)} rows: built in {built:.0f} s, {size:.0f} bytes a row, opened in "
          f"{time.perf_counter() - began:.1f} s", flush=True)  # fmt: skip
    return index


def exact_searches(x_ND: np.ndarray) -> dict[str, Search]:
    """Rows have length 1: a product is a cosine."""
    flat, pool, cores = faiss.IndexFlatIP(x_ND.shape[1]), ThreadPoolExecutor(), os.cpu_count() or 1
    flat.add(x_ND)
    faiss.omp_set_num_threads(1)  # of one question it makes one task
    parts = np.array_split(x_ND, cores)

    def best(scores: np.ndarray) -> np.ndarray:
        rows = np.argpartition(scores, -K)[-K:]
        return rows[np.argsort(-scores[rows])]

    def shared(query: np.ndarray) -> np.ndarray:
        scores = np.concatenate(list(pool.map(lambda part: part @ query, parts)))
        return best(scores)

    return {"numpy": lambda q: best(x_ND @ q), f"numpy, {cores} cores": shared,
            "faiss flat": lambda q: flat.search(q[None], K)[1][0]}  # fmt: skip


def of_index(index: Index, listed: int = LISTED, only: Filter | None = None) -> Search:
    def search(query: np.ndarray) -> np.ndarray:
        hits = index.search(query, [], K, only, listed=listed)[index.manifest.width]
        return np.array([int(hit.tile_id) for hit in hits])

    return search


def of_width(x_ND: np.ndarray, short: int) -> Callable[[int], Search]:
    """Short-lists by the first `short` numbers, for each length: what another choice than 64 would cost."""
    first = head(x_ND, short)
    coding = Coding.of(first)
    scanners = [Scanner(coding.codes(first), coding)]

    def with_length(listed: int) -> Search:
        def search(query: np.ndarray) -> np.ndarray:
            rows = short_list(scanners, head(query[None], short)[0], listed, [None])[0]
            scores = cosines(x_ND[rows], query, x_ND.shape[1])
            return rows[np.argsort(-scores)[:K]]

        return search

    return with_length


def measured(searches: dict[str, Search], queries: np.ndarray) -> tuple[dict[str, float], dict[str, list[np.ndarray]]]:
    """Median milliseconds a query, and what was found; all take turns at each query."""
    seconds: dict[str, list[float]] = {name: [] for name in searches}
    found: dict[str, list[np.ndarray]] = {name: [] for name in searches}
    for query in queries:
        for name, search in searches.items():
            began = time.perf_counter()
            rows = search(query)
            seconds[name].append(time.perf_counter() - began)
            found[name].append(rows)
    return {name: 1000 * statistics.median(some) for name, some in seconds.items()}, found


def recall(found: list[np.ndarray], truth: list[np.ndarray]) -> float:
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(truth, found, strict=True)]))


def by_width(x_ND: np.ndarray, queries: np.ndarray, truth: list[np.ndarray]) -> list[dict[str, float]]:
    """All take turns at each query, so that whatever else the machine does falls on each alike."""
    made = {short: of_width(x_ND, short) for short in SHORTS}
    searches = {f"{short} {listed}": made[short](listed) for short in SHORTS for listed in LENGTHS}
    ms, found = measured(searches, queries)
    rows = []
    for name in searches:
        short, listed = map(int, name.split())
        reached = round(recall(found[name], truth), 4)
        rows.append({"short": short, "listed": listed, "recall": reached, "ms": round(ms[name], 2)})
        print(rows[-1], flush=True)
    return rows


def of_real(folder: Path) -> dict[str, object]:
    rows, queries = real_embeddings(folder, WIDTH)
    truth = [np.argsort(-(rows @ query), kind="stable")[:K] for query in queries]
    out: dict[str, object] = {"rows": len(rows), "queries": len(queries)}
    table = []
    for short in SHORTS:
        made = of_width(rows, short)
        for listed in (10, 20, *LENGTHS[:5]):
            found = [made(listed)(query) for query in queries]
            table.append({"short": short, "listed": listed, "recall": round(recall(found, truth), 4)})
    share = float((rows[:, :SHORT] ** 2).sum() / (rows**2).sum())
    print(f"real: {len(rows)} rows, {len(queries)} queries, the first {SHORT} numbers carry {share:.3f} of the length")
    for line in table:
        print("real", line)
    return out | {"by_width": table, "share": round(share, 4)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--draw", action="store_true", help="by short-list width, too, into docs/search.png")
    args = parser.parse_args()
    facts: dict[str, object] = {"rows": args.rows}
    source = os.environ.get("PATHRYOSHKA_REAL_DATA")
    if source:
        facts["real"] = of_real(Path(source))
    else:
        print("SKIPPED: real tissue; set PATHRYOSHKA_REAL_DATA to a folder as this file's docstring says")
    real = {row["short"]: row["recall"] for row in facts.get("real", {}).get("by_width", [])  # type: ignore[attr-defined]
            if row["listed"] == LISTED}  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        x_ND, queries = simulated(args.rows)
        index = build_index(Path(name), x_ND)
        index_room.FEW = 0
        searches = {**exact_searches(x_ND), "index": of_index(index),
                    "index, not this patient": of_index(index, only=Filter(not_patients=("p7",))),
                    "index, one site of five": of_index(index, only=Filter(sites=("c2",)))}  # fmt: skip
        ratios = []
        for _ in range(args.repeats):
            ms, found = measured(searches, queries)
            truth = found["numpy"]
            reached = recall(found["index"], truth)
            allowed = np.arange(len(x_ND)) // 800 % 5 == 2
            inside = [np.flatnonzero(allowed)[np.argsort(-(x_ND[allowed] @ q))[:K]] for q in queries[:20]]
            filtered = recall(found["index, one site of five"][:20], inside)
            print({key: round(value, 2) for key, value in ms.items()}, f"recall {reached:.4f}, filtered {filtered:.4f}",
                  f"load {os.getloadavg()[0]:.1f}", flush=True)  # fmt: skip
            fastest = min(value for key, value in ms.items() if not key.startswith("index"))
            good = reached >= RECALL and real.get(SHORT, 1.0) >= RECALL
            ratios.append(fastest / ms["index"] if good else 0.0)
        facts |= {"ms": {key: round(value, 2) for key, value in ms.items()}, "recall": round(reached, 4),
                  "recall_filtered": round(filtered, 4), "load": round(os.getloadavg()[0], 1)}  # fmt: skip
        if args.draw:
            facts["by_width"] = by_width(x_ND, queries, truth)
            from tests.bench.draw_search import draw

            draw(facts, Path("docs/search.png"))
    finish("search", ratios, GOAL, **facts)


if __name__ == "__main__":
    main()
