"""The rules of the house (see pathryoshka/__init__.py), read from the source: who may know whom, how long a room is.

An import counts wherever it stands, also inside a function, except below `if TYPE_CHECKING:`; relative imports are
resolved. "Reaches" adds what the imported rooms of this package import when they are loaded.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pathryoshka"
NO_RAY = [
    "tiles.plan",
    "tiles.views",
    "tiles.pairs",
    "features",
    "teachers.standardize",
    "teachers.encoder",
    "teachers.zoo",
    "teachers.own",
    "teachers.licences",
    "teachers.trunk",
    "teachers.table",
    "teachers.weights",
    "teachers.hub",
    "teachers.check",
    "student",
    "distill.losses",
    "distill.step",
    "evaluate.adam_probe",
    "benchmarks.layouts",
    "benchmarks.rows",
    "ablate.twins",
    "evaluate.folds",
    "evaluate.pca",
    "evaluate.protocols",
    "evaluate.scoring",
    "evaluate.statistics",
    "evaluate.tally",
    "sweep.space",
    "sweep.record",
    "sweep.worth",
    "search",
    "serve.client",
    "serve.door",
    "serve.gate",
    "serve.lookup",
    "serve.slides",
    "serve.tile",
]


def module_name(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def rooms() -> dict[str, ast.Module]:
    return {module_name(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def is_package(module: str) -> bool:
    return (ROOT / module.replace(".", "/") / "__init__.py").exists()


def nodes(tree: ast.AST, into_functions: bool) -> Iterator[ast.AST]:
    """Every node below `tree` that runs: not below `if TYPE_CHECKING:`, and not in functions unless asked."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not into_functions:
            continue
        yield node
        yield from nodes(node, into_functions)


