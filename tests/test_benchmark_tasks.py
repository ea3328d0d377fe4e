"""More than classes, from files to report: gene expression (HEST), pairs of slides (PLISM), hospitals (PathoROB)."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from scipy.stats import pearsonr

from pathryoshka import config
from pathryoshka.benchmarks.check import check
from pathryoshka.benchmarks.convert import convert
from pathryoshka.benchmarks.hest import counts_of
from pathryoshka.benchmarks.layouts import BenchmarkError
from pathryoshka.benchmarks.rows import benchmark
from pathryoshka.cli import cli
from pathryoshka.evaluate.compare import evaluate
from pathryoshka.evaluate.contenders import Contender
from pathryoshka.evaluate.embed import EmbedError
from pathryoshka.evaluate.protocols.consistency import consistency
from pathryoshka.evaluate.protocols.ridge import gene_expression
from pathryoshka.evaluate.protocols.robustness import robustness_index
from pathryoshka.evaluate.scores import PCA, Scores
from pathryoshka.evaluate.scoring import cut
from pathryoshka.tiles.measured import read_measured
from pathryoshka.tiles.places import place_of
from pathryoshka.tiles.shards import ShardError
from tests import benchmark_trees as trees
from tests.blotches import CFG, CONTENDERS, SIZE, WIDTHS, rows, write
from tests.exports import export

SMALL = {"stains": ("GIV", "HR", "MY"), "scanners": ("AT2", "P"), "side": 5}


@pytest.fixture(scope="module")
def idc(tmp_path_factory: pytest.TempPathFactory) -> str:
    where = tmp_path_factory.mktemp("hest")
    trees.hest(where / "snapshot")
    convert(benchmark("hest"), str(where / "snapshot/IDC"), str(where / "tiles/idc"), CFG)
    return str(where / "tiles/idc")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    where = tmp_path_factory.mktemp("plism")
    trees.plism(where / "snapshot", **SMALL)  # type: ignore[arg-type]
    convert(benchmark("plism"), str(where / "snapshot"), str(where / "tiles/plism"), CFG)
    return str(where / "tiles/plism")


def rich(views: np.ndarray) -> np.ndarray:
    return views[:, ::4, ::4].reshape(len(views), -1).astype(np.float32)


# ---------------------------------------------------------------- HEST


@pytest.mark.parametrize("task", ["IDC", "PRAD"])
def test_counts_are_those_of_the_spots_that_have_a_tile(task: str, tmp_path: Path) -> None:
    trees.hest(tmp_path)
    measured = benchmark("hest").layout.measured(str(tmp_path / task), CFG)  # type: ignore[union-attr]
    assert measured.names == trees.GENES and measured.values.dtype == np.float32
    assert measured.tile_ids[0].startswith(f"{task}/")
    with h5py.File(tmp_path / task / "patches" / f"{measured.tile_ids[3].split('/')[1]}.h5") as file:
        mean = file["img"][3].reshape(-1, 3).mean(0)
    np.testing.assert_allclose(measured.values[3], np.log1p(np.round((255 - mean) / 4))[::-1], rtol=1e-6)


def test_anndata_reads_the_same_counts(tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata", reason="needs anndata (pip install 'pathryoshka[embed]')")
    trees.hest(tmp_path)
    for name in ("IDC/adata/NCBI783.h5ad", "PRAD/adata/MEND139.h5ad"):
        table = anndata.read_h5ad(tmp_path / name)
        spots = [s for s in table.obs_names if s != "without-a-tile"]
        want = table[spots, list(trees.GENES)].to_df().to_numpy()
        np.testing.assert_array_equal(counts_of(str(tmp_path / name), spots, trees.GENES), want)


def test_a_task_becomes_tiles_with_what_was_measured_and_its_folds(idc: str) -> None:
    measured = read_measured(idc, CFG)
    assert measured.names == trees.GENES and measured.values.shape == (32, 3)
    assert measured.folds[0] == (("NCBI785", "TENX99"), ("NCBI783", "TENX95"))
    few = measured.of(measured.tile_ids[5:2:-1])
    np.testing.assert_array_equal(few, measured.values[5:2:-1])
    with pytest.raises(ShardError, match="says nothing of tile hest/IDC/x"):
        measured.of(["hest/IDC/x"])


def test_expression_is_scored_by_the_ridge_on_the_official_folds(idc: str) -> None:
    cfg = config.Evaluate(tiles=(idc,))
    teachers = (*CONTENDERS, Contender("rich", "teacher", rich, 1, 1.0))
    found = evaluate(teachers, WIDTHS, cfg, CFG, size=SIZE)
    (facts,), tiles = found.scores.datasets, found.embedded["idc"]
    assert (facts.task, facts.num_folds, facts.num_scored, facts.num_groups, facts.chance) == (
        "regression", 2, 32, 4, None,
    )  # fmt: skip
    assert {row.protocol for row in found.scores.rows} == {"expression"}
    measured = read_measured(idc, CFG)
    genes = measured.of(tiles.tile_ids.tolist())
    groups = np.unique(tiles.patients, return_inverse=True)[1]
    folds = found_folds(tiles.slides, measured.folds)
    said = gene_expression(cut(tiles.vectors["student"], 8), genes, groups, folds)
    mine = [pearsonr(said.predicted[f.test, g], genes[f.test, g])[0] for f in folds for g in range(3)]
    row = found.scores.row("idc", "expression", "student", 8)
    assert row is not None and row.score == pytest.approx(np.mean(mine)) and row.low < row.score < row.high
    assert row.score > 0.8 > found.scores.row("idc", "expression", "start").score  # type: ignore[union-attr]
    assert {r.width for r in found.scores.rows if r.encoder == PCA} == {8}  # 15 training tiles span no 24
    assert {d.other for d in found.scores.differences} >= {"t0", "start", PCA, "mean of teachers"}


def found_folds(slides: np.ndarray, folds: tuple) -> list:  # type: ignore[type-arg]
    from pathryoshka.evaluate.folds import Fold

    parts = [[np.flatnonzero(np.isin(slides, side)) for side in fold] for fold in folds]
    return [Fold(learn, learn[:0], test) for learn, test in parts]


def spoil_barcode(root: Path) -> None:
    with h5py.File(root / "IDC/patches/NCBI783.h5", "a") as file:
        file["barcode"][0] = b"nobody"


def leak(root: Path) -> None:
    path = root / "IDC/splits/train_0.csv"
    path.write_text(path.read_text() + (root / "IDC/splits/test_0.csv").read_text().splitlines()[1] + "\n")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: (root / "IDC/adata/TENX95.h5ad").unlink(), "sample TENX95 of IDC has no adata/TENX95.h5ad"),
        (lambda root: (root / "PRAD/splits/test_1.csv").unlink(), "there is no splits/test_1.csv"),
        (lambda root: (root / "IDC/patches/NCBI785.h5").write_bytes(b"<html>"), "NCBI785.h5 holds no tiles of HEST"),
        (lambda root: (root / "IDC/var_50genes.json").write_text("[]"), "var_50genes.json of IDC lists no genes"),
        (spoil_barcode, "has no spot nobody"),
        (leak, "fold 0 of IDC learns from and tests sample NCBI783"),
    ],
)
def test_what_is_wrong_with_hest_is_said(spoil: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    trees.hest(tmp_path)
    spoil(tmp_path)
    with pytest.raises(BenchmarkError, match=said):
        check(benchmark("hest"), str(tmp_path), CFG)


def test_a_gene_that_is_lost_and_the_whole_snapshot_at_once_are_refused(tmp_path: Path) -> None:
    trees.hest(tmp_path)
    with pytest.raises(BenchmarkError, match=r"holds 2 tasks, each with genes of its own; convert them one by one"):
        convert(benchmark("hest"), str(tmp_path), str(tmp_path / "out"), CFG)
    (tmp_path / "IDC/var_50genes.json").write_text(json.dumps({"genes": ["ACTB", "NOGENE"]}))
    with pytest.raises(BenchmarkError, match=r"h5ad has no gene NOGENE"):
        convert(benchmark("hest"), str(tmp_path / "IDC"), str(tmp_path / "out"), CFG)


# ---------------------------------------------------------------- PLISM


def test_pairs_are_scored_as_the_protocol_says(pairs: str) -> None:
    found = evaluate(CONTENDERS, WIDTHS, config.Evaluate(tiles=(pairs,)), CFG, size=SIZE)
    (facts,), tiles = found.scores.datasets, found.embedded["plism"]
    assert (facts.task, facts.unit, facts.num_groups, facts.num_tiles) == ("pairs", "block", 25, 150)
    slides = np.unique(tiles.slides)
    places = sorted({place_of(t) for t in tiles.tile_ids})
    row_of = {(s, place_of(t)): i for i, (s, t) in enumerate(zip(tiles.slides, tiles.tile_ids, strict=True))}
    x = cut(tiles.vectors["student"], 8)[[[row_of[s, p] for p in places] for s in slides]]
    stains, scanners = zip(*(s.split("_") for s in slides), strict=True)
    want = consistency(x, scanners, stains, np.arange(25))
    got = {r.protocol: r.score for r in found.scores.rows if (r.encoder, r.width) == ("student", 8)}
    parts = [want.cosine["all"].value, *(want.top[kind].value for kind in ("scanner", "stain", "both"))]
    assert got == pytest.approx({"pairs/cosine": parts[0], "pairs/scanner": parts[1], "pairs/stain": parts[2],
                                 "pairs/both": parts[3], "pairs/score": np.mean(parts)})  # fmt: skip
    assert {r.encoder for r in found.scores.rows} >= {"student", "t0"} and facts.chance is None


def test_few_places_are_taken_on_every_slide(pairs: str) -> None:
    few = evaluate(CONTENDERS[:1], WIDTHS, config.Evaluate(tiles=(pairs,), max_tiles=70), CFG, size=SIZE)
    tiles = few.embedded["plism"]
    assert len(tiles) == 66 and len({place_of(t) for t in tiles.tile_ids}) == 11


def test_a_slide_that_lacks_places_is_named_and_these_are_left_out(tmp_path: Path) -> None:
    counts = trees.plism(tmp_path / "in", **SMALL)  # type: ignore[arg-type]
    with h5py.File(tmp_path / "in/HR_P_to_GMH_S60.tif.h5", "a") as file:
        del file["tile_16_0_16"]
    row = replace(benchmark("plism"), counts=counts, classes=SMALL["stains"])  # type: ignore[arg-type]
    said = "\n".join(check(row, str(tmp_path / "in"), CFG).problems)
    assert "slide HR_P lacks 1 places that others have, e.g. tile_16_0_16" in said and "its row says 150" in said
    convert(row, str(tmp_path / "in"), str(tmp_path / "out"), CFG)
    found = evaluate(CONTENDERS[:1], WIDTHS, config.Evaluate(tiles=(str(tmp_path / "out"),)), CFG, size=SIZE)
    assert any("5 tiles of out show places that not every slide shows" in note for note in found.scores.notes)


def test_files_that_are_no_slides_of_plism_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="there is no <stain>_<scanner>_to_GMH_S60"):
        check(benchmark("plism"), str(tmp_path), CFG)
    (tmp_path / "MY_SQ_to_GMH_S60.tif.h5").write_bytes(b"<html>")
    with pytest.raises(BenchmarkError, match="is no HDF5 file"):
        check(benchmark("plism"), str(tmp_path), CFG)


# ---------------------------------------------------------------- PathoROB


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> str:
    where = tmp_path_factory.mktemp("pathorob")
    trees.pathorob(where / "snapshot", 48)
    assert check(benchmark("pathorob"), str(where / "snapshot"), CFG).problems == ()
    convert(benchmark("pathorob"), str(where / "snapshot"), str(where / "tiles/rob"), CFG)
    return str(where / "tiles/rob")


def test_hospitals_are_scored_by_neighbours_of_one_number_for_all(hospitals: str) -> None:
    found = evaluate(CONTENDERS, WIDTHS, config.Evaluate(tiles=(hospitals,)), CFG, size=SIZE)
    (facts,), tiles = found.scores.datasets, found.embedded["rob"]
    assert (facts.task, facts.unit, facts.num_groups, facts.num_tiles) == ("robustness", "slide", 36, 96)  # no OOD
    groups = np.unique(tiles.patients, return_inverse=True)[1]

    def index(x: np.ndarray, k: int | None = None):  # type: ignore[no-untyped-def]
        return robustness_index(x, tiles.labels, tiles.sites, groups, k, tiles.splits)

    k = int(np.median([index(cut(x, x.shape[1])).k for x in tiles.vectors.values()]))
    assert any(f"index of rob is of {k} neighbours" in note for note in found.scores.notes)
    want = index(cut(tiles.vectors["student"], 8), k)
    row = found.scores.row("rob", "robustness", "student", 8)
    assert row is not None and row.score == pytest.approx(want.score.value) and row.low < row.score < row.high
    vote = found.scores.row("rob", "robustness/vote", "student", 8)
    assert vote is not None and vote.score == pytest.approx(want.vote.value)
    assert {row.protocol for row in found.scores.rows} == {"robustness", "robustness/vote"}
    assert {d.other for d in found.scores.differences} >= {"t0", "mean of teachers"}


def test_tiles_beyond_the_domain_alone_are_refused(tmp_path: Path) -> None:
    made_by = {"kind": "benchmark", "task": "robustness"}
    uri = write(tmp_path / "beyond", rows(12, split="OOD"), made_by)
    with pytest.raises(EmbedError, match="beyond has no labelled tile outside of split OOD"):
        evaluate(CONTENDERS, WIDTHS, config.Evaluate(tiles=(uri,)), CFG, size=SIZE)


# ---------------------------------------------------------------- together, from the command line


def test_all_beside_each_other_from_files_to_report(idc: str, pairs: str, hospitals: str, tmp_path: Path) -> None:
    export(tmp_path / "student", "vit")
    args = ["evaluate", "--encoder", f"student={tmp_path}/student", "--encoder", "efficientnet_lite0", "--tiles", idc]
    args += ["--tiles", pairs, "--tiles", hospitals, "--to", str(tmp_path / "out")]
    run = CliRunner().invoke(cli, args, catch_exceptions=False)
    assert run.exit_code == 0
    assert "scored idc: 32 tiles of 4 " in run.output and "scored plism: 150 tiles of 25 blocks" in run.output
    scores = Scores.model_validate(json.loads((tmp_path / "out/scores.json").read_text()))
    with (tmp_path / "out/scores.csv").open() as file:
        protocols = {line["protocol"] for line in csv.DictReader(file)}
    assert protocols == {row.protocol for row in scores.rows}
    assert protocols == {
        "expression",
        "robustness",
        "robustness/vote",
        *(f"pairs/{n}" for n in ("score", "cosine", "scanner", "stain", "both")),
    }
    html = (tmp_path / "out/report.html").read_text()
    for text in ("Pearson correlation, the data set", "gene expression", "PLISM score", "top 10 across both",
                 "Robustness index, the nearest tiles of other slides", "vote across hospitals"):  # fmt: skip
        assert text in html
    compared = CliRunner().invoke(cli, ["evaluate", "compare", f"a={tmp_path}/out", f"b={tmp_path}/out"])
    assert compared.exit_code == 0 and "pairs/score" in compared.output
