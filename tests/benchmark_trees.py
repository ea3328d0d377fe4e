"""Small trees in the true layouts of public benchmarks, of real CRC tiles that ship and of drawn tissue."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scipy.sparse import csr_matrix

from pathryoshka.benchmarks.plism import SCANNERS, STAINS
from pathryoshka.tiles.phantom import LABELS, phantom_tile

CRC = Path(__file__).parent / "data" / "crc7k"


def pixels(seed: int, size: int = 64) -> np.ndarray:
    return phantom_tile(LABELS[seed % len(LABELS)], seed, 0, seed, 0, size)


def save(path: Path, seed: int, size: int = 64) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, size)).save(path)


def table(path: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def bach(root: Path) -> dict[str, int]:
    for c, label in enumerate(("Benign", "InSitu", "Invasive", "Normal")):
        for i in range(3):
            save(root / f"ICIAR2018_BACH_Challenge/Photos/{label}/{label[0].lower()}{i:03d}.tif", 10 * c + i, 600)
    save(root / "ICIAR2018_BACH_Challenge/WSI/thumbnails/A01.png", 99)  # not one of the photos
    return {"all": 12}


def bracs(root: Path) -> dict[str, int]:
    counts = {"train": 2, "val": 1, "test": 1}
    for s, (split, n) in enumerate(counts.items()):
        for c, label in enumerate(("N", "PB", "UDH", "FEA", "ADH", "DCIS", "IC")):
            for i in range(n):
                slide = f"BRACS_{100 * s + 10 * c + i}"
                save(root / f"BRACS_RoI/latest_version/{split}/{c}_{label}/{slide}_{label}_1.png", 50 * s + 7 * c + i)
    return {split: 7 * n for split, n in counts.items()}


def breakhis(root: Path) -> dict[str, int]:
    names = {"benign": ("A", "F", "PT", "TA"), "malignant": ("DC", "LC", "MC", "PC")}
    words = {"A": "adenosis", "F": "fibroadenoma", "PT": "phyllodes_tumor", "TA": "tubular_adenoma",
             "DC": "ductal_carcinoma", "LC": "lobular_carcinoma", "MC": "mucinous_carcinoma",
             "PC": "papillary_carcinoma"}  # fmt: skip
    base = root / "BreaKHis_v1/histology_slides/breast"
    for kind, types in names.items():
        for c, name in enumerate(types):
            for p in range(2):
                patient = f"{22549 + 100 * (kind == 'malignant') + 10 * c + p}{'AB' if p else ''}"
                slide = f"SOB_{kind[0].upper()}_{name}_14-{patient}"
                for zoom in ("40X", "100X"):
                    stem = f"SOB_{kind[0].upper()}_{name}-14-{patient}-{zoom[:-1]}-001"
                    save(base / kind / "SOB" / words[name] / slide / zoom / f"{stem}.png", 5 * c + p)
    return {"all": 16}


def crc(root: Path) -> dict[str, int]:
    """Real tiles of seven classes; the two that do not ship are drawn."""
    sheet = list(csv.DictReader((CRC / "tiles.csv").open()))
    n = {"NCT-CRC-HE-100K": 0, "CRC-VAL-HE-7K": 0}
    for i, row in enumerate(sheet):
        part = "CRC-VAL-HE-7K" if i % 3 == 0 else "NCT-CRC-HE-100K"
        to = root / part / row["label"] / f"{row['label']}-{i:04d}.tif"
        to.parent.mkdir(parents=True, exist_ok=True)
        Image.open(CRC / row["tile"]).convert("RGB").save(to)
        n[part] += 1
    for part in n:
        for label in ("BACK", "DEB"):
            save(root / part / label / f"{label}-0001.tif", n[part], 224)
            n[part] += 1
    return {"train": n["NCT-CRC-HE-100K"], "test": n["CRC-VAL-HE-7K"]}


def gleason(root: Path) -> dict[str, int]:
    arrays = {"ZT111": "train_validation_patches_750", "ZT204": "train_validation_patches_750",
              "ZT76": "train_validation_patches_750", "ZT80": "test_patches_750/patho_1"}  # fmt: skip
    for a, (array, folder) in enumerate(arrays.items()):
        for label in range(4):
            stem = f"{array}_39_A_{label}_{a}"
            save(root / folder / stem / f"{stem}_patch_11_class_{label}.jpg", 4 * a + label)
    save(root / "test_patches_750/patho_2/ZT80_39_A_0_0/ZT80_39_A_0_0_patch_11_class_0.jpg", 1)  # the other pathologist
    return {"train": 8, "val": 4, "test": 4}


def mhist(root: Path) -> dict[str, int]:
    rows = []
    for i in range(12):
        save(root / "images" / f"MHIST_{i:03d}.png", i)
        rows.append((f"MHIST_{i:03d}.png", ("HP", "SSA")[i % 2], i % 8, "train" if i < 8 else "test"))
    head = ("Image Name", "Majority Vote Label", "Number of Annotators who Selected SSA (Out of 7)", "Partition")
    table(root / "annotations.csv", head, rows)
    return {"train": 8, "test": 4}


def patch_camelyon(root: Path, meta: bool = True) -> dict[str, int]:
    root.mkdir(parents=True, exist_ok=True)
    counts = {"train": 8, "val": 4, "test": 4}
    for s, (split, n) in enumerate(counts.items()):
        part = f"camelyonpatch_level_2_split_{split.replace('val', 'valid')}"
        x = np.stack([pixels(100 * s + i, 96) for i in range(n)])
        with h5py.File(root / f"{part}_x.h5", "w") as file:
            file.create_dataset("x", data=x, chunks=(2, 96, 96, 3), compression="gzip")
        with h5py.File(root / f"{part}_y.h5", "w") as file:
            file.create_dataset("y", data=(np.arange(n) % 2).reshape(n, 1, 1, 1))
        if meta:
            wsi = [(i, f"camelyon16_{split}_{i // 2:03d}") for i in range(n)]
            table(root / f"{part}_meta.csv", ("", "wsi"), wsi)
    return counts


def unitopatho(root: Path) -> dict[str, int]:
    names = ("HP", "NORM", "TA.HG", "TA.LG", "TVA.HG", "TVA.LG")
    for split, first in (("train", 0), ("test", 12)):
        rows = []
        for i in range(first, first + 12):
            name = f"149-B1-{i}.ndpi_ROI__mpp0.44_reg{i:03d}.png"
            save(root / "800" / names[i % 6] / name, i)
            rows.append((name, f"149-B1-{i // 2}.ndpi", i % 6, names[i % 6]))
        table(root / "800" / f"{split}.csv", ("image_id", "wsi", "top_label", "top_label_name"), rows)
    return {"train": 12, "test": 12}


def camelyon17_wilds(root: Path) -> dict[str, int]:
    rows = []
    for i in range(20):
        centre = i % 5
        patient, node = f"{20 * centre + i // 5:03d}", i % 3
        name = f"patches/patient_{patient}_node_{node}/patch_patient_{patient}_node_{node}_x_{96 * i}_y_96.png"
        save(root / name, i, 96)
        rows.append((i, patient, node, 96 * i, 96, (i // 5) % 2, 10 * centre + node, centre, 0))
    head = ("", "patient", "node", "x_coord", "y_coord", "tumor", "slide", "center", "split")
    table(root / "metadata.csv", head, rows)
    return {"train": 12, "val": 4, "test": 4}


def tcga_uniform(root: Path) -> None:
    for c, cancer in enumerate(("Bladder_Urothelial_Carcinoma", "Thymoma")):
        for p in range(3):
            slide = f"TCGA-{p}B-A{c}6J-01Z-00-DX1.ABC"
            for level in (0, 1):
                save(root / cancer / str(level) / slide / f"{slide}_1_2.jpg", 10 * c + p)


def pathorob(root: Path, num: int = 8) -> None:
    """Slides of two classes in two hospitals, in parts that share slides and ids of tiles; OOD."""
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for part, start, length in (("a", 0, num), ("b", num // 2, num), ("OOD", 0, 4)):
        for i in range(start, start + length):
            sink = io.BytesIO()
            hospital = i // 4 % 2
            dark = 20 * (i % 2) + 20 * hospital  # what an encoder can see of both
            Image.fromarray(pixels(i) // 2 + dark).save(sink, "PNG")
            rows.append({"image": {"bytes": sink.getvalue(), "path": None}, "patch_id": f"p{i % 2}",
                         "slide_id": f"s{i // 2}", "biological_class": ("normal", "tumor")[i % 2],
                         "medical_center": ("RUMC", "UMCU")[hospital], "subset": part})  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), root / "train-00000-of-00001.parquet", row_group_size=3)


GENES = ("ACTB", "ESR1", "MKI67")


def hest(root: Path) -> None:
    """Two tasks: one whose counts are sparse, one of dense ones; spots without a tile, genes that nobody asks for."""
    for task, names in (("IDC", ("NCBI783", "NCBI785", "TENX95", "TENX99")), ("PRAD", ("MEND139", "MEND140"))):
        for s, sample in enumerate(names):
            hest_sample(root / task, sample, 8, 100 * s + (task == "PRAD"), sparse=task == "IDC")
        (root / task / "var_50genes.json").write_text(json.dumps({"genes": list(GENES)}))
        halves = (names[::2], names[1::2])
        for k in (0, 1):
            for side, chosen in (("train", halves[1 - k]), ("test", halves[k])):
                rows = [(name, f"patches/{name}.h5", f"adata/{name}.h5ad") for name in chosen]
                table(root / task / "splits" / f"{side}_{k}.csv", ("sample_id", "patches_path", "expr_path"), rows)


def hest_sample(folder: Path, sample: str, num: int, seed: int, sparse: bool) -> None:
    """`num` tiles whose counts follow how dark, red and blue they are, in another order than the spots."""
    tiles = np.stack([pixels(seed + i, 224) for i in range(num)])
    barcodes = [f"{i:03d}x{seed}" for i in range(num)]
    (folder / "patches").mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "patches" / f"{sample}.h5", "w") as file:
        file["img"] = tiles
        file["barcode"] = np.array([[name.encode()] for name in barcodes], "S16")
        file["coords"] = np.arange(2 * num).reshape(num, 2)
    spots, genes = [*barcodes[::-1], "without-a-tile"], ("GAPDH", *GENES[::-1])
    counts = np.zeros((num + 1, 4), np.float32)
    counts[:-1, 1:] = np.round((255 - tiles[::-1].reshape(num, -1, 3).mean(1)) / 4)
    (folder / "adata").mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "adata" / f"{sample}.h5ad", "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for axis, names in (("obs", spots), ("var", genes)):
            group = file.create_group(axis)
            group.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
            group.attrs["column-order"] = np.array([], dtype=h5py.string_dtype())
            group.create_dataset("_index", data=list(names), dtype=h5py.string_dtype())
        if not sparse:
            file["X"] = counts
            file["X"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            return
        rows = csr_matrix(counts)
        x = file.create_group("X")
        x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": counts.shape})
        for name in ("data", "indices", "indptr"):
            x[name] = getattr(rows, name)


def plism(
    root: Path, stains: Sequence[str] = STAINS, scanners: Sequence[str] = SCANNERS, side: int = 2, size: int = 32
) -> dict[str, int]:
    """side x side places 16 tiles apart, so each a block of its own, in the colours of each stain and scanner."""
    root.mkdir(parents=True, exist_ok=True)
    for a, stain in enumerate(stains):
        for b, scanner in enumerate(scanners):
            cast = 1 - 0.05 * np.array([a % 4, a % 3, b % 3]) - 0.02 * (b % 2)
            with h5py.File(root / f"{stain}_{scanner}_to_GMH_S60.tif.h5", "w") as file:
                for place in range(side * side):
                    name = f"tile_16_{16 * (place // side)}_{16 * (place % side)}"
                    file[name] = (pixels(place, size) * cast).astype(np.uint8)
    return {"all": len(stains) * len(scanners) * side * side}
