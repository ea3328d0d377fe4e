"""Is an exported folder what it says, and does it give the same vectors without us?"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from pathryoshka import config
from pathryoshka.export.facts import local_folder, read_facts
from pathryoshka.export.formats import check_formats
from pathryoshka.export.load import Embedder, load

TOLERANCE = 1e-4
"""Largest difference of a number of a golden vector, times its largest number where that is above 1."""

# Runs in a process of its own, isolated (-I) from our folder: what a user without this package does.
PLAIN = """
import json, sys
from pathlib import Path
import timm, torch
from PIL import Image
from safetensors.torch import load_file
folder = Path(sys.argv[1])
torch.set_num_threads(1)
model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
want = load_file(folder / "golden.safetensors")["vectors"]
tiles = [Image.open(folder / "golden" / f"{i}.png").convert("RGB") for i in range(len(want))]
with torch.inference_mode():
    got = model(torch.stack([transform(tile) for tile in tiles]))
worst = float((got - want).abs().max() / want.abs().max().clamp_min(1)) if got.shape == want.shape else float("inf")
ours = sorted(name for name in sys.modules if name.split(".")[0] in ("pathryoshka", "ray", "deepspeed"))
print(json.dumps({"worst": worst, "timm": timm.__version__, "tiles": len(want), "ours": ours}))
"""


class VerifyError(ValueError):
    """An exported folder that is not what it says; the sentence names what differs."""


@dataclass(frozen=True)
class Verified:
    """`worst`: largest difference of a number of a golden vector, here and in a process without this package.

    `formats`: file -> smallest cosine to the golden vectors on this machine, or why it was not run.
    """

    model_id: str
    num_tiles: int
    worst: float
    worst_plain: float
    timm: str
    formats: dict[str, float | str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [self.of_weights()]
        for name, found in self.formats.items():
            lines.append(f"{name} {f'runs here: cosine {found:.6f}' if isinstance(found, float) else found}")
        return "\n".join(lines)

    def of_weights(self) -> str:
        return (
            f"{self.num_tiles} golden tiles agree with their vectors: to {self.worst:.1e} here, to "
            f"{self.worst_plain:.1e} with plain timm {self.timm} in a process without this package; model id "
            f"{self.model_id[:16]}"
        )


def verify(path: str | Path, storage: config.Storage | None = None) -> Verified:
    """Compares weights with the model id and golden tiles with their vectors, with and without this package, and in
    every other format that is there.

    Raises:
        LoadError: `path` is no export.
        VerifyError: something differs by more than 1e-4, or is missing.
        FormatsError: a file below `formats/` is damaged, foreign or gives other vectors here.
    """
    with local_folder(path, storage) as folder:
        facts = read_facts(folder, path)
        missing = [name for name in ("model.safetensors", "golden.safetensors") if not (folder / name).is_file()]
        if missing:
            raise VerifyError(f"{path} lacks {' and '.join(missing)}; export the student again")
        digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        if digest != facts["model_id"]:
            raise VerifyError(
                f"model.safetensors of {path} is {digest[:16]}, not {facts['model_id'][:16]}; copy it again"
            )
        here = worst_golden(load(folder), folder)
        plain, num_tiles, version = verify_plain_timm(folder)
        formats = check_formats(folder, digest)
    if max(here, plain) > TOLERANCE:
        raise VerifyError(
            f"golden tiles of {path} differ from their vectors by {here:.1e} here and {plain:.1e} with plain timm "
            f"{version}, more than {TOLERANCE:g}; export again with the timm that is installed"
        )
    return Verified(digest, num_tiles, here, plain, version, formats)


def worst_golden(embedder: Embedder, folder: Path) -> float:
    """Largest difference between golden vectors and those of the loaded student, normalised, over all widths."""
    want = load_file(folder / "golden.safetensors")["vectors"]
    tiles = np.stack([np.asarray(Image.open(folder / "golden" / f"{i}.png").convert("RGB")) for i in range(len(want))])
    worst = 0.0
    for width in embedder.widths:
        embedder.width = width
        cut = torch.nn.functional.normalize(want[:, :width], dim=-1)
        worst = max(worst, float((embedder.embed(tiles) - cut).abs().max()))
    return worst


def verify_plain_timm(folder: Path) -> tuple[float, int, str]:
    """Largest difference, number of tiles and version of timm, from a process that imports nothing of ours.

    Raises:
        VerifyError: that process fails, or turns out to have imported this package.
    """
    command = [sys.executable, "-I", "-c", PLAIN, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise VerifyError(f"plain timm cannot load {folder}: {said[-1] if said else f'exit code {done.returncode}'}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    if found["ours"]:
        raise VerifyError(f"the process that should do without this package imported {', '.join(found['ours'])}")
    return found["worst"], found["tiles"], found["timm"]
