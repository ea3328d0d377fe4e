"""The encoders that are published for transformers, judged by it: its own class with random weights, saved by itself,
loaded as a user's download is; features must be those of its own forward pass. No remote code is run: Hibou's network
is transformers' DINOv2 with registers, but for the resampling of positions, which 224 px do not need.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pathryoshka import config
from pathryoshka.teachers.encoder import load_encoder
from pathryoshka.teachers.zoo import ROWS

transformers = pytest.importorskip(
    "transformers", reason="pip install 'pathryoshka[dev]' brings transformers, the judge"
)

GIANT = {"hidden_size": 1536, "num_attention_heads": 24, "use_swiglu_ffn": True, "patch_size": 14, "image_size": 518}
CASES = {
    "phikon": ("ViT", {"num_hidden_layers": 2}),
    "phikon_v2": ("Dinov2", {"hidden_size": 1024, "num_attention_heads": 16, "patch_size": 16, "num_hidden_layers": 2}),
    "midnight_12k": ("Dinov2", {**GIANT, "num_hidden_layers": 1}),  # 1370 positions for 518 px, fed 224
    "hibou_b": ("Dinov2WithRegisters", {"use_swiglu_ffn": True, "patch_size": 14, "num_hidden_layers": 2}),
    "hibou_l": (
        "Dinov2WithRegisters",
        {"hidden_size": 1024, "num_attention_heads": 16, "use_swiglu_ffn": True, "patch_size": 14,
         "num_hidden_layers": 1},
    ),
}  # fmt: skip


def randomised(model: Any) -> Any:
    """Nothing is left at an initial zero or one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            scale = 0.7 / tensor[0].numel() ** 0.5 if tensor.ndim > 1 and "embeddings" not in name else 0.2
            tensor.add_(torch.randn(tensor.shape, generator=generator) * scale)
    return model.eval()


@pytest.mark.parametrize("name", CASES)
def test_features_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    kind, settings = CASES[name]
    made = getattr(transformers, f"{kind}Config")(**{"image_size": 224, **settings})
    model = randomised(getattr(transformers, f"{kind}Model")(made))
    model.save_pretrained(tmp_path)
    teacher = config.Teacher(model=name, weights=str(tmp_path), device="cpu")
    encoder = load_encoder(name, teacher, (224 // row.stride, 224 // row.stride), "cpu")
    assert encoder.row.depth == settings["num_hidden_layers"]
    views = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    with torch.no_grad():
        hidden = model(pixel_values=encoder.pixels(torch.from_numpy(views))).last_hidden_state
    tokens = hidden[:, row.num_prefix_tokens :]
    summary = hidden[:, 0] if row.summary == "cls" else torch.cat([hidden[:, 0], tokens.mean(1)], 1)
    out = encoder(views)
    torch.testing.assert_close(out["summary"], summary, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out["tokens"], tokens, rtol=1e-4, atol=1e-4)
