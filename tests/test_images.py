"""What container images hold: all that is ours, and nothing of what lies beside it in a working tree.

The context is tested with the Dockerfiles' own COPY lines on an empty base: a minute, no network. The whole images are
built from their base up, which needs 30 GB of disk, PyPI and most of an hour, or minutes where IMAGE_STORE names a
folder that keeps the layers of the last time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images import BASE, DOCKER, FLAGS, ROOT, Store, copies, found

needs_buildah = pytest.mark.skipif(
    not shutil.which("buildah"), reason="NO BUILDAH ON PATH: no image was built or searched"
)
DOCKERFILES = sorted(DOCKER.glob("*Dockerfile"))
PLACES = [
    ".env", "token", "hf_token.txt", ".aws/credentials", ".ray/auth_token", ".pathryoshka/token", ".git/config",
    "infra/docker/token", "infra/observability/.env", "infra/observability/password.txt",
    "infra/observability/grafana/ray/grafana.ini", "infra/observability/grafana/dashboards/key.pem",
    "infra/stacks/aws-ec2/terraform.tfvars", "infra/stacks/aws-ec2/terraform.tfstate",
    "infra/stacks/aws-ec2/.terraform/terraform.tfstate", "notebooks/.netrc", "out/demo/run.json", "out/tiles/a.parquet",
    "pathryoshka/.env", "pathryoshka/credentials", "pathryoshka/export/templates/key.pem",
    "pathryoshka/export/templates/.hidden.py", "pathryoshka/serve/page/static/token.json", "ray_jobs/run.yaml",
    "ray_jobs/.aws/credentials", "run.yaml", "slides/a.svs", "wheelhouse/a.whl",
]  # fmt: skip
"""Where keys, tokens, state, runs and data come to lie in a working tree."""
STRAY = {"pathryoshka/credentials", "pathryoshka/export/templates/key.pem", "pathryoshka/serve/page/static/token.json",
         "ray_jobs/run.yaml"}  # fmt: skip
"""Those of them that reach the stage which makes the wheel, and must end there."""
SETTINGS = ["AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "RAY_AUTH_TOKEN", "WANDB_API_KEY", "BUILDAH_SECRET"]
PLANTED = {name: f"planted-{i:02}-2f9c41d7a8e05b63" for i, name in enumerate([*PLACES, *SETTINGS])}
ENV = {name: PLANTED[name] for name in SETTINGS}


def tracked(*under: str) -> set[str]:
    said = subprocess.run(["git", "ls-files", *under], cwd=ROOT, text=True, capture_output=True, check=True)
    return set(said.stdout.split())


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working tree as a person has it: what is tracked, and what must stay at home."""
    folder = tmp_path_factory.mktemp("tree")
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)  # with its time: a layer of it is found again
    for name in PLACES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"secret = {PLANTED[name]}\n")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    yield store
    store.remove()


def files(pushed: Path, into: Path) -> set[str]:
    """Unpacks all layers; the files in them, by their path in the image."""
    for layer in json.loads((pushed / "manifest.json").read_text())["layers"]:
        with tarfile.open(pushed / layer["digest"].removeprefix("sha256:")) as packed:
            packed.extractall(into, filter="data")
    return {str(file.relative_to(into)) for file in into.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_the_wheel_holds_every_tracked_file_and_none_that_was_planted(tree: Path, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(wheels), "."]
    subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True)
    with zipfile.ZipFile(next(wheels.iterdir())) as wheel:
        inside = {name: wheel.read(name) for name in wheel.namelist() if ".dist-info/" not in name}
    assert set(inside) == tracked("pathryoshka", "ray_jobs")
    assert not [name for name, secret in PLANTED.items() if any(secret.encode() in data for data in inside.values())]


@needs_buildah
@pytest.mark.full
def test_the_search_finds_what_an_image_without_rules_would_take(store: Store, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "all").write_text("FROM scratch\nARG HF_TOKEN\nENV HF_TOKEN=$HF_TOKEN\nCOPY . /src\n")
    (tmp_path / "nothing").write_text("")
    flags = ["--ignorefile", str(tmp_path / "nothing"), "--build-arg", f"HF_TOKEN={PLANTED['HF_TOKEN']}"]
    everything = store.pushed(store.build(tmp_path / "all", tree, *flags, env=ENV))
    assert found(everything, PLANTED) == {*PLACES, "HF_TOKEN"}


@needs_buildah
@pytest.mark.full
@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda file: file.name)
def test_what_is_copied_is_ours_and_whole(store: Store, tree: Path, tmp_path: Path, dockerfile: Path) -> None:
    (tmp_path / "copies").write_text(copies(dockerfile))
    pushed = store.pushed(store.build(tmp_path / "copies", tree, env=ENV))
    assert found(pushed, PLANTED) == STRAY
    top = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    boards = {name for name in tracked("infra/observability") if "/." not in name}
    boards = {name.replace("infra/observability", "etc/pathryoshka") for name in boards}
    wanted = tracked("pathryoshka", "ray_jobs") | top | (boards if "observability" in dockerfile.read_text() else set())
    assert {name.removeprefix("src/") for name in files(pushed, tmp_path / "image")} == wanted | STRAY


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store with the base image: the real one where its registry answers, else Debian's Python 3.11."""
    kept = os.environ.get("IMAGE_STORE")
    store = Store(Path(kept) if kept else tmp_path_factory.mktemp("whole"), driver="overlay")
    try:
        if not store.has(BASE):
            try:
                store.buildah("pull", BASE, timeout=120)
            except (RuntimeError, subprocess.TimeoutExpired):
                if not shutil.which("debootstrap"):
                    pytest.skip("NEITHER THE BASE IMAGE NOR DEBOOTSTRAP CAN BE HAD: no whole image was built")
                store.debians_python()
        yield store
    finally:
        if not kept:
            store.remove()


@needs_buildah
@pytest.mark.full
@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda file: file.name)
def test_no_layer_no_history_and_no_setting_of_a_whole_image_holds_what_was_planted(
    whole: Store, tree: Path, dockerfile: Path
) -> None:
    with (tree / "pathryoshka/credentials").open("a") as stray:  # buildah 1.28 mounts no stage that is all in its cache
        stray.write(f"{time.time_ns()}\n")
    pushed = whole.pushed(whole.build(dockerfile, tree, "--layers", *FLAGS, env=ENV, timeout=7000))
    manifest = json.loads((pushed / "manifest.json").read_text())
    assert len(manifest["layers"]) >= 2
    facts = json.loads((pushed / manifest["config"]["digest"].removeprefix("sha256:")).read_text())
    assert facts["history"] and facts["config"]["Env"] and facts["config"]["User"] == "ray"
    assert not found(pushed, PLANTED)
