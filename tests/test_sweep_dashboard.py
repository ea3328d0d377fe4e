"""The board for Grafana against a real Prometheus that scrapes a real Ray session by Ray's own configuration."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pathryoshka import config
from pathryoshka.sweep.dashboard import FILE, grafana, provision
from pathryoshka.sweep.gauges import NAMES
from tests.runs import short_tmp

LINE = {"loss": 1.5, "unexplained/mock0": 0.5, "unexplained/mock1": 0.25, "unexplained/mock0/summary/48": 9.0}
LINE |= {"tiles_per_s": 100.0, "wait_share": 0.125, "views": 480.0, "store/hit_rate": 0.75, "lr": 1.0}


def queries() -> list[str]:
    return [target["expr"] for panel in grafana()["panels"] for target in panel["targets"]]


def test_the_board_has_a_panel_a_gauge_and_no_two_in_one_place() -> None:
    board = json.loads(json.dumps(grafana()))
    assert len(queries()) == len(NAMES) + 1 == len({query.partition("{")[0] for query in queries()})
    assert len({(p["gridPos"]["x"], p["gridPos"]["y"]) for p in board["panels"]}) == len(board["panels"])
    variables = {v["name"] for v in board["templating"]["list"]}
    assert set(re.findall(r"\$(\w+)", json.dumps(board["panels"]).replace("${", "$"))) <= variables


@pytest.fixture
def session() -> Iterator[None]:
    from pathryoshka.session import ray_session

    os.environ["RAY_TMPDIR"] = str(short_tmp())
    with ray_session(2, dashboard=True):
        yield


@pytest.fixture
def prometheus(session: None, tmp_path: Path) -> Iterator[str]:
    """Address of a Prometheus that runs on the configuration Ray wrote into the session's folder."""
    from pathryoshka.sweep.dashboard import session_metrics

    program, folder = shutil.which("prometheus"), session_metrics()
    assert program and folder
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    configured = tmp_path / "prometheus.yml"
    until = time.monotonic() + 60
    while not (folder / "prometheus" / "prometheus.yml").exists():
        assert time.monotonic() < until
        time.sleep(0.2)
    text = (folder / "prometheus" / "prometheus.yml").read_text()
    text = re.sub(r"(scrape_interval|evaluation_interval): \S+", r"\1: 1s", text)
    configured.write_text(text)
    command = [program, f"--config.file={configured}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    yield address
    process.terminate()
    process.wait(30)


def ask(address: str, query: str) -> list[dict[str, Any]]:
    url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]["result"]
    except (urllib.error.URLError, ConnectionError):
        return []


@pytest.mark.full
@pytest.mark.timeout(400)
@pytest.mark.skipif(not shutil.which("prometheus"), reason="needs Prometheus: apt-get install prometheus")
def test_every_panel_finds_its_gauge_in_a_real_prometheus(prometheus: str, tmp_path: Path) -> None:
    import ray

    from pathryoshka.recipes import debug
    from pathryoshka.sweep.board import Board

    board = Board.remote("lr")  # type: ignore[attr-defined]
    ray.get(board.show.remote("t0", LINE))
    ray.get(board.show.remote("t1", {**LINE, "loss": 2.5}))
    found: dict[str, list[dict[str, Any]]] = {}
    until = time.monotonic() + 120
    while len(found) < len(queries()) and time.monotonic() < until:
        for query in queries():
            if answer := ask(prometheus, query.replace("$sweep", ".*").replace("$trial", ".*")):
                found[query] = answer
        time.sleep(1)
    assert set(found) == set(queries()), (tmp_path / "log").read_text()[-2000:]
    values = {name.partition("{")[0]: answer for name, answer in found.items()}
    losses = {a["metric"]["trial"]: float(a["value"][1]) for a in values["ray_pathryoshka_trial_loss"]}
    assert losses == {"t0": 1.5, "t1": 2.5}
    shares = {a["metric"]["teacher"]: float(a["value"][1]) for a in values["ray_pathryoshka_trial_unexplained"]}
    assert shares == {"mock0": 0.5, "mock1": 0.25}
    assert {a["metric"]["sweep"] for answer in values.values() for a in answer} == {"lr"}
    base = config.make_run(config.overlay(debug().model_dump(), {"storage": {"root": str(tmp_path / "runs")}}))
    written = provision(base)
    assert len(written) == 2 and all(json.loads(Path(where).read_text()) == grafana() for where in written)
    assert (Path(written[1]).parent / "train_grafana_dashboard.json").exists() and Path(written[1]).name == FILE
