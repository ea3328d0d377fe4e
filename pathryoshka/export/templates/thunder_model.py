"""THUNDER (thunder-bench 0.2, timm 1.0.16 to 1.0.20): thunder benchmark custom:tools/thunder_model.py bach knn

WANDB_MODE=offline where there is no account. transformation_invariance and LoRA of THUNDER 0.2.2 take no custom model.
PATHRYOSHKA_WIDTH cuts the embedding; PATHRYOSHKA_EXPORT names the exported folder where this file was moved out of it.
"""

import os
import sys
from pathlib import Path

import torch
from thunder.models import PretrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parent))
from student import student


class PathryoshkaStudent(PretrainedModel):
    def __init__(self) -> None:
        super().__init__()
        self.student, self.transform = student(int(os.environ.get("PATHRYOSHKA_WIDTH", 0)))
        facts = self.student.facts
        self.name = f"pathryoshka_{facts['model_id'][:12]}_{self.student.width}"
        self.emb_dim = self.student.width
        self.vlm = False

    def forward(self, x):
        return self.student(x)

    def get_transform(self):
        return self.transform

    def get_linear_probing_embeddings(self, x):
        return self.student(x)

    def get_segmentation_embeddings(self, x):
        tokens = self.student.tokens(x)  # zeros up to `emb_dim`: THUNDER 0.2.2 tests with no other width
        return torch.nn.functional.pad(tokens, (0, self.emb_dim - tokens.shape[2]))
