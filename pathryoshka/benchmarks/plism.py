"""PLISM as its hub snapshot lies on disk (owkin/plism-dataset): one HDF5 file a slide, one data set a tile.

    <stain>_<scanner>_to_GMH_S60.tif.h5      tile_<level>_<x>_<y>: uint8 [224, 224, 3]

91 slides, 13 stains by 7 scanners, all registered to one of them: a tile of the same name shows the same place of the
tissue on every slide. Names as the benchmark's own code reads them (github.com/owkin/plism-benchmark). Its twin of
Parquet files (owkin/plism-dataset-tiles) holds the same tiles, but no reader can pick single ones of it quickly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from pathryoshka import config, storage
from pathryoshka.benchmarks.layouts import BenchmarkError, Sample, needed, png_of

STAINS = ("GIV", "GIVH", "GM", "GMH", "GV", "GVH", "HR", "HRH", "KR", "KRH", "LM", "LMH", "MY")
SCANNERS = ("AT2", "GT450", "P", "S210", "S360", "S60", "SQ")
FILE = re.compile(rf"(?:.+/)?(?P<stain>{'|'.join(STAINS)})_(?P<scanner>{'|'.join(SCANNERS)})_to_GMH_S60\.tif\.h5")
TILE = re.compile(r"tile_\d+_(?P<x>\d+)_(?P<y>\d+)")
BLOCK = 16
"""Side, in tiles, of the squares of tissue that are drawn together: neighbours on a slide are no independent tiles, and
1.8 mm is about a core of the array."""


@dataclass(frozen=True)
class ByPlism:
    """A local folder only. The label is the stain, the site the scanner, the unit a square of the tissue."""

    def samples(self, root: str, cfg: config.Storage) -> Iterator[Sample]:
        root = storage.absolute(root)
        found = False
        for path in sorted(storage.list_files(root, cfg)):
            match = FILE.fullmatch(path)
            if not match:
                continue
            found = True
            file, slide = storage.join(root, path), f"{match['stain']}_{match['scanner']}"
            for name in tiles_in(file):
                at = TILE.fullmatch(name)
                if not at:
                    raise BenchmarkError(f"{path} holds {name}, which is no tile_<level>_<x>_<y>; fetch it again")
                block = f"block_{int(at['x']) // BLOCK}_{int(at['y']) // BLOCK}"
                yield Sample(f"{slide}/{name}", partial(png_of, file, None, name), match["stain"], None, block, slide,
                             match["scanner"])  # fmt: skip
        if not found:
            raise BenchmarkError(f"there is no <stain>_<scanner>_to_GMH_S60.tif.h5 in {root}; fetch the snapshot there")


def tiles_in(file: str) -> list[str]:
    try:
        with needed("h5py").File(file, "r") as slide:
            return sorted(slide.keys())
    except OSError as error:
        raise BenchmarkError(f"{file} is no HDF5 file ({error}); fetch it again") from None
