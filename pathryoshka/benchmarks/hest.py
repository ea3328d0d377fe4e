"""HEST-bench as its hub snapshot lies on disk: a folder a task, tiles and gene counts of each sample in HDF5.

    <task>/var_50genes.json                  {"genes": [50 names]}
    <task>/splits/train_0.csv, test_0.csv    sample_id, patches_path, expr_path (below the task); one pair a fold
    <task>/patches/<sample>.h5               img [N, 224, 224, 3], barcode [N, 1], coords [N, 2]
    <task>/adata/<sample>.h5ad               AnnData: X of counts, dense or sparse, rows by barcode, columns by gene

The layout is what the benchmark's own code reads (github.com/mahmoodlab/HEST, src/hest/bench). As there, expression is
log1p of the counts, of the spots that have a tile. No file says whose a sample is: the sample is the unit, its folds
are by patient.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pathryoshka import config, storage
from pathryoshka.benchmarks.layouts import BenchmarkError, Sample, needed, png_of
from pathryoshka.tiles.measured import Measured

GENES = "var_50genes.json"
COLUMNS = ("sample_id", "patches_path", "expr_path")


@dataclass(frozen=True)
class Task:
    """`folds`: (samples to learn from, samples to test); `files`: sample -> (tiles, expression) below `folder`."""

    name: str
    folder: str
    genes: tuple[str, ...]
    folds: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    files: dict[str, tuple[str, str]]


@dataclass(frozen=True)
class ByHest:
    """The root of the snapshot, or the folder of one of its tasks. A local folder only."""

    def samples(self, root: str, cfg: config.Storage) -> Iterator[Sample]:
        for task in tasks(storage.absolute(root), cfg):
            for sample, (tiles, expression) in sorted(task.files.items()):
                barcodes = barcodes_of(tiles)
                if lost := sorted(set(barcodes) - set(names_of(expression, "obs"))):
                    raise BenchmarkError(f"{expression} has no spot {lost[0]} that {tiles} has; fetch both again")
                for i, barcode in enumerate(barcodes):
                    read = partial(png_of, tiles, i, "img")
                    yield Sample(f"{task.name}/{sample}/{barcode}", read, task.name, None, sample, sample)

    def measured(self, root: str, cfg: config.Storage) -> Measured:
        """Expression of every spot that has a tile, and the official folds.

        Raises:
            BenchmarkError: more tasks than one below `root`, as each has genes of its own.
        """
        found = tasks(storage.absolute(root), cfg)
        if len(found) > 1:
            raise BenchmarkError(
                f"{root} holds {len(found)} tasks, each with genes of its own; convert them one by one, "
                f"e.g. {storage.join(root, found[0].name)}"
            )
        (task,) = found
        ids, values = [], []
        for sample, (tiles, expression) in sorted(task.files.items()):
            barcodes = barcodes_of(tiles)
            ids += [f"{task.name}/{sample}/{barcode}" for barcode in barcodes]
            values.append(counts_of(expression, barcodes, task.genes))
        return Measured(tuple(ids), np.log1p(np.concatenate(values)), task.genes, task.folds)


def tasks(root: str, cfg: config.Storage) -> list[Task]:
    """Every task below `root`, which may be one itself.

    Raises:
        BenchmarkError: there is none, or one that is not whole.
    """
    paths = sorted(storage.list_files(root, cfg))
    folders = [path.removesuffix(GENES).rstrip("/") for path in paths if re.fullmatch(rf"([^/]+/)?{GENES}", path)]
    if not folders:
        raise BenchmarkError(f"there is no {GENES} in {root} or a folder of it; fetch the snapshot of hest-bench there")
    return [task_in(storage.join(root, name) if name else root, cfg) for name in folders]


def task_in(folder: str, cfg: config.Storage) -> Task:
    name = folder.rstrip("/").rsplit("/", 1)[-1]
    try:
        genes = tuple(json.loads(storage.read_bytes(storage.join(folder, GENES), cfg))["genes"])
    except (ValueError, KeyError, TypeError):
        raise BenchmarkError(f"{GENES} of {name} lists no genes; fetch it again") from None
    there = set(storage.list_files(folder, cfg))
    numbers = sorted(int(m[1]) for path in there if (m := re.fullmatch(r"splits/train_(\d+)\.csv", path)))
    if not numbers:
        raise BenchmarkError(f"there is no splits/train_0.csv in {folder}; fetch the task {name} again")
    files: dict[str, tuple[str, str]] = {}
    folds = []
    for number in numbers:
        sides = []
        for side in ("train", "test"):
            rows = split_rows(folder, f"splits/{side}_{number}.csv", there, cfg)
            sides.append(tuple(row["sample_id"] for row in rows))
            for row in rows:
                for path in (row["patches_path"], row["expr_path"]):
                    if path not in there:
                        raise BenchmarkError(f"sample {row['sample_id']} of {name} has no {path}; fetch it again")
                tiles, expression = (storage.join(folder, row[key]) for key in COLUMNS[1:])
                files[row["sample_id"]] = (tiles, expression)
        if both := sorted(set(sides[0]) & set(sides[1])):
            raise BenchmarkError(f"fold {number} of {name} learns from and tests sample {both[0]}; scores would leak")
        folds.append((sides[0], sides[1]))
    return Task(name, folder, genes, tuple(folds), files)


def split_rows(folder: str, path: str, there: set[str], cfg: config.Storage) -> list[dict[str, str]]:
    if path not in there:
        raise BenchmarkError(f"there is no {path} in {folder}; each fold has a train and a test file")
    reader = csv.DictReader(io.StringIO(storage.read_bytes(storage.join(folder, path), cfg).decode("utf-8-sig")))
    if lacking := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
        raise BenchmarkError(f"{path} has no column {lacking[0]!r}; it has {', '.join(reader.fieldnames or ())}")
    return list(reader)


def barcodes_of(tiles: str) -> list[str]:
    """Of the spots whose tiles a file holds, in its order."""
    try:
        with needed("h5py").File(tiles, "r") as file:
            barcodes, count = texts(file["barcode"]), len(file["img"])
    except (OSError, KeyError) as error:
        raise BenchmarkError(f"{tiles} holds no tiles of HEST ({error}); fetch it again") from None
    if len(barcodes) != count:
        raise BenchmarkError(f"{tiles} holds {count} tiles and {len(barcodes)} barcodes; fetch it again")
    return barcodes


def names_of(expression: str, axis: str) -> list[str]:
    """The index of `obs` (spots) or `var` (genes) of an AnnData file."""
    try:
        with needed("h5py").File(expression, "r") as file:
            index = file[axis].attrs.get("_index", "_index")
            return texts(file[axis][index])
    except (OSError, KeyError, AttributeError) as error:
        raise BenchmarkError(f"{expression} is no AnnData file ({error}); fetch it again") from None


def texts(column: Any) -> list[str]:
    return [v.decode() if isinstance(v, bytes) else str(v) for v in np.asarray(column).reshape(-1)]


def counts_of(expression: str, barcodes: Sequence[str], genes: Sequence[str]) -> np.ndarray:
    """fp32 [N, G]: the counts of some spots and genes of an AnnData file.

    Raises:
        BenchmarkError: a spot or gene that it has not, or counts in a form that is not known.
    """
    rows, columns = ({name: i for i, name in enumerate(names_of(expression, axis))} for axis in ("obs", "var"))
    for what, asked, there in (("spot", barcodes, rows), ("gene", genes, columns)):
        if lost := [name for name in asked if name not in there]:
            raise BenchmarkError(f"{expression} has no {what} {lost[0]}; fetch it again")
    with needed("h5py").File(expression, "r") as file:
        counts = matrix(file["X"], expression)
    picked = counts[[rows[name] for name in barcodes]][:, [columns[name] for name in genes]]
    return np.asarray(picked.todense() if hasattr(picked, "todense") else picked, np.float32)


def matrix(stored: Any, path: str) -> Any:
    """The X of an AnnData file: an array, or a sparse matrix by rows."""
    from scipy import sparse

    if hasattr(stored, "shape"):
        return stored[:]
    kind = stored.attrs.get("encoding-type", stored.attrs.get("h5sparse_format"))
    shape = stored.attrs.get("shape", stored.attrs.get("h5sparse_shape"))
    makers = {"csr_matrix": sparse.csr_matrix, "csc_matrix": sparse.csc_matrix}
    makers |= {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix}
    if kind not in makers or shape is None:
        raise BenchmarkError(f"X of {path} is stored as {kind!r}, which this reader does not know")
    parts = tuple(stored[name][:] for name in ("data", "indices", "indptr"))
    return makers[kind](parts, shape=tuple(shape)).tocsr()
