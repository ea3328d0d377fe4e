"""slide2vec, the judge: its own `embed_images` through the plug-in of an export gives the golden vectors, cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import exports
from tests.judges import call, environment

SLIDE2VEC = (
    "--no-deps", "slide2vec==7.1.4", "hs2p", "omegaconf", "antlr4-python3-runtime==4.9.*", "einops", "rich",
    "opencv-python-headless", "wandb", "xxhash",
)  # fmt: skip
"""Without what it asks for beside: readers of slides that need a GPU, and an older transformers."""
EMBED = """
import sys
from pathlib import Path

import torch
from slide2vec import ExecutionOptions, ImageSpec, Model

export, out, variant = sys.argv[1:]
model = Model.from_preset("pathryoshka", output_variant=variant, device="cpu")
images = [ImageSpec(sample_id=str(i), image_path=Path(export, "golden", f"{i}.png")) for i in range(8)]
made = model.embed_images(images, execution=ExecutionOptions(output_dir=Path(out), num_gpus=1))
torch.save(torch.stack([torch.load(one.path, weights_only=False).reshape(-1) for one in made]), Path(out, "all.pt"))
"""

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment("slide2vec", *SLIDE2VEC, scratch=tmp_path_factory.mktemp("judges"))


@pytest.mark.parametrize("kind", ["vit", "conv"])
def test_its_vectors_are_the_golden_ones_cut(kind: str, python: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    exports.export(folder, kind)
    plugin = folder / "tools" / "slide2vec_plugin"
    info = plugin / "pathryoshka_slide2vec-1.dist-info"  # what installing it would leave, without changing the export
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pathryoshka-slide2vec\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[slide2vec.encoders]\npathryoshka = pathryoshka_slide2vec:register\n")
    golden = load_file(folder / "golden.safetensors")["vectors"]
    narrow = exports.MODELS[kind]["widths"][0]
    for variant, width in (("full", golden.shape[1]), (str(narrow), narrow)):
        out = tmp_path / variant
        out.mkdir()
        call([python, "-c", EMBED, str(folder), str(out), variant], tmp_path, PYTHONPATH=plugin, WANDB_MODE="disabled")
        got = torch.load(out / "all.pt", weights_only=True)
        torch.testing.assert_close(got, golden[:, :width], rtol=1e-4, atol=1e-4)
