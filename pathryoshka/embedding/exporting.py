"""A finished table as files that other tools read, one a slide: HDF5 in the layout of TRIDENT, AnnData in HDF5 or Zarr.

Written from the table, so they can be made again at any time; a slide is in memory at a time.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pathryoshka import config, storage
from pathryoshka.embedding.recipe import EmbedRefused, Recipe
from pathryoshka.embedding.rows import VECTOR
from pathryoshka.embedding.state import read_manifest
from pathryoshka.embedding.table import iter_slides
from pathryoshka.features.table import as_matrix
from pathryoshka.tiles.cutting import safe

if TYPE_CHECKING:
    import anndata

UM_AT_1X = 10.0
"""Micrometres a pixel at magnification 1, as TRIDENT reckons: 0.25 is 40x."""


def export_slides(to: str, form: str, cfg: config.Storage) -> str:
    """Writes `<to>/<form>/<slide>.h5` (trident), `.h5ad` (anndata) or the folder `.zarr` (zarr) of every slide; what
    was done, in words.

    Raises:
        EmbedRefused: no table, tiles that lie on no slide, or the package that writes such files is not installed.
    """
    write, suffix, module = FORMS[form]
    try:
        __import__(module)
    except ImportError:
        raise EmbedRefused(
            f"{form} is written with {module}, which is not installed; pip install 'pathryoshka[embed]'"
        ) from None
    manifest, count = read_manifest(to, cfg), 0
    with tempfile.TemporaryDirectory(prefix="pathryoshka-embed-") as folder:
        for slide_id, table in iter_slides(to, manifest, cfg):
            if table["x"].null_count or table["side"].null_count:
                raise EmbedRefused(
                    f"{form} wants to know where tiles lie on their slide, which is not known of {slide_id}; embed "
                    "slides, or tiles that `pathryoshka tiles cut` made"
                )
            made = Path(folder, f"{safe(slide_id)}{suffix}")
            write(made, slide_id, table, manifest.recipe)
            place = storage.join(to, form, made.name)
            if made.is_dir():
                storage.delete(place, cfg)  # chunks of a larger one would stay
                storage.upload_folder(made, place, cfg)
                shutil.rmtree(made)
            else:
                storage.write_bytes(place, made.read_bytes(), cfg)
                made.unlink()
            count += 1
    return f"{storage.join(to, form)}: {count} slides"


def write_trident(file: Path, slide_id: str, table: pa.Table, recipe: Recipe) -> None:
    """`features` [N, D] and `coords` int64 [N, 2], the upper left corners in pixels of level 0, with TRIDENT's
    attributes; tiles of several resolutions have those of the first.

    `savetodir` is empty, for paths of a machine do not belong into results.
    """
    import h5py

    rows = np.lexsort((table["x"].to_numpy(), table["y"].to_numpy()))
    coords = np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1)[rows].astype(np.int64)
    vectors = as_matrix(table[VECTOR])[rows]
    side, mpp = float(table["side"][0].as_py()), float(table["mpp"][0].as_py())
    size, stride = recipe.tiles["size"], recipe.tiles["stride"]
    attributes = {
        "patch_size": size,
        "patch_size_level0": round(side),
        "level0_magnification": round(UM_AT_1X * side / (mpp * size), 2),
        "target_magnification": round(UM_AT_1X / mpp, 2),
        "overlap": size - stride,
        "name": slide_id,
        "savetodir": "",
    }
    with h5py.File(file, "w") as out:
        features = out.create_dataset("features", data=vectors, chunks=True, maxshape=(None, vectors.shape[1]))
        features.attrs.update({"name": slide_id, "savetodir": "", "model_id": recipe.model_id})
        out.create_dataset("coords", data=coords, chunks=True, maxshape=(None, 2)).attrs.update(attributes)


def as_anndata(slide_id: str, table: pa.Table, recipe: Recipe) -> anndata.AnnData:
    """`X` [N, D]; `obs` by tile id; `obsm["spatial"]` the centres of tiles in pixels of level 0, as spatial tools have
    spots; `uns` the model and the slide."""
    import anndata
    import pandas as pd

    strings, numbers = ("tile_id", "slide_id", "patient_id", "site", "label"), ("x", "y", "side", "mpp")
    # as objects: anndata cannot write the strings that pandas 3 would make of them
    texts = {name: pd.Series([value or "" for value in table[name].to_pylist()], dtype=object) for name in strings}
    obs = pd.DataFrame(texts | {name: table[name].to_numpy() for name in numbers})
    obs.index = pd.Index(table["tile_id"].to_pylist(), dtype=object)
    centres = obs[["x", "y"]].to_numpy(np.float64) + obs[["side"]].to_numpy(np.float64) / 2
    of: dict[str, Any] = {"model_id": recipe.model_id, "slide_id": slide_id, "width": recipe.width}
    vectors = as_matrix(table[VECTOR]).astype(np.float32)
    var = pd.DataFrame(index=pd.Index([f"z{i}" for i in range(recipe.width)], dtype=object))
    return anndata.AnnData(vectors, obs=obs, var=var, obsm={"spatial": centres}, uns={"pathryoshka": of})


def write_anndata(file: Path, slide_id: str, table: pa.Table, recipe: Recipe) -> None:
    as_anndata(slide_id, table, recipe).write_h5ad(file)


def write_zarr(folder: Path, slide_id: str, table: pa.Table, recipe: Recipe) -> None:
    as_anndata(slide_id, table, recipe).write_zarr(folder)


Write = Callable[[Path, str, pa.Table, Recipe], None]
FORMS: dict[str, tuple[Write, str, str]] = {
    "trident": (write_trident, ".h5", "h5py"),
    "anndata": (write_anndata, ".h5ad", "anndata"),
    "zarr": (write_zarr, ".zarr", "zarr"),
}
