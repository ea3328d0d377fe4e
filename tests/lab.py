"""A lab's cluster on one machine, in a process of its own: a head without GPUs, teacher and student nodes with mocks.

`python -m tests.lab FOLDER` prints one JSON line when it is up, then obeys lines on stdin (`add teacher`,
`kill teacher`), and ends when stdin closes. Its Ray is apart from every other one on the machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.ports import free_port

NODES = {"teacher": {"num_cpus": 4, "num_gpus": 2}, "student": {"num_cpus": 4, "num_gpus": 1}}


@dataclass
class Lab:
    """The cluster, from the test's side: a context manager."""

    folder: Path
    token: str | None = None
    env: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Lab:
        self.folder.mkdir(parents=True, exist_ok=True)
        env = {**os.environ, **self.env, "RAY_TMPDIR": str(self.folder), "RAY_AUTH_MODE": "disabled"}
        env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
        for name in ("RAY_ADDRESS", "PYTHONPATH"):
            env.pop(name, None)
        if self.token:
            file = self.folder / "token"
            file.touch(0o600)
            file.write_text(self.token)
            env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(file)}
        self.log = (self.folder / "lab.log").open("a")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.lab", str(self.folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env=env, text=True,
            cwd=Path(__file__).parent.parent,
        )  # fmt: skip
        self.address = self.read()["dashboard"]
        return self

    def read(self) -> dict[str, Any]:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise AssertionError((self.folder / "lab.log").read_text()[-3000:])

    def tell(self, line: str) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.read()

    def __exit__(self, *error: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(120)
        self.log.close()


def main(folder: str) -> None:
    from ray.cluster_utils import Cluster

    port = free_port()
    head = {
        "num_cpus": 6,
        "num_gpus": 0,
        "include_dashboard": True,
        "dashboard_port": port,
        "temp_dir": f"{folder}/ray",
    }
    head["dashboard_agent_listen_port"] = free_port()  # another Ray on this machine may have the usual one
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [("student", cluster.add_node(**NODES["student"], resources={"student": 1}))]
    nodes.append(("teacher", cluster.add_node(**NODES["teacher"], resources={"teacher": 1})))
    wait_for_jobs_api(port)
    print(json.dumps({"dashboard": f"http://127.0.0.1:{port}"}), flush=True)
    for line in sys.stdin:
        verb, role = line.split()
        if verb == "add":
            nodes.append((role, cluster.add_node(**NODES[role], resources={role: 1})))
        else:
            victim = next(entry for entry in nodes if entry[0] == role)
            nodes.remove(victim)
            cluster.remove_node(victim[1], allow_graceful=False)
        print(json.dumps({"nodes": len(nodes)}), flush=True)
    cluster.shutdown()


def wait_for_jobs_api(port: int) -> None:
    """The dashboard answers before the head's agent takes jobs."""
    from ray.job_submission import JobSubmissionClient

    deadline = time.monotonic() + 120
    while True:
        try:
            client = JobSubmissionClient(f"http://127.0.0.1:{port}")
            client.submit_job(entrypoint="true", submission_id=f"warm-{time.time_ns()}")
            return
        except (RuntimeError, ConnectionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


if __name__ == "__main__":
    main(sys.argv[1])
