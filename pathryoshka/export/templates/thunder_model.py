"""THUNDER (thunder-bench 0.2, timm 1.0.16 to 1.0.20): thunder benchmark custom:tools/thunder_model.py bach knn

PATHRYOSHKA_WIDTH cuts the embedding; PATHRYOSHKA_EXPORT names the exported folder where this file was moved out of it.
"""

import os
import sys
from pathlib import Path

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
        self.emb_dim_seg = min(self.student.width, facts["token_width"])
        self.vlm = False

    def forward(self, x):
        return self.student(x)

    def get_transform(self):
        return self.transform

    def get_linear_probing_embeddings(self, x):
        return self.student(x)

    def get_segmentation_embeddings(self, x):
        return self.student.tokens(x)
