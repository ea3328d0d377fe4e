"""Twins: what they differ in, that a weight of 0 is as good as absence, the table, and a whole small ablation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pathryoshka import config
from pathryoshka.ablate.published import PUBLISHED, published
from pathryoshka.ablate.report import render
from pathryoshka.ablate.run import run_ablation, scored
from pathryoshka.ablate.table import as_csv, as_lines, as_tree, conclude
from pathryoshka.ablate.twins import Ablate, load_ablation, runs_of, twins
from pathryoshka.distill.losses import coefficients, combine, distill_terms
from pathryoshka.evaluate.across import Side
from pathryoshka.evaluate.record import Kept, Place
from pathryoshka.evaluate.tally import mean_of
from pathryoshka.recipes import recipe_by_name
from pathryoshka.storage.server import S3Server
from pathryoshka.tiles.phantom import write_phantom
from tests.runs import Driver, settings

EVERYTHING = Ablate(what=("single", "flat", "widths", "raw", "weights"), published=tuple(PUBLISHED), seeds=2)


# ---------------------------------------------------------------- what is trained


def test_every_twin_is_the_base_run_but_for_what_it_is_about() -> None:
    base = recipe_by_name("demo")
    runs = runs_of(EVERYTHING, base)
    names = [f"only-lite{n}" for n in range(3)] + ["flat", "width-48", "width-96", "width-192", "raw"]
    names += [*(f"more-lite{n}" for n in range(3)), *PUBLISHED]
    assert list(runs) == ["all", *names]
    for name, (first, second) in runs.items():
        assert (first.name, second.name) == (f"{name}-s0", f"{name}-s1")
        assert (first.train.seed, second.train.seed) == (0, 1)
        assert first.model_copy(update={"name": "", "train": second.train}) == second.model_copy(update={"name": ""})
        for section in ("data", "views", "plan", "teachers", "store", "optim"):
            assert getattr(first, section) == getattr(base, section), f"{name} changes {section}"
    (alone, _), (flat, _), (narrow, _) = runs["only-lite1"], runs["flat"], runs["width-96"]
    assert runs["more-lite2"][0].loss.weights == {"lite2": 4}
    twice = config.make_run(config.overlay(base.model_dump(), {"loss": {"weights": {"lite2": 0.5}}}))
    assert runs_of(EVERYTHING, twice)["more-lite2"][0].loss.weights == {"lite2": 2}
    assert alone.loss.weights == {"lite0": 0, "lite2": 0}
    assert {w for w, weight in flat.loss.widths.items() if weight} == {384}
    assert {w for w, weight in narrow.loss.widths.items() if weight} == {96}


def test_a_teacher_or_width_of_weight_0_is_as_good_as_absent() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, 8, generator=generator, requires_grad=True)
    maps = {(w, t): torch.randn(w, 5, generator=generator) for w in (4, 8) for t in "ab"}
    targets = {t: {"summary": torch.randn(6, 5, generator=generator)} for t in "ab"}

    def gradient(cfg: config.Loss, widths: tuple[int, ...], teachers: str) -> torch.Tensor:
        preds = {w: {t: {"summary": z[:, :w] @ maps[w, t]} for t in teachers} for w in widths}
        weight = {t: torch.ones(6) for t in teachers}
        loss = combine(distill_terms(preds, targets, cfg, {"a": 1.0, "b": 1.0}, weight), weight, cfg)
        return torch.autograd.grad(loss, z)[0]

    single = config.Loss(weights={"b": 0.0})
    torch.testing.assert_close(gradient(single, (4, 8), "ab"), gradient(config.Loss(), (4, 8), "a"))
    flat = config.Loss(widths={4: 0.0})
    torch.testing.assert_close(gradient(flat, (4, 8), "ab"), gradient(config.Loss(), (8,), "ab"))
    assert coefficients([(4, "a", "summary"), (8, "a", "summary")], flat) == {
        (4, "a", "summary"): 0,
        (8, "a", "summary"): 1,
    }


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_recipes_are_runs_and_say_where_they_are_from(name: str) -> None:
    recipe = published(name)
    run = config.make_run(config.overlay(recipe_by_name("paper_s").model_dump(), recipe.over))
    assert run.student.widths[-1] == 384 and recipe.source and recipe.apart
    assert any(twin.name == name for twin in twins(EVERYTHING, run))


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match="unknown published recipe 'litfm'; did you mean litefm"):
        published("litfm")
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump({"recipe": "debug", "ablate": {"seed": 3}}))
    with pytest.raises(config.ConfigError, match="unknown key ablate.seed; did you mean ablate.seeds"):
        load_ablation(file)
    file.write_text(yaml.safe_dump({"recipe": "debug", "ablate": {"what": ["singel"]}}))
    with pytest.raises(config.ConfigError, match="ablate.what"):
        load_ablation(file)


# ---------------------------------------------------------------- what is said


def side(name: str, level: float, shift_narrow: float = -0.02, seeds: int = 3) -> Side:
    """Scores of `level` on two data sets of 20 patients; `shift_narrow` at width 8."""
    out = []
    for seed in range(seeds):
        found: dict[Place, Kept] = {}
        for dataset, ease in (("glas", 0.0), ("crc", -0.1)):
            hard = np.random.default_rng(len(dataset)).normal(0, 0.1, 20)
            for width, shift in ((8, shift_narrow), (64, 0.0)):
                own = np.random.default_rng((seed, width, round(1e3 * level))).normal(0, 0.01, 20)
                profile = mean_of(level + ease + shift + hard + own, np.arange(20), 20).profile
                for protocol in ("linear", "knn"):
                    found[dataset, protocol, "student", width] = Kept("student", profile, "g")
                    if name == "all" and seed == 0:
                        low = mean_of(0.5 + hard, np.arange(20), 20).profile
                        found[dataset, protocol, "random", width] = Kept("random", low, "g")
                        found[dataset, protocol, "t0", 1280] = Kept("teacher", profile, "g")
        out.append(found)
    return Side(name, tuple(out))


def test_questions_are_answered_by_name() -> None:
    levels = {"all": 0.8, "only-t0": 0.7, "only-t1": 0.76, "only-t2": 0.72, "flat": 0.81, "raw": 0.6, "width-8": 0.75}
    found = conclude({n: side(n, level) for n, level in levels.items()}, ["t0", "t1", "t2"], (8, 64), {"x-s0": "why"})
    linear = {q.says: q for q in found.questions if q.protocol == "linear"}
    median = linear["all teachers against the median single-teacher twin, 64 numbers"]
    assert [c.dataset for c in median.contrasts] == ["glas", "crc"]
    assert median.overall.mean.value == pytest.approx(0.08, abs=0.01) and median.overall.mean.low > 0
    best = linear["all teachers against the best single-teacher twin, 64 numbers"]
    assert best.overall.mean.value == pytest.approx(0.04, abs=0.01)
    assert linear["first 8 of 64 numbers against all"].overall.mean.value == pytest.approx(-0.02, abs=0.01)
    assert linear["nested against not nested, 64 numbers"].overall.mean.value == pytest.approx(-0.01, abs=0.01)
    assert linear["nested against a student of width 8 alone"].overall.mean.value == pytest.approx(0.05, abs=0.01)
    assert linear["all teachers against raw, 64 numbers"].overall.mean.value == pytest.approx(0.2, abs=0.01)
    assert linear["all teachers against random weights, 8 numbers"].overall.mean.low > 0.2
    assert "all teachers, 64 numbers, against the teacher t0 itself" in linear
    assert {q.protocol for q in found.questions} == {"linear", "knn"}
    said = "\n".join(as_lines(found))
    assert "not trained: x-s0: why" in said and "better; seeds alone" in said
    assert json.loads(json.dumps(as_tree(found)))["failed"] == {"x-s0": "why"}
    assert len(as_csv(found).splitlines()) == 1 + len(levels) * 2 * 2 * 2


def test_the_page_answers_in_its_first_sentence_and_names_what_failed() -> None:
    levels = {"all": 0.8, "only-t0": 0.7, "only-t1": 0.76, "only-t2": 0.72, "flat": 0.81}
    found = conclude(
        {n: side(n, level) for n, level in levels.items()}, ["t0", "t1", "t2"], (8, 64), {"raw-s0": "<why>"}
    )
    html = render("twins", found, {"all": "all teachers", "flat": "full width only"})
    lead = html.split('class="lead">')[1].split("</p>")[0]
    assert "All teachers against the median single-teacher twin, 64 numbers" in lead and "better" in lead
    assert html.count("<svg") == 4 and "raw-s0: &lt;why&gt;" in html
    assert "http" not in html.split("</style>")[1].replace("http://www.w3.org", "")


def test_one_seed_and_no_single_teacher_leave_questions_out() -> None:
    found = conclude({"all": side("all", 0.8, seeds=1)}, ["t0"], (8, 64), {})
    assert not [q for q in found.questions if "single" in q.says or "nested" in q.says]
    assert as_tree(found)["scores"][0]["spread"] is None


# ---------------------------------------------------------------- for real, in small


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_ablation_is_trained_once(s3: S3Server, tmp_path: Path) -> None:
    uri = f"s3://{s3.bucket}/ablate"
    split = {"distil": 0.6, "test": 0.4}
    write_phantom(f"{uri}/tiles", config.Storage(), num_tiles=300, num_patients=10, num_sites=1, size=48, splits=split)
    tree = settings(f"{uri}/runs", f"{uri}/tiles", name="twins", data={"splits": ["distil"]}, plan={"num_views": 480})
    over = {
        "evaluate": {"tiles": [f"{uri}/tiles"], "splits": ["test"], "folds": 3, "protocols": []},
        "store": {"uri": f"{uri}/store"},
        "views": {"per_tile": 2},
        "ablate": {"what": ["single"], "seeds": 2, "lockstep": 6},
    }
    tree = config.overlay(tree, over)
    driver = Driver(tree, tmp_path, verb=("ablate",)).start()
    assert driver.wait(800) == 0, driver.text()[-3000:]
    said = driver.text()
    assert "6 students of 3 twins, 6 to train" in said
    assert "all teachers against the median single-teacher twin, 48 numbers" in said
    file = tmp_path / "run.yaml"
    section, base = load_ablation(file)
    runs = runs_of(section, base)
    assert all(scored(run) for some in runs.values() for run in some)
    again: list[str] = []
    found = run_ablation(section, base, say=again.append)
    assert again == ["ablation twins: 6 students of 3 twins, 0 to train"]
    assert not found.failed and {s.twin for s in found.scores} == {"all", "only-mock0", "only-mock1"}
