"""Tiny exported students of four kinds, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pathryoshka import config
from pathryoshka.evaluate.scores import Cost, DataSet, Row, Scores
from pathryoshka.export.seen import Seen
from pathryoshka.export.write import write_export
from pathryoshka.student.encoder import StudentEncoder, build_student
from pathryoshka.student.heads import Heads
from pathryoshka.teachers import standardize

CFG = config.Storage()
SIZE = 32
TINY = {"patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3}
DIMS = {"uni2_h": {"summary": 12, "tokens": 8}, "lite0": {"summary": 16, "tokens": 16}}
TEACHERS: dict[str, dict[str, Any]] = {
    "uni2_h": {"licence": "CC-BY-NC-ND-4.0", "num_params": 681_390_000, "summary_dim": 12, "token_dim": 8,
               "terms": {"derivatives": False, "commercial": False, "redistribution": True, "source": "its card"},
               "fingerprint": {"weights": "ab" * 32}, "node": "secret-host", "pid": 17},
    "lite0": {"licence": "Apache-2.0", "num_params": 3_370_000, "summary_dim": 16, "token_dim": 16, "fingerprint": {},
              "terms": {"derivatives": True, "commercial": True, "redistribution": True, "source": "its page"}},
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "vit": {"model": "vit_tiny_patch16_224", "model_args": TINY, "widths": (16, 32, 48)},
    "vit_avg": {"model": "vit_tiny_patch16_224", "model_args": TINY, "widths": (16, 48), "pool": "avg"},
    "registers": {"model": "vit_small_patch14_reg4_dinov2", "model_args": {**TINY, "patch_size": 8}, "widths": (48,)},
    "conv": {"model": "mobilenetv3_small_050", "widths": (64, 1024)},
}


def student_of(name: str, seed: int = 0) -> tuple[StudentEncoder, config.Student]:
    torch.manual_seed(seed)
    cfg = config.Student(**MODELS[name])
    student = build_student(cfg, SIZE)
    with torch.no_grad():  # as training leaves it: norms and biases are no longer ones and zeros
        for p in student.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return student, cfg


def standardisers() -> dict[tuple[str, str], standardize.Standardiser]:
    rng = np.random.default_rng(0)
    fitted = {}
    for teacher, kinds in DIMS.items():
        for kind, dim in kinds.items():
            moments = standardize.Moments(dim)
            moments.update(rng.standard_normal((200, dim)) @ rng.standard_normal((dim, dim)) + 3)
            fitted[teacher, kind] = standardize.fit(moments, "phi_s" if kind == "tokens" else "per_channel")
    return fitted


def heads_of(student: StudentEncoder, cfg: config.Student, hidden: int = 0, kind: Any = "separate") -> Heads:
    torch.manual_seed(1)
    return Heads(cfg.widths, DIMS, config.Heads(kind=kind, hidden=hidden), student.token_width)


def golden() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), dtype=np.uint8)


def some_scores() -> Scores:
    facts: dict[str, Any] = {
        "dataset": "glands",
        "protocol": "linear",
        "num_tiles": 90,
        "num_groups": 30,
        "unit": "patient",
    }
    found = (("student", "student", 16, 0.71), ("student", "student", 48, 0.74), ("lite0", "teacher", 16, 0.8))
    rows = [
        Row.model_validate(
            {**facts, "encoder": name, "kind": kind, "width": w, "score": x, "low": x - 0.05, "high": x + 0.05}
            | {"error": 0.02, "freedom": 29}
        )
        for name, kind, w, x in found
    ]
    dataset = DataSet(
        name="glands",
        labels={"a": 50, "b": 40},
        unit="patient",
        num_tiles=90,
        num_groups=30,
        num_folds=5,
        num_scored=90,
        num_unlabelled=0,
        num_failed=0,
        phantom=True,
    )
    costs = (Cost(encoder="student", kind="student", width=48, num_params=10, gflop=0.1),)
    return Scores(
        rows=tuple(rows), differences=(), datasets=(dataset,), costs=costs, widths=(16, 48), notes=("mind this",)
    )


def export(to: Path | str, name: str = "vit", **over: Any) -> str:
    student, cfg = student_of(name)
    given: dict[str, Any] = {
        "student": student,
        "heads": heads_of(student, cfg),
        "standardisers": standardisers(),
        "run": config.Run(name="tiny", student=cfg, views=config.Views(size=SIZE), export=config.Export(licence="mit")),
        "teachers": TEACHERS,
        "scores": some_scores(),
        "golden": golden(),
        "seen": Seen(b"k" * 32, frozenset({b"n" * 16}), np.array([5, 9], np.uint64), 2),
        "to": str(to),
        "cfg": CFG,
        **over,
    }
    return write_export(**given)


def z_of(student: StudentEncoder, views: np.ndarray) -> torch.Tensor:
    with torch.inference_mode():
        return student.eval()(student.normalise(torch.from_numpy(views)))[0]
