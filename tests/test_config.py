"""The typed tree: what it refuses and with which sentence, how settings and files are laid over a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from pathryoshka import config, recipes


def nest(path: str, value: Any) -> dict[str, Any]:
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def sections(model: type[BaseModel], where: str = "") -> list[tuple[str, type[BaseModel]]]:
    """Every section of the tree with its dotted path, by walking the annotations."""
    found = [(where, model)]
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += sections(kind, f"{where}{name}.")
    return found


SECTIONS = [*sections(config.Run), ("teachers.models.a.", config.Teacher)]


@pytest.mark.parametrize(("where", "model"), SECTIONS, ids=[where or "run" for where, _ in SECTIONS])
def test_unknown_key_is_refused_with_the_nearest_name_at_every_depth(where: str, model: type[BaseModel]) -> None:
    for name in model.model_fields:
        wrong = f"{name}x"
        assert wrong not in model.model_fields
        with pytest.raises(config.ConfigError) as error:
            config.make_run(nest(f"{where}{wrong}", 1))
        assert str(error.value) == f"unknown key {where}{wrong}; did you mean {where}{name}?"


def test_unknown_key_far_from_every_name_lists_the_known_ones() -> None:
    with pytest.raises(config.ConfigError, match="unknown key optim.zzzz; known keys: lr, min_lr_share"):
        config.make_run({"optim": {"zzzz": 1}})


def test_the_walk_over_sections_sees_the_whole_tree() -> None:
    names = {where for where, _ in SECTIONS}
    spec = "data views plan teachers standardise student loss optim train storage evaluate export"
    assert {f"{name}." for name in spec.split()} < names
    assert "student.heads." in names


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("loss.weights.uni2_h=0.5", {"loss": {"weights": {"uni2_h": 0.5}}}),
        ("student.widths=[16, 32]", {"student": {"widths": [16, 32]}}),
        ("name=a=b", {"name": "a=b"}),
        ("data.tiles=s3://b/k", {"data": {"tiles": "s3://b/k"}}),
        ("views.flip=false", {"views": {"flip": False}}),
        ("teachers.models.x=null", {"teachers": {"models": {"x": None}}}),
        ("export.licence=", {"export": {"licence": ""}}),
    ],
)
def test_settings_are_paths_with_a_yaml_value(text: str, tree: dict[str, Any]) -> None:
    assert config.parse_setting(text) == tree


@pytest.mark.parametrize("text", ["noequals", "=3", "  =3", "a.b=[1", "a.b={x"])
def test_a_setting_that_cannot_be_read_is_a_sentence(text: str) -> None:
    with pytest.raises(config.ConfigError) as error:
        config.parse_setting(text)
    assert text in str(error.value) and "\n" not in str(error.value)


def test_settings_win_over_the_file_and_the_file_over_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("optim: {lr: 0.5, clip: 2.0}\nstudent: {ema: 0.9}\n")
    run = config.load_run("demo", file, ["optim.lr=0.25"])
    base = recipes.demo()
    assert (run.optim.lr, run.optim.clip, run.student.ema) == (0.25, 2.0, 0.9)
    assert run.optim.betas == base.optim.betas and run.student.widths == base.student.widths
    assert run.teachers == base.teachers


def test_the_file_may_name_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("recipe: paper_s\n")
    assert config.load_run("demo", file) == recipes.paper_s()


def test_teachers_are_added_changed_and_taken_out_by_name() -> None:
    run = config.load_run(
        "demo",
        None,
        ["teachers.models.lite1=null", "teachers.models.lite2.batch_size=5", "teachers.models.r.model=timm:resnet18"],
    )
    assert list(run.teachers.models) == ["lite0", "lite2", "r"]
    assert run.teachers.models["lite2"].batch_size == 5
    assert run.teachers.models["lite2"].model == "efficientnet_lite2"
    with pytest.raises(config.ConfigError, match="loss.weights names 'lite1', which is none of lite0, lite2"):
        config.load_run("demo", None, ["teachers.models.lite1=null", "loss.weights.lite1=2"])


@pytest.mark.parametrize("name", list(recipes.RECIPES))
def test_the_shown_tree_reads_back_to_the_same_run(name: str, tmp_path: Path) -> None:
    run = config.load_run(name, None, ["name=other", f"loss.widths.{recipes.RECIPES[name]().student.widths[0]}=0.5"])
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False))
    assert config.load_run("demo", file) == run
    assert config.make_run(json.loads(config.run_to_json(run))) == run


def test_the_saved_tree_is_stable() -> None:
    text = config.run_to_json(recipes.demo())
    assert text == config.run_to_json(config.make_run(json.loads(text)))
    top = list(json.loads(text))
    assert top == sorted(top)


def test_a_run_is_frozen_at_every_depth() -> None:
    run = recipes.demo()
    for section, field in ((run, "name"), (run.optim, "lr"), (run.student.heads, "kind")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, field, getattr(section, field))


@pytest.mark.parametrize("widths", [[64, 32], [32, 32], [], [0, 32], [-1, 3]])
def test_widths_must_ascend(widths: list[int]) -> None:
    with pytest.raises(config.ConfigError, match="student.widths must ascend without repeats"):
        config.make_run({"student": {"widths": widths}})


@pytest.mark.parametrize(
    ("workers", "micro", "batch", "advice"),
    [(2, 32, 100, 128), (3, 10, 100, 90), (1, 7, 3, 7), ([2, 3], 32, 64, 192), ([1, 4], 8, 100, 96)],
)
def test_a_global_batch_that_does_not_divide_names_one_that_does(
    workers: Any, micro: int, batch: int, advice: int
) -> None:
    tree = {"train": {"num_workers": workers, "micro_batch": micro, "global_batch": batch}}
    with pytest.raises(config.ConfigError, match=f"set train.global_batch={advice} or another micro_batch"):
        config.make_run(tree)
    tree["train"]["global_batch"] = advice
    run = config.make_run(tree)  # the advice is good for every allowed count
    assert all(advice % (n * micro) == 0 for n in run.worker_counts)


def test_worker_counts() -> None:
    assert config.Run(train=config.Train(num_workers=2)).worker_counts == (2,)
    assert config.Run(train=config.Train(num_workers=(1, 4), global_batch=1536)).worker_counts == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        (nest("views.scale", [0.9, 0.5]), "views.scale must be 0 < low <= high <= 1"),
        (nest("views.scale", [0.0, 0.5]), "views.scale must be 0 < low"),
        (nest("train.num_workers", 0), "train.num_workers must be a count or an ascending"),
        (nest("train.num_workers", [3, 2]), "train.num_workers must be a count or an ascending"),
        (nest("train.num_workers", "many"), "train.num_workers: Input should be a valid integer"),
        (nest("loss.weights.nobody", 1.0), "loss.weights names 'nobody', which is none of (none)"),
        (nest("loss.widths", {7: 1.0}), "loss.widths names 7, which is none of 64, 128"),
        (nest("loss.kinds.summry", 1.0), "loss.kinds.summry: Input should be 'summary' or 'tokens'"),
        (nest("student.widths", "16,32"), "student.widths: write a list in brackets, e.g. [a, b]; got '16,32'"),
        (nest("teachers.models.a", {"model": "x", "device": "gpu"}), "teachers.models.a.device: Input should be 'a"),
        (nest("teachers.models.a", {}), "teachers.models.a.model: Field required"),
        (nest("teachers.models", {"a.b": {"model": "x"}}), "a teacher's name is letters, digits"),
        (nest("name", "a/b"), "name is a folder in storage.root"),
        (nest("name", ".."), "name is a folder in storage.root"),
        (nest("optim.lr", 0), "optim.lr: Input should be greater than 0; got 0"),
        (nest("views", 3), "views is a section, not a value; set one of seed, size"),
    ],
)
def test_a_run_that_cannot_be_is_one_sentence_with_the_key(tree: dict[str, Any], sentence: str) -> None:
    with pytest.raises(config.ConfigError) as error:
        config.make_run(tree)
    assert sentence in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"a: [1", "not YAML"), (b"\xff\xfe\x00", "not YAML"), (b"- 1\n", "must be a mapping"), (None, "cannot read")],
)
def test_a_config_file_that_cannot_be_read_is_one_sentence(
    content: bytes | None, sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "run.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(config.ConfigError) as error:
        config.load_run("demo", file)
    assert sentence in str(error.value) and str(file) in str(error.value) and "\n" not in str(error.value)
