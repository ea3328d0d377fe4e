"""Prometheus and Grafana on loopback beside a Ray session of this machine, until Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from pathryoshka.observability.files import RAY_TMP, write

START_S = 60
LOOPBACK = "127.0.0.1"
NO_GRAFANA = """\
*** GRAFANA IS NOT INSTALLED: NO BOARDS ARE SERVED, only Prometheus' own page. ***
Neither Debian, PyPI nor npm has it: take it from its makers and have `grafana` on PATH (GRAFANA_HOME names its folder
where that is not /usr/share/grafana). Or import into yours what `pathryoshka dashboards --to FOLDER` writes."""


class ServeError(RuntimeError):
    """Prometheus or Grafana cannot run; the sentence says why."""


def serve(ray_tmp: str | None = None, say: Callable[[str], None] = print) -> None:
    """Starts both, says where they are, and ends them at Ctrl-C; files and data are kept in a folder only meanwhile.

    Args:
        ray_tmp: Ray's folder of sessions; none = RAY_TMPDIR, else Ray's own choice.

    Raises:
        ServeError: no Prometheus on this machine, or one of them ended or did not start.
    """
    where = Path(ray_tmp or os.environ.get("RAY_TMPDIR") or RAY_TMP)
    if not (where / "prom_metrics_service_discovery.json").exists():
        say(f"there is no Ray session with a dashboard in {where} yet: figures appear once one is there "
            "(pathryoshka distill --set metrics.dashboard=true ...)")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="pathryoshka-dashboards-") as folder, contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        at = Path(folder)
        ports = free_port(9090), free_port(3000)
        write(at, ray_tmp=str(where), prometheus=f"http://{LOOPBACK}:{ports[0]}", grafana_port=ports[1],
              grafana_data=f"{at}/grafana-data")  # fmt: skip
        running = [stack.enter_context(prometheus(at, ports[0]))]
        say(f"Prometheus: http://{LOOPBACK}:{ports[0]}   alerts: http://{LOOPBACK}:{ports[0]}/alerts")
        if find_grafana():
            running.append(stack.enter_context(grafana(at, ports[1])))
            say(f"Grafana:    http://{LOOPBACK}:{ports[1]}/d/pathryoshka-run")
        else:
            say(NO_GRAFANA)
        say("Ctrl-C ends")
        while all(process.poll() is None for process in running):
            time.sleep(0.5)
        raise ServeError("Prometheus or Grafana ended by itself; start it again")


@contextlib.contextmanager
def prometheus(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A Prometheus with the configuration and alerts in `folder`; its data is there, too."""
    program = shutil.which("prometheus")
    if program is None:
        raise ServeError("Prometheus is not installed; on Debian and Ubuntu: apt-get install prometheus")
    command = [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/prometheus-data",
               f"--web.listen-address={LOOPBACK}:{port}"]  # fmt: skip
    with child(command, folder / "prometheus.log", f"http://{LOOPBACK}:{port}/-/ready") as process:
        yield process


@contextlib.contextmanager
def grafana(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A Grafana with the boards in `folder`."""
    command = [*find_grafana(), f"--config={folder}/grafana/grafana.ini",
               f"--homepath={os.environ.get('GRAFANA_HOME', '/usr/share/grafana')}"]  # fmt: skip
    with child(command, folder / "grafana.log", f"http://{LOOPBACK}:{port}/api/health") as process:
        yield process


def find_grafana() -> list[str]:
    """The command that starts Grafana, empty where it is not installed."""
    if program := shutil.which("grafana"):
        return [program, "server"]
    old = shutil.which("grafana-server")
    return [old] if old else []


@contextlib.contextmanager
def child(command: list[str], log: Path, ready: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of our own once `ready` answers; leaving it ends the process."""
    with log.open("wb") as out:
        # a group of its own: Ctrl-C is for us, who then end it in order
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        deadline = time.monotonic() + START_S
        while not answers(ready):
            if process.poll() is not None or time.monotonic() > deadline:
                words = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                raise ServeError(f"{Path(command[0]).name} did not start: {words[-1]}")
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def free_port(wanted: int) -> int:
    """The port that people know where it is free, else another."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOOPBACK, port))
            return int(probe.getsockname()[1])
    raise ServeError("no port of this machine is free")
