"""python tools/export_onnx.py student.onnx [width]: for ONNX Runtime, any batch size (needs torch's onnx extra)."""

import sys

import torch
from student import student

model, _ = student(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
views = torch.zeros(2, 3, model.facts["size"], model.facts["size"])
torch.onnx.export(
    model, (views,), sys.argv[1], input_names=["views"], output_names=["embedding"],
    dynamic_shapes={"x": {0: torch.export.Dim("batch")}}, dynamo=True, external_data=False,
)  # fmt: skip