@cache
def imports(module: str, tree: ast.Module, into_functions: bool = True) -> set[str]:
    """Full dotted names that a module imports; `from a import b` gives both `a` and `a.b`."""
    found: set[str] = set()
    for node in nodes(tree, into_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.split(".") if is_package(module) else module.split(".")[:-1]
                here = here[: len(here) - node.level + 1]
                base = ".".join([*here, base] if base else here)
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {str(value.value) for value in node.args if isinstance(value, ast.Constant)}
    return found


def inside(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def members(room: str) -> list[str]:
    full = f"pathryoshka.{room}"
    found = [module for module in rooms() if inside(module, full)]
    assert found, f"the house has no room {full}: tests/test_house.py is out of date"
    return found


def reaches(module: str) -> set[str]:
    """What is loaded when `module` is: its own imports anywhere, then the load-time imports of our rooms among them."""
    seen: set[str] = set()
    todo = [(module, True)]
    while todo:
        room, anywhere = todo.pop()
        for name in imports(room, rooms()[room], into_functions=anywhere):
            parents = [".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 2)]
            for full in parents:
                if full not in seen:
                    seen.add(full)
                    if full in rooms():
                        todo.append((full, False))
    return seen


def forbidden(room: str, *others: str) -> list[str]:
    return [
        f"{module} imports {name}"
        for module in members(room)
        for name in sorted(imports(module, rooms()[module]))
        for other in others
        if inside(name, other)
    ]


def test_the_walk_sees_relative_and_late_imports_but_not_those_for_types() -> None:
    tree = ast.parse(
        "from . import losses\nfrom .. import cli\nfrom ..tiles import plan as p\nimport a.b\n"
        "def f():\n    from ray import data\nif TYPE_CHECKING:\n    import torch\n"
    )
    found = imports("pathryoshka.distill.step", tree)
    assert {"pathryoshka.distill.losses", "pathryoshka.cli", "pathryoshka.tiles.plan", "a.b", "ray.data"} <= found
    assert "torch" not in found
    assert "ray.data" not in imports("pathryoshka.distill.step", tree, into_functions=False)
    assert "pathryoshka.distill.losses" in imports("pathryoshka.distill", ast.parse("from . import losses"))


@pytest.mark.parametrize(
    ("room", "others"),
    [
        ("teachers", ["student", "distill.losses"]),
        ("student", ["teachers", "distill.losses"]),
        ("distill.losses", ["teachers", "student"]),
        ("features", ["student", "distill"]),
        ("benchmarks", ["student", "teachers", "distill", "evaluate"]),
        ("distill", ["evaluate"]),
        ("evaluate", ["distill"]),
        *(
            (room, ["runs"])
            for room in (
                "storage",
                "tiles",
                "teachers",
                "features",
                "student",
                "distill",
                "evaluate",
                "export",
                "embedding",
                "search",
                "serve",
            )
        ),
    ],
)
def test_rooms_that_do_not_know_each_other(room: str, others: list[str]) -> None:
    assert not forbidden(room, *(f"pathryoshka.{other}" for other in others))


def test_nobody_imports_the_cli() -> None:
    verbs = [module for module in rooms() if module.startswith("pathryoshka.cli")]
    for room in verbs:
        who = {m for m, tree in rooms().items() if any(inside(n, room) for n in imports(m, tree))}
        assert who <= set(verbs), f"{who} import {room}"


def test_only_the_engine_imports_deepspeed() -> None:
    assert [m for m in rooms() if any(inside(n, "deepspeed") for n in imports(m, rooms()[m]))] == [
        "pathryoshka.distill.engine"
    ]


@pytest.mark.parametrize("room", NO_RAY)
def test_the_maths_does_not_import_ray(room: str) -> None:
    for module in members(room):
        assert "ray" not in reaches(module), f"{module} reaches ray"


@pytest.mark.parametrize("room", ["sweep.space", "sweep.record", "sweep.worth"])
def test_a_space_is_checked_without_torch(room: str) -> None:
    for module in members(room):
        assert not {"torch", "timm"} & reaches(module)


def test_nobody_but_the_verbs_imports_the_sweep() -> None:
    who = {m for m, tree in rooms().items() if any(inside(n, "pathryoshka.sweep") for n in imports(m, tree))}
    assert who - set(members("sweep")) == {"pathryoshka.cli.sweep", "pathryoshka.cli.submit"}


def test_an_exported_student_loads_without_ray_and_deepspeed() -> None:
    assert not {"ray", "deepspeed"} & reaches("pathryoshka.export.load")


@pytest.mark.parametrize("room", ["config", "storage", "recipes", "serve.client"])
def test_the_plain_rooms_import_neither_torch_nor_ray(room: str) -> None:
    for module in members(room):
        assert not {"torch", "ray", "timm"} & reaches(module)


def test_readers_and_the_controller_of_training_do_not_wait_for_torch() -> None:
    """They unpickle a stream, in a process of their own each."""
    code = "import sys, pathryoshka.distill.stream, pathryoshka.distill.checkpoint; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "timm", "deepspeed"} & set(loaded)


@pytest.mark.parametrize("driver", ["embedding.job", "serve.run"])
def test_a_student_in_onnx_runtime_waits_for_no_torch(driver: str) -> None:
    """Neither the driver nor the students do, in a process of their own each."""
    code = f"import sys, pathryoshka.{driver}, pathryoshka.embedding.onnx_student; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "timm", "scipy"} & set(loaded)


def test_the_service_starts_with_what_its_small_image_holds() -> None:
    """infra/docker/serve.Dockerfile leaves these out."""
    code = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "timm", "safetensors", "pandas", "scipy", "sklearn", "matplotlib", "ray.data"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
import pathryoshka.cli.serve, pathryoshka.serve.run, pathryoshka.embedding.onnx_student
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_walk_agrees_with_python() -> None:
    """What the reading of the source says about the plain rooms is what a fresh interpreter loads."""
    code = "import sys, pathryoshka.recipes, pathryoshka.storage, pathryoshka.tiles.plan; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"ray", "torch", "deepspeed", "timm"} & set(loaded)


def looks_for_a_scheme(tree: ast.AST) -> Iterator[ast.AST]:
    """Calls and comparisons that test a string for a scheme or cut it there, e.g. `uri.startswith("s3://")`."""
    cutters = {"startswith", "split", "rsplit", "partition", "rpartition", "removeprefix", "find", "index", "replace"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in cutters:
            probed = list(node.args)
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In):
            probed = [node.left]
        else:
            continue
        constants = [c.value for value in probed for c in ast.walk(value) if isinstance(c, ast.Constant)]
        if any(isinstance(value, str) and re.match(r"[a-z0-9+]*://", value) for value in constants):
            yield node


def test_only_storage_parses_urls() -> None:
    """Everyone else hands URIs to storage unread: no S3 client, no URL parser, no test for or cut at a scheme."""
    parsers = {"urllib.parse.urlparse", "urllib.parse.urlsplit"}
    wrong = []
    for module, tree in rooms().items():
        if not inside(module, "pathryoshka.storage"):
            wrong += [f"{module} imports {name}" for name in imports(module, tree) & parsers]
            wrong += [f"{module} imports {name}" for name in imports(module, tree) if name.startswith("boto")]
            wrong += [f"{module}: {ast.unparse(node)}" for node in looks_for_a_scheme(tree)]
    assert not wrong


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("uri.startswith('s3://')", 1),
        ("uri.startswith(('s3://', 'gs://'))", 1),
        ("'://' in uri", 1),
        ("uri.partition('://')", 1),
        ("root = 's3://bucket'", 0),
        ("text.startswith('version https://')", 0),
    ],
)
def test_the_search_for_schemes(code: str, found: int) -> None:
    assert len(list(looks_for_a_scheme(ast.parse(code)))) == found


def sources() -> list[Path]:
    tops = [ROOT / top for top in ("pathryoshka", "tests", "ray_jobs")]
    return [path for top in tops for path in sorted(top.rglob("*.py"))]


def test_no_room_is_longer_than_400_lines() -> None:
    long = {str(p.relative_to(ROOT)): n for p in sources() if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def test_every_room_says_what_it_is_for() -> None:
    assert not [module for module, tree in rooms().items() if not ast.get_docstring(tree)]


def test_no_module_hides_behind_an_underscore() -> None:
    assert not [str(p) for p in sources() if p.name.startswith("_") and p.name not in ("__init__.py", "__main__.py")]


def test_infra_imports_nothing_of_the_package() -> None:
    for path in (ROOT / "infra").rglob("*.py"):
        assert not any(inside(name, "pathryoshka") for name in imports("infra", ast.parse(path.read_text()))), path


def test_the_training_step_fits_one_screen_and_never_waits_for_the_device() -> None:
    source = (PACKAGE / "distill" / "step.py").read_text()
    step = next(n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef) and n.name == "train_step")
    assert (step.end_lineno or 0) - step.lineno + 1 <= 60
    waits = re.findall(r"\.(?:item|tolist|cpu|numpy|synchronize)\(|\b(?:float|bool|int)\(\w*loss", source)
    assert not waits, "these copy from the device in every step"


def test_every_option_of_the_tree_is_read_somewhere() -> None:
    """A key that no code reads is a promise that nobody keeps."""
    from pydantic import BaseModel

    from pathryoshka import config

    readers = {node.attr for m, tree in rooms().items() if m not in ("pathryoshka.config", "pathryoshka.recipes")
               for node in ast.walk(tree) if isinstance(node, ast.Attribute)}  # fmt: skip
    readers |= {"recipe"}  # read by load_run, out of the tree that is being laid over
    dead = []
    for name, section in vars(config).items():
        if isinstance(section, type) and issubclass(section, BaseModel) and section.__module__ == config.__name__:
            dead += [f"{name}.{field}" for field in section.model_fields if field not in readers]
    assert not dead


def test_every_command_in_the_readme_is_a_verb() -> None:
    import click

    from pathryoshka.cli import cli

    readme = (ROOT / "README.md").read_text()
    said = re.findall(r"(?:^|[`$/])\s*pathryoshka ([a-z][a-z-]*(?: [a-z][a-z-]*)?)", readme, re.M)
    assert said, "the README shows no command"
    for words in said:
        command: click.Command = cli
        for word in words.split():
            if not isinstance(command, click.Group):
                break
            assert word in command.commands, f"README says `pathryoshka {words}`; there is no such verb"
            command = command.commands[word]


def test_what_installing_compiles_exists() -> None:
    """The Makefile forgives an import that fails there, for a smaller set of extras may lack it."""
    (line,) = re.findall(r"^COMPILED = import (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert not [name for name in line.split(", ") if importlib.util.find_spec(name) is None]


def test_every_make_target_in_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))
    code = re.findall(r"`[^`\n]+`|^ {4}.*|^make .*", (ROOT / "README.md").read_text(), re.M)
    said = {target for line in code for target in re.findall(r"\bmake ([a-z][a-z-]*)\b", line)}
    assert said and said <= targets, said - targets
