"""A cloud on one machine: moto in the place of EC2, Ray's real head and autoscaler, and workers as processes.

Whatever instance the autoscaler starts in moto gets the process that its boot script would start, and loses it when the
instance is ended. Everything listens on loopback, on ports of its own, with a token.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3

REGION = "eu-central-1"
NO_KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_REGION": REGION,
    "AWS_EC2_METADATA_DISABLED": "true",
}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_until(what: str, reached: Callable[[], Any], within_s: float, every_s: float = 0.5) -> Any:
    deadline = time.monotonic() + within_s
    while not (value := reached()):
        assert time.monotonic() < deadline, f"{what}: not within {within_s:.0f} s"
        time.sleep(every_s)
    return value


def end(process: subprocess.Popen[Any], within_s: float = 30.0) -> None:
    """SIGTERM, which `ray start --block` hands on to what it started; SIGKILL to its whole group if that is not enough."""
    process.terminate()
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def moto(folder: Path) -> Iterator[str]:
    """The endpoint of a fresh account."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (folder / "moto.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=log, stderr=log, env={**os.environ, **NO_KEYS}, start_new_session=True,
        )  # fmt: skip
        try:
            wait_until("moto", lambda: status(url + "/moto-api/") == 200, 60)
            yield url
        finally:
            end(process)


def status(url: str, token: str | None = None) -> int | None:
    """The HTTP status that a GET is answered with, None where nobody answers."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@dataclass
class Cloud:
    """A head with its autoscaler, and one worker process for each instance that it has running."""

    folder: Path
    endpoint: str
    name: str
    env: dict[str, str] = field(default_factory=dict)
    workers: dict[str, subprocess.Popen[Any]] = field(default_factory=dict)
    started: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ec2 = boto3.client("ec2", endpoint_url=self.endpoint, region_name=REGION,
                                aws_access_key_id="testing", aws_secret_access_key="testing")  # fmt: skip
        self.token = secrets.token_urlsafe(32)
        self.gcs, self.dashboard = free_port(), free_port()
        self.address = f"http://127.0.0.1:{self.dashboard}"
        self.stopping = threading.Event()

    def instances(self, kind: str, *states: str) -> list[dict[str, Any]]:
        filters = [
            {"Name": "tag:ray-cluster-name", "Values": [self.name]},
            {"Name": "tag:ray-node-type", "Values": [kind]},
            {"Name": "instance-state-name", "Values": list(states or ("pending", "running"))},
        ]
        pages = self.ec2.describe_instances(Filters=filters)["Reservations"]
        return [instance for page in pages for instance in page["Instances"]]

    def environment(self, instance: str, node_type: str) -> dict[str, str]:
        """What boot scripts set, of the machine's own and of ours; RAY_* of the test run stay outside."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "AWS_"))}
        return {
            **kept,
            **NO_KEYS,
            "AWS_ENDPOINT_URL": self.endpoint,
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": instance,
            "RAY_NODE_TYPE_NAME": node_type,
            "RAY_USAGE_STATS_ENABLED": "0",
            "AUTOSCALER_METRIC_PORT": str(free_port()),
            **self.env,
        }

    def start(self, name: str, arguments: list[str], env: dict[str, str]) -> subprocess.Popen[Any]:
        log = (self.folder / f"{name}.log").open("w")
        with log:
            return subprocess.Popen(
                [str(Path(sys.executable).parent / "ray"), "start", "--block", "--node-ip-address=127.0.0.1",
                 "--disable-usage-stats", f"--dashboard-agent-listen-port={free_port()}", *arguments],
                stdout=log, stderr=log, env=env, start_new_session=True, cwd=self.folder,
            )  # fmt: skip

    def start_head(self, cluster_yaml: Path, instance: str) -> None:
        file = self.folder / "token"
        file.touch(0o600)
        file.write_text(self.token)
        self.head = self.start(
            "head",
            ["--head", f"--port={self.gcs}", f"--dashboard-port={self.dashboard}", "--dashboard-host=127.0.0.1",
             f"--ray-client-server-port={free_port()}", "--num-cpus=0", "--num-gpus=0",
             f"--autoscaling-config={cluster_yaml}", f"--temp-dir={self.folder}/ray"],
            self.environment(instance, "head"),
        )  # fmt: skip
        wait_until("the head", lambda: status(self.address + "/api/version", self.token) == 200, 120)

    def watch(self, boot: Callable[[dict[str, Any]], tuple[list[str], dict[str, str]]]) -> None:
        """Boots what moto has running and ends what it has not, until the end of the test."""

        def loop() -> None:
            while not self.stopping.wait(0.5):
                running = {instance["InstanceId"]: instance for instance in self.instances("worker")}
                for one in [one for one in running if one not in self.workers]:
                    self.started.append(running[one])
                    arguments, env = boot(running[one])
                    tags = {tag["Key"]: tag["Value"] for tag in running[one]["Tags"]}
                    base = self.environment(one, tags["ray-user-node-type"])
                    self.workers[one] = self.start(one, arguments, base | env)
                for one, process in self.workers.items():
                    if one not in running and process.poll() is None:
                        end(process)

        self.watcher = threading.Thread(target=loop, daemon=True)
        self.watcher.start()

    def close(self) -> None:
        self.stopping.set()
        if hasattr(self, "watcher"):
            self.watcher.join(60)
        for process in [*self.workers.values(), *([self.head] if hasattr(self, "head") else [])]:
            if process.poll() is None:
                end(process)
