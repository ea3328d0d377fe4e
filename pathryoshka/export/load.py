"""An exported student, ready to embed: timm underneath, our cutting and normalising on top; no Ray, no DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from pathryoshka import config
from pathryoshka.export.facts import LoadError, check_width, local_folder, read_facts
from pathryoshka.tiles.views import as_rgb, identity_view

BATCH = 64


class Embedder(nn.Module):
    """A student cut to `width` numbers.

    Attributes:
        model_id: SHA-256 of the weights; what stores and indices must be tagged with.
        width, widths: numbers given out; the widths the student was trained for, ascending.
        size: side in pixels of what it sees. facts: all of `pathryoshka.json`.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, timm_model: nn.Module, facts: dict[str, Any], width: int) -> None:
        super().__init__()
        self.timm_model, self.facts, self.width = timm_model, facts, width
        self.model_id: str = facts["model_id"]
        self.widths: tuple[int, ...] = tuple(facts["widths"])
        self.size: int = facts["size"]
        self.register_buffer("mean", torch.tensor(facts["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(facts["std"]).view(3, 1, 1), persistent=False)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Tiles as `transform` makes them, float [B, 3, size, size] -> [B, width], rows of length 1."""
        return nn.functional.normalize(self.timm_model(x_BCHW)[:, : self.width], dim=-1)

    def transform(self, image: Image.Image | np.ndarray) -> torch.Tensor:
        """A picture, or uint8 [H, W, 3], of any size -> float [3, size, size]: shorter side resized, centre kept."""
        pixels = np.asarray(image) if isinstance(image, np.ndarray) else as_rgb(image)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            raise LoadError(f"a tile is uint8 [H, W, 3]; got {pixels.dtype} {pixels.shape}")
        view = torch.from_numpy(identity_view(pixels, self.size)).permute(2, 0, 1).float().div(255)
        return (view - self.mean.cpu()) / self.std.cpu()

    @torch.inference_mode()
    def embed(self, images: np.ndarray | torch.Tensor) -> torch.Tensor:
        """uint8 [B, H, W, 3] -> fp32 [B, width] on the CPU, rows of length 1. Tiles of another size are resized."""
        return torch.cat([self(x).float().cpu() for x in self.batches(images)])

    @torch.inference_mode()
    def tokens(self, images: np.ndarray | torch.Tensor) -> torch.Tensor:
        """uint8 [B, H, W, 3] -> fp32 [B, N, width] on the CPU, N row by row over `facts["grid"]`, not normalised.

        Where tokens are narrower than the embedding (`facts["token_width"]`) they come whole.
        """
        out = []
        for x in self.batches(images):
            tokens = as_tokens(self.timm_model.forward_features(x), self.facts)  # type: ignore[operator]
            out.append(tokens[:, :, : self.width].float().cpu())
        return torch.cat(out)

    def batches(self, images: np.ndarray | torch.Tensor) -> Iterator[torch.Tensor]:
        pixels = images.cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
        if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8 or not len(pixels):
            raise LoadError(
                f"tiles are uint8 [B, H, W, 3] with at least one of them; got {pixels.dtype} {pixels.shape}"
            )
        for start in range(0, len(pixels), BATCH):
            batch = torch.stack([self.transform(tile) for tile in pixels[start : start + BATCH]])
            yield batch.to(self.mean.device)


def as_tokens(features: torch.Tensor, facts: dict[str, Any]) -> torch.Tensor:
    """What timm's `forward_features` gives, a map or a sequence -> [B, N, Dt], row by row, without prefix tokens."""
    if features.ndim == 4:
        channels_first = features.shape[1] == facts["token_width"]
        features = (features.permute(0, 2, 3, 1) if channels_first else features).flatten(1, 2)
    return features[:, facts["num_prefix"] :]


def load(
    path: str | Path, width: int | None = None, device: str = "cpu", storage: config.Storage | None = None
) -> Embedder:
    """The exported student in the folder or URI `path`, cut to `width` (one of its widths; none = all of it).

    Raises:
        LoadError: no export there, one of a newer format, or a width it was not trained for.
        StorageError: a URI that cannot be read.
    """
    import timm

    with local_folder(path, storage) as folder:
        facts = read_facts(folder, path)
        check_width(facts, width, path)
        try:
            model = timm.create_model(f"local-dir:{folder}", pretrained=True)
        except Exception as error:
            raise LoadError(f"timm {timm.__version__} cannot load {path}: {str(error).splitlines()[0]}") from error
    embedder = Embedder(model, facts, width or facts["width"]).to(device).eval()
    return embedder.requires_grad_(False)
