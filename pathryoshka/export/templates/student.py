"""The student in plain timm (1.0.16 or later), with nothing of ours installed: `from student import student`."""

import json
import os
from pathlib import Path

import timm
import torch
from timm.data import create_transform, resolve_data_config

EXPORT = Path(os.environ.get("PATHRYOSHKA_EXPORT") or Path(__file__).resolve().parent.parent)


class Student(torch.nn.Module):
    """Normalised views [B, 3, H, W] -> [B, width]: the embedding, cut and nothing else."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.facts = json.loads((EXPORT / "pathryoshka.json").read_text())
        self.width = width or self.facts["width"]
        if self.width not in (self.facts["width"], *self.facts["widths"]):
            raise ValueError(f"the student was trained for widths {self.facts['widths']}; got width={width}")
        weights = EXPORT / "model.safetensors"  # named, for before 1.0.29 timm finds no weights in such a folder
        self.model = timm.create_model(f"local-dir:{EXPORT}", checkpoint_path=str(weights)).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)[:, : self.width]

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, width] row by row over the grid; whole where tokens are narrower than the embedding."""
        features = self.model.forward_features(x)  # type: ignore[operator]
        if features.ndim == 4:
            if features.shape[1] == self.facts["token_width"]:
                features = features.permute(0, 2, 3, 1)
            features = features.flatten(1, 2)
        return features[:, self.facts["num_prefix"] :, : self.width]


def student(width: int = 0):
    """The network cut to `width` (0 = full) and the transform of a PIL image."""
    model = Student(width).eval()
    return model, create_transform(**resolve_data_config(model.model.pretrained_cfg, model=model.model))
