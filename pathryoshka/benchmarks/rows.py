"""The benchmarks: ten for classification, and four beside them.

Which ten the paper (arXiv 2511.23204) used is not known here: its list could not be read. These are our choice: public,
usual, with official splits where there are any. Counts, sizes and resolutions as kaiko eva 0.4 and THUNDER 0.2 state
them; what neither states is None.
"""

from __future__ import annotations

import difflib

from pathryoshka.benchmarks.hest import ByHest
from pathryoshka.benchmarks.layouts import BenchmarkError, ByHdf5, ByParquet, ByPath, ByTable
from pathryoshka.benchmarks.plism import STAINS, ByPlism
from pathryoshka.benchmarks.row import Benchmark

BALANCED = "balanced accuracy"
ZENODO = "https://zenodo.org/records"
PCAM_PARTS = {s: f"camelyonpatch_level_2_split_{s.replace('val', 'valid')}" for s in ("train", "val", "test")}
PCAM_FILES = {split: (f"{part}_x.h5", f"{part}_y.h5") for split, part in PCAM_PARTS.items()}
PCAM = ByHdf5(PCAM_FILES, {0: "normal", 1: "tumor"}, {split: f"{part}_meta.csv" for split, part in PCAM_PARTS.items()})
PCAM_URLS = tuple(f"{ZENODO}/2546921/files/{name}.gz?download=1" for files in PCAM_FILES.values() for name in files)

