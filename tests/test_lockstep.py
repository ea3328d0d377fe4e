"""Several students on one stream are what each would be alone, also after a kill."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pathryoshka import config, storage
from pathryoshka.config import ConfigError
from pathryoshka.distill import checkpoint, fit
from pathryoshka.distill.checkpoint import Ref
from pathryoshka.distill.learner import Entrant
from pathryoshka.distill.metrics import read_metrics
from pathryoshka.recipes import recipe_by_name
from pathryoshka.runs import results
from pathryoshka.runs.driver import NotFinite, refuse_unlike
from pathryoshka.runs.job import distill, distill_together
from pathryoshka.session import ray_session
from pathryoshka.teachers import standardize
from pathryoshka.teachers.standardize import Moments
from pathryoshka.tiles.phantom import write_phantom
from tests.runs import settings, short_tmp
from tests.test_checkpoint import attempt, write

CFG = config.Storage()
OTHER: dict[str, Any] = {
    "optim": {"lr": 3e-3},
    "student": {"widths": [8, 48], "heads": {"kind": "tied"}},
    "loss": {"weights": {"mock0": 0.3}},
    "standardise": {"summary": "global", "num_views": 128},
}


def run_of(folder: Path, name: str, **over: Any) -> config.Run:
    if not (folder / "tiles").exists():
        write_phantom(str(folder / "tiles"), CFG, num_tiles=200, num_patients=5, num_sites=2, size=48)
    tree = settings(str(folder / "runs"), str(folder / "tiles"), name=name, data={"deterministic": True})
    tree = config.overlay(tree, {"plan": {"num_views": 384}, "train": {"num_workers": 1}})
    return config.make_run(config.overlay(recipe_by_name("debug").model_dump(), config.overlay(tree, over)))


def test_runs_that_need_another_stream_are_refused_by_field(tmp_path: Path) -> None:
    first = run_of(tmp_path, "a")
    refuse_unlike((first, run_of(tmp_path, "b", **OTHER), run_of(tmp_path, "c", train={"seed": 1})))
    for over, words in (
        ({"views": {"seed": 3}}, "runs a and b differ in views.seed"),
        ({"plan": {"num_views": 480}}, "differ in plan.num_views"),
        ({"train": {"log_every": 3}}, "differ in train.log_every"),
        ({"loss": {"kinds": {"tokens": 0.0}}}, "need other features"),
        ({"student": {"model_args": {"patch_size": 16, "embed_dim": 48, "depth": 2}}}, "need other features"),
    ):
        with pytest.raises(ConfigError, match=words):
            refuse_unlike((first, run_of(tmp_path, "b", **over)))
    with pytest.raises(ConfigError, match="names of their own"):
        refuse_unlike((first, first))


def test_whose_numbers_were_not_finite_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(NotFinite("the loss was not finite", ["a", "b"])))
    assert (str(error), error.runs) == ("the loss was not finite", ("a", "b"))


def test_they_continue_from_the_last_step_that_all_have(tmp_path: Path) -> None:
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    for uri in (a, b):
        attempt(uri, 1)
        write(uri, 5, 1)
    write(a, 10, 1)
    assert checkpoint.common([a, b], CFG) == [Ref(5, 1), Ref(5, 1)]
    for uri in (a, b):
        checkpoint.record_attempt(uri, 2, CFG, at_most=5)
    assert checkpoint.common([a, b], CFG) == [Ref(5, 1), Ref(5, 1)]
    write(a, 15, 2)  # and not on from step 10 of the first attempt, which nobody follows
    assert checkpoint.common([a, b], CFG) == [Ref(5, 1), Ref(5, 1)]
    write(b, 15, 2)
    assert checkpoint.common([a, b], CFG) == [Ref(15, 2), Ref(15, 2)]
    assert checkpoint.common([a, str(tmp_path / "new")], CFG) == [None, None]


def test_standardisers_that_are_alike_are_fitted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples: list[int] = []
    fits: list[str] = []

    def sample(run: config.Run, stream: Any) -> Any:
        samples.append(run.standardise.num_views)
        moments = Moments(4)
        x = np.random.default_rng(0).normal(size=(64, 4))
        moments.update(x)
        return {("mock0", "summary"): moments}, {("mock0", "summary"): x.astype(np.float32)}

    def counted(moments: Moments, kind: Any, kept: np.ndarray) -> Any:
        fits.append(kind)
        return standardize.fit(moments, kind, kept)

    monkeypatch.setattr(fit, "sample", sample)
    monkeypatch.setattr(fit, "standardize", SimpleNamespace(fit=counted, save=standardize.save))
    over: list[dict[str, Any]] = [{}, {"optim": {"lr": 3e-3}}, {"standardise": {"summary": "global"}}]
    runs = [run_of(tmp_path, name, **one) for name, one in zip("abc", over, strict=True)]
    entrants = [Entrant(run, checkpoint.uri_of(run), 1) for run in runs]
    fit.fit_standardisers(entrants, None, {})  # type: ignore[arg-type]
    assert len(samples) == 1 and fits == ["phi_s", "global"]
    first, second, third = (storage.read_bytes(f"{e.run_uri}/standardisers.safetensors", CFG) for e in entrants)
    assert first == second != third


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    os.environ["RAY_TMPDIR"] = str(short_tmp())
    with ray_session(10):
        yield


@pytest.mark.full
@pytest.mark.timeout(900)
def test_students_in_lock_step_are_what_each_is_alone(session: None, tmp_path: Path) -> None:
    alone = [run_of(tmp_path, "alone-a"), run_of(tmp_path, "alone-b", **OTHER)]
    for run in alone:
        distill(run, say=lambda _: None)
    together = [run_of(tmp_path, "a"), run_of(tmp_path, "b", **OTHER)]
    said: list[str] = []
    out = distill_together(together, say=said.append)
    assert [result.checkpoint[:9] for result in out] == ["00000008-", "00000008-"]
    assert any(line.startswith("a: step 8/8") for line in said) and any(line.startswith("b: step 8") for line in said)
    for mine, other in zip(together, alone, strict=True):
        weights = [results.final_weights(run, tmp_path / f"weights-{run.name}") for run in (mine, other)]
        assert weights[0].keys() == weights[1].keys()
        for key, value in weights[0].items():
            assert torch.equal(value, weights[1][key]), key
        losses = [[line["loss"] for line in read_metrics(checkpoint.uri_of(run), CFG)] for run in (mine, other)]
        assert losses[0] == losses[1]
    # one of them loses its last checkpoint: both go on from step 5, to the same end
    before = results.final_weights(together[0], tmp_path / "before")
    storage.delete(storage.join(checkpoint.folder(checkpoint.uri_of(together[1])), out[1].checkpoint), CFG)
    said.clear()
    distill_together(together, say=said.append)
    assert sum("continuing from step 5" in line for line in said) == 2
    after = results.final_weights(together[0], tmp_path / "after")
    assert all(torch.equal(value, after[key]) for key, value in before.items())
