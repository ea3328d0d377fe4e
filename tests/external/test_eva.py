"""kaiko-eva, the judge: its own offline linear probe, with the written YAML, against ours on the embeddings it saved.

The student has the weights of EfficientNet-Lite0, so that there is something to learn. eva refuses its own data sets
unless they have their official counts, so the tiles lie in class folders. Tiles are cut and scaled down, and both sides
take at most 150 steps, so that this takes minutes; everything else is eva's protocol.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pathryoshka import config
from pathryoshka.evaluate import adam_probe as ap
from pathryoshka.student.encoder import build_student
from pathryoshka.teachers.weights import load_model, locate
from pathryoshka.teachers.zoo import ROWS
from tests import exports
from tests.judges import call, environment

REAL = os.environ.get("PATHRYOSHKA_REAL_DATA")
EVA = ("kaiko-eva[vision]==0.4.5", "jsonargparse[omegaconf,signatures]==4.44.0")
"""With jsonargparse 4.53 eva 0.4.5 cannot read its own configs (`criterion`)."""
SIZE, MAX_STEPS, NUM_RUNS = 128, 150, 5
LITE0 = "efficientnet_lite0"

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not REAL, reason="SKIPPED: PATHRYOSHKA_REAL_DATA does not name the development data"),
]


def tiles_of(name: str, root: Path) -> None:
    """`root/<split>/<class>/*.jpg`: LC25000 by image (quarters), CRC-7K by tile (ninths), GlaS by patient."""
    source = Path(str(REAL)) / "tiles" / name.removesuffix("_quarters")
    if name in ("lc25000", "crc7k"):
        parts = 2 if name == "lc25000" else 3  # more rows than a batch, or eva's seeds change nothing
        paths = sorted(source.glob("*.jp*g"))
        rank: dict[str, int] = {}
        for path in paths:
            label = path.name.partition("___")[0]
            rank[label] = rank.get(label, -1) + 1
            with Image.open(path) as image:
                side = image.width // parts
                for i, (x, y) in enumerate(itertools.product(range(parts), repeat=2)):
                    part = image.crop((x * side, y * side, (x + 1) * side, (y + 1) * side))
                    keep(part, root / ("train" if rank[label] % 3 else "val") / label / f"{path.stem}_{i}.jpg")
        return
    for row in csv.DictReader((source / "grade.csv").open()):
        split = "val" if int(row["patient"]) % 3 == 0 else "train"
        with Image.open(source / "images" / f"{row['image']}.jpg") as image:
            folder = root / split / row["grade2"]
            if name == "glas":
                keep(image, folder / f"{row['image']}.jpg")
                continue
            width, height = image.width // 2, image.height // 2
            for i, (x, y) in enumerate(itertools.product(range(2), repeat=2)):
                part = image.crop((x * width, y * height, (x + 1) * width, (y + 1) * height))
                keep(part, folder / f"{row['image']}_{i}.jpg")


def keep(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((SIZE, SIZE), Image.Resampling.BILINEAR).convert("RGB").save(path, quality=95)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    cfg = config.Student(model="tf_efficientnet_lite0", widths=(64, 1280))
    made = build_student(cfg, SIZE)
    weights = locate(ROWS[LITE0], None, exports.CFG, folder)
    made.timm_model.load_state_dict(load_model(ROWS[LITE0], weights).state_dict())
    run = config.Run(name="judged", student=cfg, views=config.Views(size=SIZE), export=config.Export(licence="mit"))
    golden = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), dtype=np.uint8)
    heads = exports.heads_of(made, cfg)
    exports.export(folder / "export", student=made, heads=heads, run=run, golden=golden, scores=None)
    return folder / "export"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment("eva", *EVA, scratch=tmp_path_factory.mktemp("judges"))


def saved(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """split -> embeddings [N, D] and class numbers [N], as eva's writer left them."""
    rows: dict[str, list[tuple[torch.Tensor, int]]] = {"train": [], "val": []}
    for row in csv.DictReader((folder / "manifest.csv").open()):
        tensor = torch.load(folder / row["embeddings"], weights_only=True)
        tensor = tensor[0] if isinstance(tensor, list) else tensor
        rows[row["split"]].append((tensor.reshape(-1), int(float(row["target"]))))
    return {
        split: (torch.stack([x for x, _ in pairs]), torch.tensor([y for _, y in pairs]))
        for split, pairs in rows.items()
    }


