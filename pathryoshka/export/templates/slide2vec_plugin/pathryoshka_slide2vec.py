"""The student as a slide2vec tile encoder: one output variant a width, cut and nothing else."""

import json
import os
from pathlib import Path

import torch
from slide2vec.encoders.base import TimmTileEncoder, resolve_requested_output_variant
from slide2vec.encoders.registry import register_encoder

EXPORT = Path(os.environ.get("PATHRYOSHKA_EXPORT") or Path(__file__).resolve().parent.parent.parent)


def register() -> None:
    """What slide2vec calls once, through the entry point."""
    facts = json.loads((EXPORT / "pathryoshka.json").read_text())
    widths = {"full": facts["width"]} | {str(width): width for width in facts["widths"]}
    patch = tuple(facts["size"] // side for side in facts["grid"])

    @register_encoder(
        "pathryoshka",
        output_variants={name: {"encode_dim": width} for name, width in widths.items()},
        default_output_variant="full",
        input_size=facts["size"],
        patch_size=patch,
        supports_variable_input_size=False,
        supported_spacing_um=None,  # an export does not say at which resolution it was trained
        default_spacing_um=0.5,
        precision="fp32",
        source=facts["model_id"],
    )
    class PathryoshkaTileEncoder(TimmTileEncoder):
        def __init__(self, *, output_variant: str | None = None) -> None:
            self._output_variant = resolve_requested_output_variant(
                output_variant, default="full", allowed=tuple(widths)
            )
            self._width = widths[self._output_variant]
            super().__init__(f"local-dir:{EXPORT}", output_variant=output_variant)

        def encode_tiles(self, batch: torch.Tensor) -> torch.Tensor:
            return super().encode_tiles(batch)[:, : self._width]

        @property
        def encode_dim(self) -> int:
            return self._width

        def _dense_patch_size(self) -> tuple[int, int]:  # slide2vec asks `patch_embed`, which only a ViT has
            return patch

        def encode_tiles_dense(self, batch: torch.Tensor) -> torch.Tensor:
            features = self._model.forward_features(batch)
            return features if features.ndim == 4 else super().encode_tiles_dense(batch)  # a CNN's are a grid already
