"""THUNDER, the judge: its own command with the written class, on tiles in its own layouts, with its own splits."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier

import pathryoshka
from pathryoshka.tiles.phantom import phantom_tile
from tests import exports
from tests.judges import call, environment

THUNDER = (
    "--no-deps", "thunder-bench==0.2.2", "timm==1.0.20", "hydra-core==1.3.*", "omegaconf",
    "antlr4-python3-runtime==4.9.*", "opencv-python-headless", "plotly", "narwhals", "torchaudio", "wandb", "wilds",
    "outdated", "littleutils", "xxhash",
)  # fmt: skip
"""Its own timm; without what it asks for beside and does not need here: an older pydantic, kornia, sentencepiece."""
SPLITS = """
import thunder.datasets.data_splits as data_splits

data_splits.check_dataset = lambda *_: None  # the official counts and their checksum
data_splits.generate_splits(["mhist", "pannuke"])
"""
NUM_TRAIN, NUM_TEST, NUM_FOLD = 160, 60, 6
TISSUE = {"HP": "mucus", "SSA": "muscle"}
KS = (1, 3, 5, 10, 20, 30, 40, 50)

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment("thunder", *THUNDER, scratch=tmp_path_factory.mktemp("judges"))


@pytest.fixture(scope="module")
def base(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MHIST's and PanNuke's folders with phantom tissue, split by THUNDER."""
    base = tmp_path_factory.mktemp("thunder")
    mhist, pannuke = base / "datasets" / "mhist", base / "datasets" / "pannuke"
    (mhist / "images").mkdir(parents=True)
    (base / "outputs").mkdir()
    rows = []
    for i in range(NUM_TRAIN + NUM_TEST):
        label = list(TISSUE)[i % 2]
        Image.fromarray(phantom_tile(TISSUE[label], i // 8, 0, i, 0, size=96)).save(mhist / "images" / f"{i}.png")
        rows.append((f"{i}.png", label, "train" if i < NUM_TRAIN else "test"))
    with (mhist / "annotations.csv").open("w") as file:
        csv.writer(file).writerows([("Image Name", "Majority Vote Label", "Partition"), *rows])
    for fold in (1, 2, 3):
        images = np.stack([phantom_tile("stroma", fold, 0, i, 0, size=256) for i in range(NUM_FOLD)])
        dark = images.mean(3) < np.median(images.mean(3))
        masks = np.stack([dark * 7.0, *np.zeros((4, *dark.shape)), ~dark], axis=3)
        for name, array in (("images", images.astype(float)), ("masks", masks)):
            folder = pannuke / f"Fold{fold}" / name / f"fold{fold}"
            folder.mkdir(parents=True)
            np.save(folder / f"{name}.npy", array)
    call([python, "-c", SPLITS], base, THUNDER_BASE_DATA_FOLDER=base)
    return base


def benchmark(python: Path, base: Path, export: Path, width: int, *words: str) -> dict[str, Any]:
    """What its command left in `outputs.json`."""
    command: list[str | Path] = [python.parent / "thunder", "benchmark", "custom:tools/thunder_model.py", *words]
    call(
        command, export, THUNDER_BASE_DATA_FOLDER=base, PATHRYOSHKA_WIDTH=width, WANDB_MODE="offline", HF_HUB_OFFLINE=1
    )
    model_id = json.loads((export / "pathryoshka.json").read_text())["model_id"]
    done = base / "outputs" / "res" / words[0] / f"pathryoshka_{model_id[:12]}_{width}" / words[1] / "frozen"
    return json.loads((done / "outputs.json").read_text())


@pytest.mark.parametrize(("kind", "width"), [("vit", 48), ("conv", 64)])
def test_its_embeddings_are_ours_and_its_scores_follow(
    kind: str, width: int, python: Path, base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    exports.export(folder, kind)
    done = benchmark(python, base, folder, width, "mhist", "knn")

    ours = pathryoshka.load(folder, width)
    splits = json.loads((base / "datasets" / "data_splits" / "mhist.json").read_text())
    (written,) = (base / "embeddings" / "mhist").glob(f"pathryoshka_{ours.model_id[:12]}_{width}")
    x, y = {}, {}
    for split in ("train", "val", "test"):
        paths = [base / "datasets" / "mhist" / name for name in splits[split]["images"]]
        pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
        with torch.inference_mode():
            x[split] = torch.cat([ours.timm_model(views)[:, :width] for views in ours.batches(pixels)]).numpy()
        y[split] = np.array(splits[split]["labels"])
        with h5py.File(written / split / "embeddings.h5") as file:
            theirs = np.stack([file[str(i)][()] for i in range(len(file))])
        np.testing.assert_allclose(theirs, x[split], rtol=1e-4, atol=1e-4)

    voters = {k: KNeighborsClassifier(k, metric="cosine").fit(x["train"], y["train"]) for k in KS}
    scores = {k: f1_score(y["val"], voter.predict(x["val"]), average="macro") for k, voter in voters.items()}
    best = max(scores, key=scores.__getitem__)  # the first of equals, as THUNDER takes it
    assert list(done) == [str(best)]
    want = voters[best].predict(x["test"])
    assert done[str(best)]["per_sample_pred"] == want.tolist()
    assert done[str(best)]["f1"]["metric_score"] == pytest.approx(f1_score(y["test"], want, average="macro"))
    assert done[str(best)]["f1"]["metric_score"] > 0.6, "nothing is told apart, so nothing is compared"

    probe = ("mhist", "linear_probing", "--loading-mode", "embedding_pre_loading", "--adaptation.epochs", "3")
    shares = benchmark(python, base, folder, width, *probe)["per_sample_proba"]
    heads = base / "outputs" / "ckpts" / "mhist" / written.name / "frozen" / "best_model.pth"
    head = torch.load(heads, weights_only=True)["task_specific_model"]
    logits = torch.from_numpy(x["test"]) @ head["linear.weight"].T + head["linear.bias"]
    torch.testing.assert_close(logits.softmax(1), torch.tensor(shares), rtol=1e-4, atol=1e-4)
    print(f"{kind} at {width}: k {best}, macro F1 {done[str(best)]['f1']['metric_score']:.3f}")


def test_its_segmentation_takes_tokens_narrower_than_the_embedding(python: Path, base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    exports.export(folder, "conv")
    width = exports.MODELS["conv"]["widths"][-1]
    assert json.loads((folder / "pathryoshka.json").read_text())["token_width"] < width
    done = benchmark(python, base, folder, width, "pannuke", "segmentation", "--adaptation.epochs", "1")
    assert 0 < done["f1"]["metric_score"] <= 1 and len(done["per_sample_f1"]) == NUM_FOLD