@pytest.mark.parametrize(("name", "num_classes"), [("lc25000", 5), ("crc7k", 7), ("glas", 2), ("glas_quarters", 2)])
def test_evas_probe_and_ours_agree_within_its_seeds(
    name: str, num_classes: int, student: Path, python: Path, tmp_path: Path
) -> None:
    tiles_of(name, tmp_path / "data")
    num_train = len(list((tmp_path / "data" / "train").rglob("*.jpg")))
    patience = ap.patience_of(num_train, max_steps=MAX_STEPS)
    yaml = student / "tools" / ("eva.yaml" if num_classes > 2 else "eva_binary.yaml")
    embeddings, key = (
        tmp_path / "embeddings",
        f"val/{'MulticlassAccuracy' if num_classes > 2 else 'BinaryBalancedAccuracy'}",
    )
    values = []
    for seed in range(NUM_RUNS):  # one call a run: eva's runs of one call begin with the same head
        logs = tmp_path / f"logs-{seed}"
        call(
            [python, "-m", "eva", "fit" if seed else "predict_fit", "--config", yaml],
            cwd=tmp_path,
            EXPORT=student,
            DATA_ROOT=tmp_path / "data",
            EMBEDDINGS_ROOT=embeddings,
            OUTPUT_ROOT=logs,
            NUM_CLASSES=num_classes,
            MAX_STEPS=MAX_STEPS,
            PATIENCE=patience,
            N_RUNS=1,
            EVA_GLOBAL_SEED=seed,
            ACCELERATOR="cpu",
            PYTHONPATH=student / "tools",
            HF_HUB_OFFLINE=1,
        )
        (result,) = logs.rglob("results.json")
        (metrics,) = json.loads(result.read_text())["metrics"]["val"]
        values += metrics[key]["values"]
    theirs = np.array(values)
    assert len(theirs) == NUM_RUNS

    rows = saved(embeddings)
    assert rows["train"][0].shape == (num_train, 1280)
    ours = (
        ap.fit(*rows["train"], *rows["val"], num_classes, (1280,), False, patience, tuple(range(NUM_RUNS)), MAX_STEPS)
        .val_score_SW[:, 0]
        .numpy()
    )
    difference = ours.mean() - theirs.mean()
    spread = theirs.max() - theirs.min()
    one = 1 / min(np.bincount(rows["val"][1].numpy())) / num_classes
    print(
        f"{name}: {num_train} train, {len(rows['val'][0])} val, patience {patience}; eva {theirs.mean():.4f} "
        f"(sd {theirs.std(ddof=1):.4f}), ours {ours.mean():.4f} (sd {ours.std(ddof=1):.4f}), difference "
        f"{difference:+.4f}, one tile {one:.4f}; eva {np.round(theirs, 4)}, ours {np.round(ours, 4)}"
    )
    # seeds are other draws on either side, so the bound is the range of eva's runs, or one tile of the rarest class
    assert abs(difference) <= max(spread, one)
    assert theirs.mean() > 1.3 / num_classes, "nothing was learned, so nothing is compared"


def test_eva_saves_the_students_own_vectors(student: Path, python: Path, tmp_path: Path) -> None:
    """Its backbone wrapper on the golden tiles, transformed by the YAML's transform."""
    code = (
        "import sys, torch, json; from eva.vision.models.wrappers import TimmModel;"
        "from eva.vision.data.transforms.common import ResizeAndCrop; from eva.vision.utils import io;"
        "folder = sys.argv[1]; facts = json.load(open(folder + '/pathryoshka.json'));"
        "t = ResizeAndCrop(facts['size'], facts['mean'], facts['std']);"
        "x = torch.stack([t(io.read_image_as_tensor(f'{folder}/golden/{i}.png')) for i in range(8)]);"
        "m = TimmModel(f'local-dir:{folder}').eval();"
        "torch.save(torch.no_grad()(m)(x), 'out.pt')"
    )
    call([python, "-c", code, str(student)], cwd=tmp_path)
    from safetensors.torch import load_file

    golden = load_file(student / "golden.safetensors")["vectors"]
    torch.testing.assert_close(torch.load(tmp_path / "out.pt", weights_only=True), golden, rtol=1e-4, atol=1e-4)
