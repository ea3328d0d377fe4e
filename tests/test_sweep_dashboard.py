"""The board of a sweep's trials against a real Prometheus that scrapes a real Ray session."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pathryoshka import config
from pathryoshka.observability.boards import SWEEP_FILE, sweep_board
from pathryoshka.observability.gauges import TRIAL
from pathryoshka.sweep.dashboard import provision
from tests.prometheus import ask, scraping
from tests.runs import short_tmp

LINE = {"loss": 1.5, "unexplained/mock0": 0.5, "unexplained/mock1": 0.25, "unexplained/mock0/summary/48": 9.0}
LINE |= {"tiles_per_s": 100.0, "wait_share": 0.125, "views": 480.0, "store/hit_rate": 0.75, "lr": 1.0}


def queries() -> list[str]:
    return [target["expr"] for panel in sweep_board()["panels"] for target in panel["targets"]]


def test_the_board_has_a_panel_a_gauge() -> None:
    assert len(queries()) == len(TRIAL) == len({query.partition("{")[0] for query in queries()})


@pytest.fixture
def session() -> Iterator[None]:
    from pathryoshka.session import ray_session

    os.environ["RAY_TMPDIR"] = str(short_tmp())
    with ray_session(2, dashboard=True):
        yield


@pytest.fixture
def prometheus(session: None, tmp_path: Path) -> Iterator[str]:
    """Address of a Prometheus that scrapes the session."""
    with scraping(tmp_path, short_tmp()) as address:
        yield address


@pytest.mark.full
@pytest.mark.timeout(400)
@pytest.mark.skipif(
    not shutil.which("prometheus"),
    reason="NO PROMETHEUS (apt-get install prometheus)",
)
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
    assert set(found) == set(queries()), (tmp_path / "prometheus.log").read_text()[-2000:]
    time.sleep(30)  # Ray drops a gauge that is not set again after 20 s
    assert all(ask(prometheus, query.replace("$sweep", ".*").replace("$trial", ".*")) for query in queries())
    values = {name.partition("{")[0]: answer for name, answer in found.items()}
    losses = {a["metric"]["trial"]: float(a["value"][1]) for a in values["ray_pathryoshka_trial_loss"]}
    assert losses == {"t0": 1.5, "t1": 2.5}
    shares = {a["metric"]["teacher"]: float(a["value"][1]) for a in values["ray_pathryoshka_trial_unexplained"]}
    assert shares == {"mock0": 0.5, "mock1": 0.25}
    assert {a["metric"]["sweep"] for answer in values.values() for a in answer} == {"lr"}
    base = config.make_run(config.overlay(debug().model_dump(), {"storage": {"root": str(tmp_path / "runs")}}))
    written = provision(base)
    assert len(written) == 2 and all(json.loads(Path(where).read_text()) == sweep_board() for where in written)
    assert (Path(written[1]).parent / "train_grafana_dashboard.json").exists() and Path(written[1]).name == SWEEP_FILE
