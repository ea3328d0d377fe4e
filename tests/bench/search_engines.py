"""Other engines on the vectors of bench_search.py, for the choice that docs/search.md argues; not run by `make bench`.

    python -m tests.bench.search_engines --work FOLDER --make                 # writes the vectors
    python -m tests.bench.search_engines --work FOLDER --engine faiss-ivf     # or faiss-hnsw, faiss-flat, lancedb

Needs nothing of this package but for `--make`, so LanceDB can be asked from an environment of its own. Prints seconds
of building, bytes a row on disk, then milliseconds a query (median, one at a time), recall@10 and how many of ten
neighbours there were at least: for all rows, and for the rows of one site of five.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

K, SHORT, LISTED, SITES, OURS = 10, 64, 400, 5, 2
QUERIES = 100
Search = Callable[[np.ndarray, bool], np.ndarray]
"""(query, only of one site) -> rows."""


def site_of(rows: np.ndarray) -> np.ndarray:
    return rows // 800 % SITES


def reranked(x_ND: np.ndarray, rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    rows = rows[rows >= 0]
    return rows[np.argsort(-(x_ND[rows] @ query))[:K]]


def head(x_ND: np.ndarray) -> np.ndarray:
    first = x_ND[:, :SHORT]
    return np.ascontiguousarray(first / np.linalg.norm(first, axis=1, keepdims=True))


def faiss_engine(kind: str, x_ND: np.ndarray, folder: Path) -> Iterable[tuple[str, float, Search]]:
    """Short-lists by the first 64 numbers, re-ranked by all: the structure is what differs."""
    import faiss

    cosine, sq = faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer
    began = time.perf_counter()
    if kind == "faiss-ivf":
        index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(SHORT), SHORT, 4096, sq.QT_8bit, cosine)
        index.train(head(x_ND[:: max(1, len(x_ND) // 200_000)]))
    elif kind == "faiss-hnsw":
        index = faiss.IndexHNSWSQ(SHORT, sq.QT_8bit, 32, cosine)
        index.train(head(x_ND[::10]))
    else:
        index = faiss.IndexScalarQuantizer(SHORT, sq.QT_8bit, cosine)
        index.train(head(x_ND[::10]))
    for start in range(0, len(x_ND), 50_000):
        index.add(head(x_ND[start : start + 50_000]))
    built = time.perf_counter() - began
    faiss.write_index(index, str(folder / kind))
    faiss.omp_set_num_threads(1)
    bits = np.packbits(site_of(np.arange(len(x_ND))) == OURS, bitorder="little")
    selector = faiss.IDSelectorBitmap(bits)

    def search(effort: int) -> Search:
        def of(query: np.ndarray, filtered: bool) -> np.ndarray:
            sel = {"sel": selector} if filtered else {}
            options = (faiss.SearchParametersIVF(nprobe=effort, **sel) if kind == "faiss-ivf" else
                       faiss.SearchParametersHNSW(efSearch=effort, **sel) if kind == "faiss-hnsw" else
                       faiss.SearchParameters(**sel))  # fmt: skip
            return reranked(x_ND, index.search(head(query[None]), LISTED, params=options)[1][0], query)

        return of

    for effort in {"faiss-ivf": (16, 64, 256), "faiss-hnsw": (400, 800)}.get(kind, (0,)):
        yield f"{kind} {effort}", built, search(effort)


def lance_engine(kind: str, x_ND: np.ndarray, folder: Path) -> Iterable[tuple[str, float, Search]]:
    import lancedb
    import pyarrow as pa

    def part(start: int) -> pa.RecordBatch:
        x = x_ND[start : start + 50_000]
        rows = np.arange(start, start + len(x))
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(x.astype(np.float16).ravel()), x.shape[1])
        return pa.record_batch({"row": rows, "site": site_of(rows), "vector": vectors})

    table = lancedb.connect(folder / "lance").create_table("t", schema=part(0).schema, mode="overwrite")
    began = time.perf_counter()
    for start in range(0, len(x_ND), 50_000):
        table.add(pa.Table.from_batches([part(start)]))
    added = time.perf_counter() - began

    def search(nprobes: int, refine: int) -> Search:
        def of(query: np.ndarray, filtered: bool) -> np.ndarray:
            ask = table.search(query.astype(np.float16)).metric("cosine").select(["row"]).limit(K)
            if nprobes:
                ask = ask.nprobes(nprobes).refine_factor(refine)
            if filtered:
                ask = ask.where(f"site = {OURS}", prefilter=True)
            return ask.to_arrow()["row"].to_numpy()

        return of

    yield "lancedb, no index", added, search(0, 0)
    table.create_index(metric="cosine", index_type="IVF_PQ", num_partitions=1024, num_sub_vectors=48)
    built = time.perf_counter() - began
    for nprobes in (20, 80):
        yield f"lancedb, IVF_PQ {nprobes}", built, search(nprobes, 40)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--queries", type=int, default=QUERIES)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--engine", choices=("faiss-flat", "faiss-ivf", "faiss-hnsw", "lancedb"))
    args = parser.parse_args()
    if args.make:
        from tests.bench.bench_search import simulated

        x_ND, queries = simulated(args.rows)
        ours = np.flatnonzero(site_of(np.arange(len(x_ND))) == OURS)
        scores = [x_ND @ query for query in queries[:QUERIES]]
        np.save(args.work / "x.npy", x_ND)
        np.save(args.work / "q.npy", queries[:QUERIES])
        np.save(args.work / "truth.npy", [np.argsort(-s)[:K] for s in scores])
        np.save(args.work / "ours.npy", [ours[np.argsort(-s[ours])[:K]] for s in scores])
        return
    x_ND, queries = np.load(args.work / "x.npy"), np.load(args.work / "q.npy")
    truths = [np.load(args.work / f"{name}.npy") for name in ("truth", "ours")]
    make = lance_engine if args.engine == "lancedb" else faiss_engine
    for name, built, search in make(args.engine, x_ND, args.work):
        said = []
        for filtered, truth in zip((False, True), truths, strict=True):
            ms, recalls, fewest = [], [], K
            for query, right in zip(queries[: args.queries], truth[: args.queries], strict=True):
                began = time.perf_counter()
                rows = search(query, filtered)
                ms.append(1000 * (time.perf_counter() - began))
                recalls.append(np.isin(right, rows).mean())
                fewest = min(fewest, len(rows))
            said.append(f"{statistics.median(ms):.2f} ms, recall {np.mean(recalls):.3f}, at least {fewest}")
        place = args.work / ("lance" if args.engine == "lancedb" else args.engine)
        size = sum(p.stat().st_size for p in ([place] if place.is_file() else place.rglob("*"))) / len(x_ND)
        print(f"{name}: built in {built:.0f} s, {size:.0f} bytes a row; {said[0]}; one site: {said[1]}", flush=True)


if __name__ == "__main__":
    main()
