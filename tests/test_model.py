"""What is kept beside the step: the moving average of the weights, and the sums that are divided once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pathryoshka import config
from pathryoshka.distill.measure import reduce_metrics
from pathryoshka.distill.model import Ema, build_module
from pathryoshka.recipes import recipe_by_name


def test_metrics_are_divided_once() -> None:
    rows = [{"loss": (6, 2), "term/a/summary/4": (1, 2), "nonfinite/loss": (0, 1)}]
    rows += [{"loss": (1, 5), "term/a/summary/8": (0, 0), "nonfinite/loss": (1, 1)}]
    steps = [{name: torch.tensor(pair).float() for name, pair in row.items()} for row in rows]
    assert reduce_metrics(steps) == {"loss": 1.0, "term/a/summary/4": 0.5, "nonfinite/loss": 1.0}
    assert reduce_metrics([]) == {}


def test_the_moving_average_is_the_sum_it_stands_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, decay = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).bfloat16(), 0.9
    want = {k: v.double().numpy().copy() for k, v in module.state_dict().items()}
    ema = Ema(module, decay)
    for _ in range(5):
        with torch.no_grad():
            for value in module.state_dict().values():
                value.add_(torch.rand(value.shape).to(value) if value.is_floating_point() else 1)
        ema.update(module)
        now = {k: v.double().numpy() for k, v in module.state_dict().items()}
        want = {k: now[k] if "num_batches" in k else decay * want[k] + (1 - decay) * now[k] for k in want}
    ema.save(tmp_path / "ema.safetensors")
    again = Ema(module, decay)
    again.load(tmp_path / "ema.safetensors")
    for name, value in again.state.items():
        np.testing.assert_allclose(value.double().numpy(), want[name], rtol=1e-5, atol=1e-6)
    assert again.state["0.weight"].dtype == torch.float32 and int(again.state["1.num_batches_tracked"]) == 5
    with pytest.raises(ValueError, match="set train.zero_stage to 0, 1 or 2"):
        ema.update(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)))


def test_a_run_without_losses_of_tokens_has_no_heads_for_them_and_needs_none() -> None:
    run = config.make_run(config.overlay(recipe_by_name("debug").model_dump(), {"loss": {"kinds": {"tokens": 0.0}}}))
    assert run.kinds == ("summary",)
    module = build_module(run, {"mock0": (64, 48), "mock1": (96, 32)})
    assert module.heads.dims == {"mock0": {"summary": 64}, "mock1": {"summary": 96}}
    views, none = torch.zeros(3, 32, 32, 3, dtype=torch.uint8), torch.zeros(3, 0, dtype=torch.int32)
    (preds,) = module(views, none, run.student.widths, ())
    assert {kind for teachers in preds.values() for kinds in teachers.values() for kind in kinds} == {"summary"}
    sum(p["summary"].sum() for teachers in preds.values() for p in teachers.values()).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is not None for parameter in module.heads.parameters())
    with pytest.raises(config.ConfigError, match="gives neither summary nor tokens a weight"):
        config.make_run(config.overlay(run.model_dump(), {"loss": {"kinds": {"summary": 0.0}}}))
