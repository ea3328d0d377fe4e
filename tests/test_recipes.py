"""The recipes are complete, marked, and of the sizes that they claim."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable

import pytest
import timm
import torch

from pathryoshka import config, recipes
from pathryoshka.student.encoder import build_student
from pathryoshka.teachers import zoo


def num_params(student: config.Student, size: int) -> int:
    """Parameters of the student without classifier, by timm alone; built without memory."""
    args = {"img_size": size} if student.model.startswith("vit") else {}  # a convolutional trunk takes any size
    with torch.device("meta"):
        model = timm.create_model(student.model, num_classes=0, **args, **student.model_args)
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", list(recipes.RECIPES))
def test_a_recipe_is_complete(name: str) -> None:
    run = recipes.recipe_by_name(name)
    assert run.name == run.recipe == name
    assert run == config.make_run(run.model_dump())  # nothing slipped past validation
    assert run == recipes.recipe_by_name(name)
    assert len(run.teachers.models) >= 2
    for teacher in run.teachers.models.values():
        assert zoo.row_by_name(teacher.model)
    with torch.device("meta"):
        student = build_student(run.student.model_copy(update={"start": "random"}), run.views.size)
    assert run.student.widths[-1] == student.width
    assert run.teachers.tokens_per_view <= student.grid[0] * student.grid[1]


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(config.ConfigError, match="unknown recipe 'papr_b'; did you mean paper_b?"):
        recipes.recipe_by_name("papr_b")
    with pytest.raises(config.ConfigError, match="there are demo, debug, paper_b, paper_s"):
        recipes.recipe_by_name("xyz")


def test_paper_b_is_86_to_92_percent_smaller_than_each_teacher() -> None:
    run = recipes.paper_b()
    student = num_params(run.student, run.views.size)
    smaller = {}
    for name, teacher in run.teachers.models.items():
        smaller[name] = 1 - student / zoo.row_by_name(teacher.model).num_params
    assert set(smaller) == {"virchow2", "uni2_h", "h_optimus_1"}
    # in whole per cent, as the paper says it
    assert all(86 <= round(100 * share) <= 92 for share in smaller.values()), smaller
    assert round(100 * min(smaller.values())) == 86 and round(100 * max(smaller.values())) == 92, smaller


def test_the_paper_students_have_the_sizes_of_the_paper() -> None:
    b, s = recipes.paper_b(), recipes.paper_s()
    assert num_params(b.student, b.views.size) / 1e6 == pytest.approx(87, rel=0.02)
    assert num_params(s.student, s.views.size) / 1e6 == pytest.approx(22, rel=0.02)
    for run in (b, s):
        with torch.device("meta"):
            model = timm.create_model(run.student.model, num_classes=0, img_size=run.views.size)
        assert model.patch_embed.grid_size == (16, 16) and model.patch_embed.patch_size == (14, 14)
        assert model.reg_token.shape[1] == 4


def test_paper_s_differs_from_paper_b_only_in_student_and_rate() -> None:
    b, s = recipes.paper_b().model_dump(), recipes.paper_s().model_dump()
    changed = {f"{k}.{j}" for k in b if isinstance(b[k], dict) for j in b[k] if b[k][j] != s[k][j]}
    assert changed == {"student.model", "student.widths", "optim.lr"}


@pytest.mark.parametrize("recipe", [recipes.paper_b, recipes.paper_s])
def test_every_value_of_the_papers_recipes_is_marked(recipe: Callable[[], config.Run]) -> None:
    lines = inspect.getsource(recipe).splitlines()
    leaves = 0
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.keyword):
            values = [node.value]
        elif isinstance(node, ast.Dict) and all(isinstance(k, ast.Constant) for k in node.keys):
            values = node.values
        else:
            continue
        for value in values:
            calls_a_section = isinstance(value, ast.Call)
            if calls_a_section or (isinstance(value, ast.Dict) and value.end_lineno != value.lineno):
                continue  # not a leaf
            leaves += 1
            line = lines[(value.end_lineno or 1) - 1]
            assert "# paper" in line or "# ours" in line, line.strip()
    assert leaves >= 5


def test_demo_and_debug_need_no_gpu_and_no_download() -> None:
    for run in (recipes.demo(), recipes.debug()):
        assert run.train.device == "cpu" and run.student.start == "random"
        assert {t.device for t in run.teachers.models.values()} <= {"cpu", "mock"}
        assert run.plan.num_views >= 10 * run.train.global_batch
