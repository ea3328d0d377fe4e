"""A cloud on one machine: moto in the place of EC2, Ray's real head and autoscaler, and workers as processes.

Whatever instance the autoscaler starts in moto gets the process that its boot script would start, and loses it when the
instance is ended. Everything listens on loopback, on ports of its own, with a token.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import shlex
import signal
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

from tests.ports import free_port

REGION = "eu-central-1"
NO_KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_REGION": REGION,
    "AWS_EC2_METADATA_DISABLED": "true",
}


def wait_until(what: str, reached: Callable[[], Any], within_s: float, every_s: float = 0.5) -> Any:
    deadline = time.monotonic() + within_s
    while not (value := reached()):
        assert time.monotonic() < deadline, f"{what}: not within {within_s:.0f} s"
        time.sleep(every_s)
    return value


def end(process: subprocess.Popen[Any], within_s: float = 30.0) -> None:
    """SIGTERM, which `ray start --block` hands on to what it started; SIGKILL to its group if that is not enough."""
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


def boot_script(text: str, instance: str) -> tuple[list[str], dict[str, str]]:
    """What `ray start` is given by a boot script, and the variables of its container."""
    start = shlex.split(next(line for line in text.splitlines() if line.strip().startswith("ray start ")))
    words = shlex.split(text.split("exec docker run", 1)[1].split("ray start ", 1)[0].replace("\\\n", " "))
    pairs = [words[i + 1].partition("=") for i, word in enumerate(words) if word == "-e"]
    return start[2:], {key: value.replace("$INSTANCE", instance) for key, _, value in pairs}


def changed(arguments: list[str], here: dict[str, Any]) -> list[str]:
    """Options of `here` in the place of those of their name."""
    kept = [word for word in arguments if word.split("=")[0] not in here]
    return [*kept, *(f"{name}={value}" for name, value in here.items())]


@dataclass
class Cloud:
    """A head with its autoscaler, and one worker process for each instance that it has running."""

    folder: Path
    endpoint: str
    name: str
    workers: dict[str, subprocess.Popen[Any]] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)

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

    def market(self, instance: str) -> tuple[str, str]:
        """Type and market of an instance. To be asked when it works: moto lists one before it knows that it is spot."""
        (page,) = self.ec2.describe_instances(InstanceIds=[instance])["Reservations"]
        (found,) = page["Instances"]
        return found["InstanceType"], found.get("InstanceLifecycle", "on demand")

    def environment(self, of_script: dict[str, str]) -> dict[str, str]:
        """What a boot script sets, and what this machine needs beside; RAY_* of the test run stay outside."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "AWS_"))}
        return {
            **kept,
            **of_script,
            **NO_KEYS,
            "AWS_ENDPOINT_URL": self.endpoint,
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "AUTOSCALER_METRIC_PORT": str(free_port()),
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "2",  # a test's end waits for no task
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",  # Ray's 5 s are for clouds that count requests
        }

    def start(self, name: str, arguments: list[str], env: dict[str, str]) -> subprocess.Popen[Any]:
        log = (self.folder / f"{name}.log").open("w")
        with log:
            return subprocess.Popen(
                [str(Path(sys.executable).parent / "ray"), "start", "--node-ip-address=127.0.0.1",
                 "--disable-usage-stats", f"--dashboard-agent-listen-port={free_port()}", *arguments],
                stdout=log, stderr=log, env=env, start_new_session=True, cwd=self.folder,
            )  # fmt: skip

    def start_head(self, user_data: str, cluster_yaml: Path, instance: str) -> None:
        """As the head's boot script does, with files and ports of this test in the place of the machine's."""
        file = self.folder / "token"
        file.touch(0o600)
        file.write_text(self.token)
        here = {"--port": self.gcs, "--dashboard-port": self.dashboard, "--autoscaling-config": cluster_yaml,
                "--ray-client-server-port": free_port(), "--temp-dir": f"{self.folder}/ray"}  # fmt: skip
        arguments, env = boot_script(user_data, instance)
        provider = user_data.split("<<'PROVIDER'\n", 1)[1].split("\nPROVIDER\n", 1)[0]
        (self.folder / "ec2_provider.py").write_text(provider)
        env |= {"PYTHONPATH": str(self.folder), "PATHRYOSHKA_CLUSTER": str(cluster_yaml)}
        self.head = self.start("head", changed(arguments, here), self.environment(env))
        wait_until("the head", lambda: status(self.address + "/api/version", self.token) == 200, 120)

    def start_worker(self, instance: dict[str, Any]) -> subprocess.Popen[Any]:
        """As the worker's boot script does, which is read from the instance."""
        one = instance["InstanceId"]
        coded = self.ec2.describe_instance_attribute(InstanceId=one, Attribute="userData")["UserData"]["Value"]
        arguments, env = boot_script(base64.b64decode(coded).decode(), one)
        return self.start(one, changed(arguments, {"--address": f"127.0.0.1:{self.gcs}"}), self.environment(env))

    def watch(self) -> None:
        """Boots what moto has running and ends what it has not, until the end of the test."""

        def loop() -> None:
            while not self.stopping.wait(0.5):
                running = {instance["InstanceId"]: instance for instance in self.instances("worker")}
                for one in [one for one in running if one not in self.workers]:
                    self.started.append(one)
                    self.workers[one] = self.start_worker(running[one])
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
