"""The student that embeds, on a GPU: what it says on the CPU, in float32 and in bfloat16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pathryoshka import config
from tests.exports import SIZE, export

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="NO GPU HERE: embedding on one was not tested"),
]


@pytest.mark.parametrize("name", ["vit", "conv"])
@pytest.mark.parametrize(("precision", "least"), [("float32", 0.9999), ("bfloat16", 0.99)])
def test_the_same_vectors_as_on_the_cpu(tmp_path: Path, name: str, precision: str, least: float) -> None:
    from pathryoshka.embedding.student import Student

    export(tmp_path / "export", name)
    views = np.random.default_rng(0).integers(0, 256, (33, SIZE, SIZE, 3), dtype=np.uint8)
    width = 48 if name == "vit" else 64
    on_cpu, on_gpu = (
        Student(str(tmp_path / "export"), config.Storage(), width=width, device=device, precision=exactly)
        for device, exactly in (("cpu", "float32"), ("cuda", precision))
    )
    cosines = (on_cpu.embed(views) * on_gpu.embed(views)).sum(1)
    assert cosines.min() > least
