"""python tools/export_program.py student.pt2 [width]: a torch.export program, for torch.export.load; any batch size."""

import sys

import torch
from student import student

model, _ = student(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
views = torch.zeros(2, 3, model.facts["size"], model.facts["size"])
with torch.no_grad():
    program = torch.export.export(model, (views,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
torch.export.save(program, sys.argv[1])
