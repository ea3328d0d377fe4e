"""The Slurm template and the lab's own script, with stand-ins for Slurm: two "nodes" on one machine.

Ray, its token, the run and its signals are real. Not shown: Slurm itself.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from pathryoshka import config, recipes
from pathryoshka.tiles.phantom import write_phantom
from tests.cloud import free_port

INFRA = Path(__file__).parent.parent / "infra"
NODE = INFRA / "onprem" / "node.sh"
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo node1; echo node2; else echo "$@" >> "$HOME/requeued"; fi
"""
SRUN = f"""#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -w ]] && {{ shift; host=$1; }}; shift; done
[ "$1" = hostname ] && {{ echo 127.0.0.1; exit; }}
free() {{ {sys.executable} -c 'from tests.cloud import free_port; print(free_port())'; }}
here="--node-ip-address=127.0.0.1 --dashboard-agent-listen-port=$(free)"
[ "$2" = head ] && here="$here --ray-client-server-port=$(free) --temp-dir=$RAY_TMPDIR/ray" || here="$here --num-cpus=6"
# two nodes of one machine must not start at the same moment
[ "$host $2" = "node2 worker" ] && sleep 12
exec "$@" $here
"""


@dataclass(frozen=True)
class Queue:
    folder: Path
    env: dict[str, str]

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(INFRA / "slurm" / "pathryoshka.sbatch"), *words], env=self.env, cwd=self.folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def left(self) -> list[str]:
        """Processes that belong to the allocation."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("SLURM_JOB_ID") == self.env["SLURM_JOB_ID"]:
                    found.append(" ".join(process.cmdline())[:100])
            except psutil.Error:
                continue
        return found


@pytest.fixture
def queue() -> Iterator[Queue]:
    with tempfile.TemporaryDirectory(prefix="prs-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "bin").mkdir()
        for tool, text in (("scontrol", SCONTROL), ("srun", SRUN)):
            (folder / "bin" / tool).write_text(text)
            (folder / "bin" / tool).chmod(0o755)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SLURM_"))}
        env = kept | {
            "PATH": f"{folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(folder),
            "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "node[1-2]", "RAY_TMPDIR": str(folder / "t"),
            "PATHRYOSHKA_INFRA": str(INFRA), "PYTHONPATH": str(INFRA.parent), "OMP_NUM_THREADS": "1",
            "RAY_PORT": str(free_port()), "RAY_DASHBOARD_PORT": str(free_port()), "PYTHONUNBUFFERED": "1",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "2",
        }  # fmt: skip
        (folder / "t").mkdir()
        yield Queue(folder, env)


@pytest.mark.full
def test_a_run_that_outlives_its_allocation(queue: Queue) -> None:
    tiles, root = str(queue.folder / "tiles"), str(queue.folder / "runs")
    write_phantom(tiles, config.Storage(root=root), num_tiles=160, num_patients=4, num_sites=2, size=32)
    tree = {
        "recipe": "debug", "name": "s", "data": {"tiles": tiles}, "storage": {"root": root},
        "plan": {"num_views": 6000},
        "teachers": {"models": {name: {"resources": {"teacher": 0.001}} for name in recipes.debug().teachers.models}},
        "train": {"resources_per_worker": {"student": 0.001, "CPU": 1}, "log_every": 5, "checkpoint_every": 500},
    }  # fmt: skip
    (queue.folder / "run.yaml").write_text(yaml.safe_dump(tree))
    job = queue.start("distill", "--config", "run.yaml", "--no-rehearse")
    said = ""
    assert job.stdout
    deadline = threading.Timer(240, job.kill)
    deadline.start()
    for line in job.stdout:
        said += line
        if "step 10/" in line:
            job.send_signal(signal.SIGTERM)  # as `--signal=B:TERM@300` does: to the shell, not to its children
    deadline.cancel()
    assert job.wait(120) == 143, said
    assert (queue.folder / "requeued").read_text() == f"requeue {queue.env['SLURM_JOB_ID']}\n", said
    assert not list(queue.folder.rglob("token")) and queue.left() == []

    (queue.folder / "requeued").unlink()
    job = queue.start("distill", "--config", "run.yaml", "--set", "plan.num_views=6000", "--no-rehearse")
    said, _ = job.communicate(timeout=400)
    assert job.returncode == 0 and "goes on" in said, said
    assert not (queue.folder / "requeued").exists() and queue.left() == []


@pytest.mark.parametrize(
    ("words", "token", "sentence"),
    [
        ((), 0o600, "usage: node.sh head | node.sh worker HEAD ROLE"),
        (("worker", "10.0.0.1"), 0o600, "usage: node.sh worker HEAD ROLE"),
        (("worker", "10.0.0.1", "techer"), 0o600, "ROLE is teacher, student or cpu; got techer"),
        (("head",), None, "no token in "),
        (("head",), 0o644, "can be read by others: chmod 600"),
    ],
)
def test_what_a_node_refuses(tmp_path: Path, words: tuple[str, ...], token: int | None, sentence: str) -> None:
    file = tmp_path / "token"
    if token is not None:
        file.write_text("x" * 32)
        file.chmod(token)
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token",
           "RAY_AUTH_TOKEN_PATH": str(file)}  # fmt: skip
    done = subprocess.run([NODE, *words], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and sentence in done.stderr and done.stderr.count("\n") == 1


def test_every_script_is_shell() -> None:
    checker = shutil.which("shellcheck")
    for script in [NODE, INFRA / "slurm" / "pathryoshka.sbatch", *INFRA.glob("*.sh")]:
        assert subprocess.run(["bash", "-n", script]).returncode == 0, script
        if checker:
            assert subprocess.run([checker, "-S", "warning", script]).returncode == 0, script