ROWS: tuple[Benchmark, ...] = (
    Benchmark(
        "bach", "BACH (ICIAR 2018), breast", "classification", ("Benign", "InSitu", "Invasive", "Normal"),
        {"all": 400}, "image", "2048 x 1536", 0.42, BALANCED, "CC-BY-NC-ND-4.0", f"{ZENODO}/3632035",
        "Aresta et al. 2019, Medical Image Analysis 56",
        "unpack ICIAR2018_BACH_Challenge.zip: ICIAR2018_BACH_Challenge/Photos/<class>/*.tif",
        ByPath(r"ICIAR2018_BACH_Challenge/Photos/(?P<label>Benign|InSitu|Invasive|Normal)/[^/]+\.tif"),
        urls=(f"{ZENODO}/3632035/files/ICIAR2018_BACH_Challenge.zip?download=1",),
        remarks="no split of its own: cross-validated by image, as its patients are not published for all of them",
    ),
    Benchmark(
        "bracs", "BRACS regions, breast", "classification", ("N", "PB", "UDH", "FEA", "ADH", "DCIS", "IC"),
        {"train": 3657, "val": 312, "test": 570}, "slide", "varies", 0.25, BALANCED, "CC-BY-NC-4.0",
        "https://www.bracs.icar.cnr.it", "Brancati et al. 2022, Database",
        "by FTP after registering: BRACS_RoI/latest_version/{train,val,test}/<k_class>/BRACS_<slide>_<class>_<n>.png",
        ByPath(r"BRACS_RoI/latest_version/(?P<split>train|val|test)/\d_(?P<label>[A-Z]+)/"
               r"(?P<slide>BRACS_\d+)_[^/]+\.png"),
        form=True,
    ),
    Benchmark(
        "breakhis", "BreaKHis at 40x, breast", "classification", ("A", "F", "PT", "TA", "DC", "LC", "MC", "PC"),
        {"all": 1995}, "patient", "700 x 460", None, BALANCED, "CC-BY-4.0",
        "https://web.inf.ufpr.br/vri/databases/breast-cancer-histopathological-database-breakhis/",
        "Spanhol et al. 2016, IEEE TBME 63",
        "unpack the archive: BreaKHis_v1/histology_slides/breast/.../40X/SOB_<b|m>_<type>-<year>-<patient>-40-<n>.png",
        ByPath(r"BreaKHis_v1/histology_slides/breast/.+/40X/SOB_[BM]_(?P<label>[A-Z]+)-\d+-(?P<patient>[^-]+)-40-\d+\.png"),
        urls=("http://www.inf.ufpr.br/vri/databases/BreaKHis_v1.tar.gz",),
        remarks="cross-validated by patient; eva 0.4 scores four of the eight types on a split by a list of patients",
    ),
    Benchmark(
        "crc", "NCT-CRC-HE-100K and CRC-VAL-HE-7K, colorectal", "classification",
        ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM"), {"train": 100_000, "test": 7180}, "tile",
        "224 x 224", 0.5, BALANCED, "CC-BY-4.0", f"{ZENODO}/1214456", "Kather et al. 2019, PLOS Medicine 16",
        "unpack NCT-CRC-HE-100K.zip and CRC-VAL-HE-7K.zip side by side: <either>/<class>/*.tif",
        ByPath(r"(?P<split>NCT-CRC-HE-100K|CRC-VAL-HE-7K)/(?P<label>[A-Z]+)/[^/]+\.(?:tif|png|jpg)",
               splits={"NCT-CRC-HE-100K": "train", "CRC-VAL-HE-7K": "test"}),
        urls=tuple(f"{ZENODO}/1214456/files/{n}.zip?download=1" for n in ("NCT-CRC-HE-100K", "CRC-VAL-HE-7K")),
        remarks="the two parts are of different patients, but no file says whose a tile is: intervals are over tiles",
    ),
    Benchmark(
        "gleason", "Gleason patterns (Arvaniti), prostate", "classification",
        ("benign", "gleason_3", "gleason_4", "gleason_5"), {"train": 15303, "val": 2482, "test": 4967}, "core",
        "750 x 750", 0.23, BALANCED, "CC0-1.0", "https://doi.org/10.7910/DVN/OCYCMP",
        "Arvaniti et al. 2018, Scientific Reports 8",
        "Harvard Dataverse, then create_patches.py of github.com/eiriniar/gleason_CNN: "
        "train_validation_patches_750/ and test_patches_750/patho_1/",
        ByPath(r"(?:train_validation_patches_750|test_patches_750/patho_1)/(?:.+/)?"
               r"(?P<patient>(?P<split>ZT\d+)_[^_]+_[^_]+_[^_]+_[^_]+)_[^/]*_(?P<label>[0-3])\.jpg",
               labels={str(i): c for i, c in enumerate(("benign", "gleason_3", "gleason_4", "gleason_5"))},
               splits={"ZT111": "train", "ZT199": "train", "ZT204": "train", "ZT76": "val", "ZT80": "test"}),
        form=True,
        remarks="labels of the test part are pathologist 1's; eva warns that scores on it are unstable",
    ),
    Benchmark(
        "mhist", "MHIST, colorectal polyps", "classification", ("HP", "SSA"), {"train": 2175, "test": 977}, "image",
        "224 x 224", 2.0, BALANCED, "research use agreement", "https://bmirds.github.io/MHIST/",
        "Wei et al. 2021, AIME", "by form: annotations.csv and images/",
        ByTable({"annotations.csv": None}, "images/{Image Name}",
                {"label": "Majority Vote Label", "split": "Partition"}),
        form=True,
    ),
    Benchmark(
        "patch_camelyon", "PatchCamelyon, lymph nodes", "classification", ("normal", "tumor"),
        {"train": 262_144, "val": 32_768, "test": 32_768}, "slide", "96 x 96", 1.0, BALANCED, "CC0-1.0",
        f"{ZENODO}/2546921", "Veeling et al. 2018, MICCAI",
        "unpack the six .h5.gz (and the meta.csv, which say the slide of each tile) into one folder",
        PCAM, urls=PCAM_URLS, remarks="without the meta.csv each tile counts as its own unit",
    ),
    Benchmark(
        "unitopatho", "UniToPatho, colorectal polyps", "classification",
        ("HP", "NORM", "TA.HG", "TA.LG", "TVA.HG", "TVA.LG"), {"train": 6270, "test": 2399}, "slide", "1812 x 1812",
        0.4415, BALANCED, "CC-BY-4.0", "https://ieee-dataport.org/open-access/unitopatho",
        "Barbano et al. 2021, ICIP", "IEEE DataPort account: 800/{train,test}.csv and 800/<class>/*.png",
        ByTable({"800/train.csv": "train", "800/test.csv": "test"}, "**/{image_id}",
                {"label": "top_label", "slide": "wsi"},
                {str(i): c for i, c in enumerate(("HP", "NORM", "TA.HG", "TA.LG", "TVA.HG", "TVA.LG"))}),
        form=True, remarks="each slide is of another patient",
    ),
    Benchmark(
        "camelyon17_wilds", "Camelyon17-WILDS, lymph nodes, unseen hospitals", "classification", ("normal", "tumor"),
        {"val": 34_904, "test": 85_054}, "patient", "96 x 96", 1.0, BALANCED, "CC0-1.0",
        "https://wilds.stanford.edu/datasets/#camelyon17", "Koh et al. 2021, ICML",
        "the wilds package downloads it: metadata.csv and patches/patient_<p>_node_<n>/*.png",
        ByTable({"metadata.csv": None},
                "patches/patient_{patient}_node_{node}/patch_patient_{patient}_node_{node}_x_{x_coord}_y_{y_coord}.png",
                {"label": "tumor", "split": "center", "patient": "patient", "slide": "slide", "site": "center"},
                {"0": "normal", "1": "tumor"}, {"0": "train", "3": "train", "4": "train", "1": "val", "2": "test"}),
        remarks="split by hospital, as published; training tiles of validation patients (in-distribution) stay train",
    ),
    Benchmark(
        "tcga_uniform", "TCGA Uniform Tumor, 32 cancers", "classification", (), None, "patient", "256 x 256", 0.5,
        BALANCED, "CC-BY-NC-SA-4.0", f"{ZENODO}/5889558", "Komura et al. 2022, Cell Reports 38",
        "unpack all archives side by side: <cancer>/<resolution>/<slide>/*.jpg; resolution 0 is 0.5 mpp",
        ByPath(r"(?P<label>[^/]+)/0/(?P<slide>(?P<patient>TCGA-\w{2}-\w{4})[^/]*)/[^/]+\.jpg"),
        remarks="no split of its own: cross-validated by patient",
    ),
    Benchmark(
        "pcam_10shot", "PatchCamelyon with ten tiles a class", "classification", ("normal", "tumor"),
        {"train": 262_144, "val": 32_768, "test": 32_768}, "slide", "96 x 96", 1.0,
        f"{BALANCED} of few_shot at 8 and 16 tiles a class", "CC0-1.0", f"{ZENODO}/2546921",
        "kaiko eva 0.4, patch_camelyon_10shot", "as patch_camelyon", PCAM, urls=PCAM_URLS,
        remarks="eva draws 10 tiles a class for an AdamW probe, 50 times; ours are nearest centroids over 1,000 draws",
    ),
    Benchmark(
        "pathorob", "PathoROB, robustness to hospitals", "robustness", (), None, "slide", "224 x 224", 0.5,
        "robustness index", "as stated on the hub", "https://github.com/bifold-pathomics/PathoROB",
        "Koemen et al. 2025, arXiv 2507.17845",
        "hub snapshot of bifold-pathomics/PathoROB-{camelyon,tcga,tolkach_esca}, each checked and converted alone",
        ByParquet({"image": "image", "label": "biological_class", "site": "medical_center", "slide": "slide_id",
                   "path": "patch_id", "split": "subset"}),
        remarks="column names are those of its code's metadata; the files themselves could not be seen here. Its own "
        "figures are of 11 (camelyon), 61 (tcga) and 46 (tolkach_esca) neighbours, medians of its 20 encoders",
    ),
    Benchmark(
        "plism", "PLISM, the same tissue in 13 stains and 7 scanners", "pairs", STAINS, {"all": 1_481_298}, "block",
        "224 x 224", 0.5, "PLISM score: mean of the median cosine and of top-10 across scanners, stains, both",
        "CC-BY-4.0", "https://huggingface.co/datasets/owkin/plism-dataset",
        "Filiot et al. 2025, arXiv 2501.16239; Ochi et al. 2024, Scientific Data 11",
        "hub snapshot of owkin/plism-dataset, 225 GB: 91 files <stain>_<scanner>_to_GMH_S60.tif.h5 in one folder",
        ByPlism(),
        remarks="no labels; a block is 16 x 16 neighbouring tiles of the tissue; evaluate.max_tiles takes some places",
    ),
    Benchmark(
        "hest", "HEST-bench, gene expression in ten tissues", "regression", (), None, "sample", "224 x 224", 0.5,
        "Pearson correlation, mean of 50 genes", "CC-BY-NC-SA-4.0",
        "https://huggingface.co/datasets/MahmoodLab/hest-bench", "Jaume et al. 2024, NeurIPS",
        "hub snapshot: <task>/{patches/*.h5, adata/*.h5ad, splits/{train,test}_k.csv, var_50genes.json}", ByHest(),
        form=True,
        remarks="each task is a data set: check takes the whole snapshot, convert one task; folds are by patient, "
        "but no file says whose a sample is: intervals are over samples",
    ),
)  # fmt: skip


def benchmark(name: str) -> Benchmark:
    """Raises BenchmarkError for a name that no row has."""
    rows = {row.name: row for row in ROWS}
    if name not in rows:
        near = difflib.get_close_matches(name, rows, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(rows)}"
        raise BenchmarkError(f"unknown benchmark {name!r}; {hint}")
    return rows[name]
