"""How public data sets lie on disk: by path, by table, by HDF5, by Parquet. A reader yields samples and holds no image.

What a path or a row does not say stays unknown; nothing is guessed.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
from PIL import Image

from pathryoshka import config, storage

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


class BenchmarkError(ValueError):
    """A data set that is not there, or not the one its row describes; the sentence says what to do."""


@dataclass(frozen=True)
class Sample:
    """One image of a benchmark. `path`: unique inside it; `read` gives the encoded image.

    `patient`: the independent unit, the most that is known: patient, else slide, else the image itself.
    """

    path: str
    read: Callable[[], bytes]
    label: str
    split: str | None
    patient: str
    slide: str
    site: str = "unknown"


@dataclass(frozen=True)
class ByPath:
    """Images whose path below the root says everything.

    Attributes:
        pattern: regular expression with the named groups `label` and, where paths say so, `split`, `patient`, `slide`.
        labels, splits: what these groups say, in our words; others are left as they are.
    """

    pattern: str
    labels: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)

    def samples(self, root: str, cfg: config.Storage) -> Iterator[Sample]:
        form = re.compile(self.pattern)
        for path in sorted(storage.list_files(root, cfg)):
            match = form.fullmatch(path) if path.lower().endswith(SUFFIXES) else None
            if not match:
                continue
            found = {name: value for name, value in match.groupdict().items() if value is not None}
            slide = found.get("slide", found.get("patient", path))
            split = found.get("split")
            yield Sample(
                path=path,
                read=partial(storage.read_bytes, storage.join(root, path), cfg),
                label=self.labels.get(found["label"], found["label"]),
                split=self.splits.get(split, split) if split else None,
                patient=found.get("patient", slide),
                slide=slide,
            )


@dataclass(frozen=True)
class ByTable:
    """Images listed in CSV files.

    Attributes:
        tables: path of each CSV -> the split of its rows, None where a column says it.
        image: how a row names its image below the root, e.g. `images/{Image Name}`; `**/{name}` finds it in any folder.
        columns: `label` and, where there are such columns, `split`, `patient`, `slide`, `site`: their names.
        labels, splits: what the cells say, in our words.
    """

    tables: Mapping[str, str | None]
    image: str
    columns: Mapping[str, str]
    labels: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)

    def samples(self, root: str, cfg: config.Storage) -> Iterator[Sample]:
        by_name: dict[str, str] = {}
        if self.image.startswith("**/"):
            by_name = {path.rsplit("/", 1)[-1]: path for path in storage.list_files(root, cfg)}
        for table, split in self.tables.items():
            for row in self.rows(root, table, cfg):
                named = self.image.removeprefix("**/").format(**row)
                path = by_name.get(named, named)
                found = {key: row[column] for key, column in self.columns.items() if row.get(column)}
                slide = found.get("slide", found.get("patient", path))
                said = found.get("split", split)
                yield Sample(
                    path=path,
                    read=partial(storage.read_bytes, storage.join(root, path), cfg),
                    label=self.labels.get(found["label"], found["label"]),
                    split=self.splits.get(said, said) if said else None,
                    patient=found.get("patient", slide),
                    slide=slide,
                    site=found.get("site", "unknown"),
                )

    def rows(self, root: str, table: str, cfg: config.Storage) -> Iterator[dict[str, str]]:
        where = storage.join(root, table)
        if not storage.exists(where, cfg):
            raise BenchmarkError(f"there is no {table} below {root}; the layout is in `pathryoshka datasets show`")
        reader = csv.DictReader(io.StringIO(storage.read_bytes(where, cfg).decode("utf-8-sig"), newline=""))
        needed = {self.columns["label"], *re.findall(r"\{([^}]+)\}", self.image)}
        lacking = sorted(needed - set(reader.fieldnames or ()))
        if lacking:
            raise BenchmarkError(f"{table} has no column {lacking[0]!r}; it has {', '.join(reader.fieldnames or ())}")
        yield from reader


@dataclass(frozen=True)
class ByHdf5:
    """Pairs of HDF5 files, pixels `x` [N, H, W, 3] and labels `y` [N, ...]: PatchCamelyon. A local folder only.

    Attributes:
        files: split -> (file of pixels, file of labels). labels: number -> class.
        places: split -> CSV of the same order with the column `wsi`, where it is there: whose tile each is.
    """

    files: Mapping[str, tuple[str, str]]
    labels: Mapping[int, str]
    places: Mapping[str, str] = field(default_factory=dict)

    def samples(self, root: str, cfg: config.Storage) -> Iterator[Sample]:
        h5py = needed("h5py")
        folder = storage.absolute(root)
        for split, (pixels, labels) in self.files.items():
            for name in (pixels, labels):
                if not storage.exists(storage.join(folder, name), cfg):
                    raise BenchmarkError(f"there is no {name} in {root}; unpack the six files there")
            try:
                with h5py.File(f"{folder}/{labels}", "r") as y, h5py.File(f"{folder}/{pixels}", "r") as x:
                    numbers, count = np.asarray(y["y"]).reshape(len(y["y"]), -1)[:, 0], len(x["x"])
            except (OSError, KeyError) as error:
                raise BenchmarkError(f"{pixels} or {labels} is no such HDF5 file ({error}); fetch it again") from None
            if count != len(numbers):
                raise BenchmarkError(
                    f"{pixels} holds {count} images and {labels} {len(numbers)} labels; fetch both again"
                )
            slides = self.slides(root, split, count, cfg)
            for i, number in enumerate(numbers):
                slide = slides[i] if slides else f"{split}/{i}"
                read = partial(png_of, f"{folder}/{pixels}", i)
                yield Sample(f"{split}/{i}.png", read, self.labels[int(number)], split, slide, slide)

    def slides(self, root: str, split: str, count: int, cfg: config.Storage) -> list[str] | None:
        where = storage.join(root, self.places[split]) if split in self.places else ""
        if not where or not storage.exists(where, cfg):
            return None
        rows = list(csv.DictReader(io.StringIO(storage.read_bytes(where, cfg).decode("utf-8-sig"), newline="")))
        if len(rows) != count or "wsi" not in rows[0]:
            raise BenchmarkError(
                f"{self.places[split]} does not say the slide of each of {count} images; fetch it again"
            )
        return [row["wsi"] for row in rows]


def png_of(file: str, index: int | None, name: str = "x") -> bytes:
    """One image of the array `name` of an HDF5 file; all of it where there is no index."""
    h5py = needed("h5py")
    with h5py.File(file, "r") as x:
        pixels = np.asarray(x[name][... if index is None else index])
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


@dataclass(frozen=True)
class ByParquet:
    """Parquet files of a hub snapshot with the image as a struct of bytes (Hugging Face's form).

    Attributes:
        columns: `image`, `label`, `path`, and, where there are such columns, `split`, `patient`, `slide`, `site`.
    """

    columns: Mapping[str, str]
    folder: str = ""

    def samples(self, root: str, cfg: config.Storage) -> Iterator[Sample]:
        import pyarrow.parquet as pq

        base = storage.join(root, self.folder) if self.folder else root
        files = [path for path in sorted(storage.list_files(base, cfg)) if path.endswith(".parquet")]
        if not files:
            raise BenchmarkError(f"there is no Parquet file below {base}; download the snapshot there")
        image = self.columns["image"]
        for file in files:
            filesystem, path = storage.filesystem(storage.join(base, file), cfg)
            with filesystem.open_input_file(path) as handle:
                parquet = pq.ParquetFile(handle)
                names = set(parquet.schema_arrow.names)
                lacking = sorted({image, self.columns["label"], self.columns["path"]} - names)
                if lacking:
                    raise BenchmarkError(f"{file} has no column {lacking[0]!r}; it has {', '.join(sorted(names))}")
                for group in range(parquet.num_row_groups):
                    wanted = [c for c in self.columns.values() if c in names]
                    for row in parquet.read_row_group(group, columns=wanted).to_pylist():
                        yield self.sample(row)

    def sample(self, row: dict[str, object]) -> Sample:
        found = {key: str(row[column]) for key, column in self.columns.items() if key != "image" and row.get(column)}
        image = row[self.columns["image"]]
        data: bytes = image["bytes"] if isinstance(image, Mapping) else image  # type: ignore[assignment]
        slide = found.get("slide", found["path"])
        return Sample(
            path="/".join(found[key] for key in ("split", "slide", "path") if key in found),  # ids repeat between them
            read=lambda: data,
            label=found["label"],
            split=found.get("split"),
            patient=found.get("patient", slide),
            slide=slide,
            site=found.get("site", "unknown"),
        )


class Layout(Protocol):
    """A way to lie on disk."""

    def samples(self, root: str, cfg: config.Storage) -> Iterator[Sample]: ...


def needed(module: str):  # type: ignore[no-untyped-def]
    """A library of an extra, or a sentence that says which."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise BenchmarkError(f"this needs {module}: pip install 'pathryoshka[benchmarks]'") from None
