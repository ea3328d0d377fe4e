"""A machine without a network installs from a wheelhouse and works. Needs 10 GB of disk and some minutes.

The wheels come from WHEELHOUSE if that names a folder, else from `make wheelhouse`. The install runs in a copy of the
project, in a network namespace without any interface where the system allows one, else with every index out of reach.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NO_NETWORK = ["unshare", "--map-root-user", "--net"]

pytestmark = pytest.mark.full


def can_unshare() -> bool:
    return (
        shutil.which("unshare") is not None
        and subprocess.run([*NO_NETWORK, "true"], capture_output=True).returncode == 0
    )


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if named := os.environ.get("WHEELHOUSE"):
        yield Path(named).absolute()
        return
    folder = tmp_path_factory.mktemp("wheelhouse")
    subprocess.run(["make", "wheelhouse", f"WHEELHOUSE={folder}"], cwd=ROOT, check=True)
    yield folder
    shutil.rmtree(folder)  # pytest would keep the gigabytes of the last three runs


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("offline") / "project"
    here = shutil.ignore_patterns(".venv", ".git", "out", "wheelhouse", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, folder, ignore=here)
    yield folder
    shutil.rmtree(folder)


def run_offline(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs without a network, with an empty home and none of this machine's settings for package clients."""
    home = cwd.parent / "home"
    home.mkdir(exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_", "XDG_")) and k != "VIRTUAL_ENV"}
    # RFC 6761: .invalid never resolves, so whoever asks an index all the same fails here too
    nowhere = {"PIP_INDEX_URL": "http://index.invalid/simple", "UV_INDEX_URL": "http://index.invalid/simple"}
    env = {**kept, **nowhere, "PIP_CONFIG_FILE": os.devnull, "HOME": str(home), "OMP_NUM_THREADS": "1"}
    prefix = NO_NETWORK if can_unshare() else []
    return subprocess.run([*prefix, *command], cwd=cwd, env=env, capture_output=True, text=True)


def test_without_wheels_the_install_says_what_to_do(project: Path, tmp_path: Path) -> None:
    done = run_offline("make", "install-offline", f"WHEELHOUSE={tmp_path}", f"PYTHON={sys.executable}", cwd=project)
    assert done.returncode != 0
    assert "run `make wheelhouse` on a machine with a network" in done.stderr
    assert not (project / ".venv").exists()


def test_a_fresh_environment_installs_and_works_without_a_network(project: Path, wheelhouse: Path) -> None:
    no_network = run_offline(
        sys.executable, "-c", "import socket; socket.create_connection(('192.0.2.1', 80), 2)", cwd=project
    )
    assert no_network.returncode != 0
    done = run_offline("make", "install-offline", f"WHEELHOUSE={wheelhouse}", f"PYTHON={sys.executable}", cwd=project)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    python = project / ".venv" / "bin" / "python"
    where = run_offline(
        str(python), "-c", "import pathryoshka, torch, ray, deepspeed, timm; print(pathryoshka.__file__)", cwd=project
    )
    assert where.stdout.strip().endswith("project/pathryoshka/__init__.py"), where.stderr[-2000:]
    shown = run_offline(str(project / ".venv/bin/pathryoshka"), "config", "show", "--recipe", "debug", cwd=project)
    assert shown.returncode == 0 and "recipe: debug" in shown.stdout
    again = run_offline("make", "-n", "lint", f"PYTHON={sys.executable}", cwd=project)
    assert "uv pip install" not in again.stdout  # installed counts as installed: nothing asks the network later
    tested = run_offline(
        str(python), "-m", "pytest", "-q", "tests/test_config.py", "-p", "no:cacheprovider", cwd=project
    )
    assert tested.returncode == 0, tested.stdout[-2000:]


def test_versions_are_those_of_the_constraints(project: Path) -> None:
    """Runs after the install: the environment holds nothing that constraints.txt does not name at that version."""
    python = project / ".venv" / "bin" / "python"
    frozen = run_offline(str(python), "-m", "pip", "freeze", "--exclude-editable", cwd=project).stdout.split()
    named = set((ROOT / "constraints.txt").read_text().lower().replace("_", "-").split())
    strange = [line for line in frozen if line.lower().replace("_", "-") not in named and not line.startswith("uv==")]
    assert frozen and not strange
