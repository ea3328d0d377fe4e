"""The notebooks, run top to bottom at a small size in one Ray session; each goes on with what the first one left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.runs import short_tmp

FOLDER = Path(__file__).parent.parent / "notebooks"
SIZES: dict[str, dict[str, Any]] = {
    "01_first_student": {"NUM_TILES": 400, "NUM_VIEWS": 960},
    "02_your_own_slides": {},
    "03_choose_the_width": {},
    "04_your_own_teacher": {"NUM_VIEWS": 320},
    "05_sweep_loss_weights": {"NUM_VIEWS": 320},
    "06_search_and_explore": {},
    "07_on_a_cluster": {"NUM_VIEWS": 128},
}
SESSION = """
import sys, ray
context = ray.init("local", num_cpus=24, include_dashboard=True, _node_ip_address="127.0.0.1", _temp_dir=sys.argv[1])
print("ADDRESS", context.address_info["address"], flush=True)
sys.stdin.read()
"""
MOST_BYTES = 400_000


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def test_every_notebook_is_run() -> None:
    assert names() == sorted(SIZES)


@pytest.mark.parametrize("name", names())
def test_a_notebook_says_what_it_takes_and_is_small(name: str) -> None:
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(book)
    first = book.cells[0].source
    assert "**Takes**" in first and ("**For real size**" in first or "**Costs**" in first)
    assert (FOLDER / f"{name}.ipynb").stat().st_size < MOST_BYTES
    assert [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """(where results go, environment of a kernel) with one Ray session behind it."""
    out = tmp_path_factory.mktemp("notebooks")
    # what notebook 04 writes is a module: on a cluster it would be installed
    path = os.pathsep.join([str(out), str(FOLDER.parent)])
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    words = [sys.executable, "-c", SESSION, str(short_tmp())]
    with subprocess.Popen(words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as ray:
        assert ray.stdin and ray.stdout
        for line in ray.stdout:
            if line.startswith("ADDRESS "):
                yield out, env | {"RAY_ADDRESS": line.split()[1]}
                break
        else:
            pytest.fail("Ray did not start")
        ray.stdin.close()


def run(book: nbformat.NotebookNode, out: Path, env: dict[str, str], over: dict[str, Any]) -> nbformat.NotebookNode:
    """Executes it with other parameters, as papermill does: a cell after the one that is tagged."""
    at = next(i for i, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", []))
    said = "\n".join(f"{key} = {value!r}" for key, value in ({"OUT": str(out)} | over).items())
    book.cells.insert(at + 1, nbformat.v4.new_code_cell(said))
    client = NotebookClient(book, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}})
    return client.execute(env=env)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", names())
def test_a_notebook_runs(session: tuple[Path, dict[str, str]], name: str) -> None:
    out, env = session
    book = run(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4), out, env, SIZES[name])
    if keep := os.environ.get("PATHRYOSHKA_NOTEBOOKS"):  # to look at
        nbformat.write(book, Path(keep) / f"{name}.ipynb")
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert not [one for one in outputs if one.output_type == "error"]
    assert any("image/png" in one.get("data", {}) for one in outputs) or name[:2] in ("04", "05")
