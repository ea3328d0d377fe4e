"""Boards and alerts: judged by promtool, by Grafana's own models, and by a real Prometheus that scrapes a real run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pathryoshka import config
from pathryoshka.cli import main
from pathryoshka.distill.metrics import read_metrics
from pathryoshka.observability import gauges
from pathryoshka.observability.boards import SLOWEST, run_board, sweep_board
from pathryoshka.observability.files import files, ray_boards, write
from pathryoshka.observability.serve import ServeError, serve
from pathryoshka.tiles.phantom import write_phantom
from tests.prometheus import ask, firing, scraping
from tests.runs import Driver, settings, short_tmp

HERE = Path(__file__).parent
INFRA = HERE.parent / "infra" / "observability"
RULES = HERE.parent / "pathryoshka" / "observability" / "alerts.yml"
RULES_TEST = HERE / "data" / "alerts_test.yml"
METRIC = re.compile(r"\bray_\w+")
HARDWARE = {"ray_node_gpus_utilization"}
"""Shown only where there is a GPU."""
IN_A_STORE = {"ray_pathryoshka_run_store_hit_rate"}

needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="NO PROMTOOL (apt-get install prometheus)")
needs_prometheus = pytest.mark.skipif(
    not shutil.which("prometheus"),
    reason="NO PROMETHEUS (apt-get install prometheus)",
)
both_boards = pytest.mark.parametrize("board", [run_board(), sweep_board()], ids=["run", "sweep"])


def promtool(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *args], capture_output=True, text=True)


def queries(board: dict[str, Any]) -> list[str]:
    """What the panels ask, for all values of the variables."""
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return [re.sub(r"\$\w+", ".*", query) for query in asked]


def rules() -> list[dict[str, str]]:
    return list(yaml.safe_load(RULES.read_text())["groups"][0]["rules"])


def exported() -> set[str]:
    """Names of our gauges as Ray exports them."""
    tables = {"run": gauges.RUN, "trial": gauges.TRIAL, "teacher": gauges.POOL, "teacher_in_flight": gauges.FLIGHT}
    return {f"ray_pathryoshka_{prefix}_{shown.name}" for prefix, table in tables.items() for shown in table}


# ---------------------------------------------------------------- alerts


@needs_promtool
def test_promtool_accepts_the_alerts_and_each_fires_when_it_must_and_not_before() -> None:
    for args in (("check", "rules", str(RULES)), ("test", "rules", str(RULES_TEST))):
        done = promtool(*args)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_both_ways() -> None:
    said = [one for test in yaml.safe_load(RULES_TEST.read_text())["tests"] for one in test["alert_rule_test"]]
    for rule in rules():
        outcomes = {bool(one["exp_alerts"]) for one in said if one["alertname"] == rule["alert"]}
        assert outcomes == {True, False}, rule["alert"]


@needs_promtool
@pytest.mark.parametrize(
    ("was", "is_now"),
    [
        ("> 600\n", "> 300\n"),
        ("< 3 * max", "< 1 * max"),
        (">= max by (run) (ray_pathryoshka_run_views_planned)", "> max by (run) (ray_pathryoshka_run_views_planned)"),
        (">= 1\n", ">= 2\n"),
        ("for: 10m", "for: 30m"),
        ("max_over_time(ray_pathryoshka_run_nonfinite[15m])", "ray_pathryoshka_run_nonfinite"),
        ("> 7200", "> 3600"),
        ("> max by (run) (ray_pathryoshka_run_budget)", ">= max by (run) (ray_pathryoshka_run_budget)"),
        ("for: 5m", "for: 4m"),
        ("and on () (count(ray_pathryoshka_run_views) > 0)", ""),
    ],
)
def test_an_alert_that_was_changed_fails_its_test(was: str, is_now: str, tmp_path: Path) -> None:
    assert was in RULES.read_text()
    (tmp_path / "alerts.yml").write_text(RULES.read_text().replace(was, is_now))
    test = RULES_TEST.read_text().replace("../../pathryoshka/observability/alerts.yml", "alerts.yml")
    (tmp_path / "test.yml").write_text(test)
    assert promtool("test", "rules", str(tmp_path / "test.yml")).returncode != 0


# ---------------------------------------------------------------- boards


@both_boards
def test_grafanas_own_models_know_every_word_of_a_board(board: dict[str, Any]) -> None:
    assert not lost_words(board)


def test_a_misspelt_word_is_found() -> None:
    board = run_board()
    board["panels"][0]["gridPoss"] = board["panels"][0].pop("gridPos")
    board["panels"][7]["targets"][0]["legend"] = "{{run}}"
    assert {"panels.gridPoss", "panels.targets.legend"} <= set(lost_words(board))


def lost_words(board: dict[str, Any]) -> list[str]:
    """Keys, and values, that do not survive Grafana's models: read as they read, written as they write."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    return list(lost(board, json.loads(json.dumps(Dashboard.from_json(board), cls=JSONEncoder))))


def lost(mine: Any, theirs: Any, where: str = "") -> Any:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key, value in mine.items():
            path = f"{where}.{key}".lstrip(".")
            yield from lost(value, theirs[key], path) if key in theirs else [path]
    elif isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        for one, other in zip(mine, theirs, strict=True):
            yield from lost(one, other, where)
    elif mine != theirs:
        yield where


@both_boards
def test_panels_do_not_overlap_and_ask_only_for_known_variables(board: dict[str, Any]) -> None:
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not mine & cells and at["x"] + at["w"] <= 24, panel["title"]
        cells |= mine
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert set(re.findall(r"\$(\w+)", json.dumps(board).replace("${", "$").replace("$__all", ""))) <= variables


@needs_promtool
def test_promtool_parses_every_query_of_a_panel(tmp_path: Path) -> None:
    asked = queries(run_board()) + queries(sweep_board())
    records = [{"record": f"panel:{n}", "expr": query} for n, query in enumerate(asked)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": records}]}))
    done = promtool("check", "rules", str(tmp_path / "rules.yml"))
    assert done.returncode == 0 and f"{len(asked)} rules found" in done.stdout, done.stdout + done.stderr


def test_every_metric_asked_for_is_ours_or_on_a_board_of_rays() -> None:
    asked = "\n".join(queries(run_board()) + queries(sweep_board()) + [rule["expr"] for rule in rules()])
    rays = set(METRIC.findall("\n".join(ray_boards().values())))
    unknown = set(METRIC.findall(asked)) - exported() - rays
    assert not unknown
    never = {f"ray_pathryoshka_run_{name}" for name in ("lr", "student_memory_mib")}
    assert exported() - set(METRIC.findall(asked)) - {f"ray_pathryoshka_run_{s.name}" for s in gauges.TRIAL} <= never


# ---------------------------------------------------------------- files


def test_the_files_in_infra_are_what_the_package_writes() -> None:
    there = {str(p.relative_to(INFRA)): p.read_text() for p in INFRA.rglob("*.*") if p.is_file() and p.name[0] != "."}
    there = {name: text for name, text in there.items() if not name.startswith("grafana/ray/")}
    assert there == files("/etc/pathryoshka"), "write them anew: pathryoshka dashboards --to infra/observability " \
        "--at /etc/pathryoshka"  # fmt: skip


def test_the_verb_writes_ours_and_rays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["dashboards", "--to", str(tmp_path / "out"), "--ray-tmp", "/scratch/ray"])
    assert ended.value.code == 0
    said = capsys.readouterr().out.split()
    assert set(said) == {str(p) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    titles = {json.loads(p.read_text())["uid"] for p in (tmp_path / "out" / "grafana").rglob("*.json")}
    rays = {"rayDefaultDashboard", "rayTrainDashboard", "rayDataDashboard"}
    assert titles == {"pathryoshka-run", "pathryoshka-sweep", *rays}
    scraped = yaml.safe_load((tmp_path / "out" / "prometheus.yml").read_text())["scrape_configs"][0]
    assert scraped["file_sd_configs"][0]["files"] == ["/scratch/ray/prom_metrics_service_discovery.json"]
    providers = yaml.safe_load((tmp_path / "out/grafana/provisioning/dashboards/boards.yml").read_text())["providers"]
    assert all(list(Path(one["options"]["path"]).glob("*.json")) for one in providers)


@needs_promtool
def test_promtool_accepts_the_configuration(tmp_path: Path) -> None:
    write(tmp_path)
    done = promtool("check", "config", str(tmp_path / "prometheus.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


# ---------------------------------------------------------------- serving

STAND_IN = """#!{python}
import configparser, http.server, sys
options = dict(arg.removeprefix("--").split("=", 1) for arg in sys.argv[2:])
read = configparser.ConfigParser()
read.read(options["config"])
assert sys.argv[1] == "server" and "homepath" in options
http.server.HTTPServer((read["server"]["http_addr"], read["server"].getint("http_port")),
                       http.server.SimpleHTTPRequestHandler).serve_forever()
"""
"""Grafana itself cannot be had here: this one answers on the port that its configuration names."""


@needs_prometheus
@pytest.mark.parametrize("with_grafana", [False, True], ids=["alone", "with a stand-in of Grafana"])
def test_the_verb_serves_until_ctrl_c_and_leaves_nothing(with_grafana: bool, tmp_path: Path) -> None:
    bin_ = tmp_path / "bin"
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "health").write_text("ok")
    bin_.mkdir()
    if with_grafana:
        (bin_ / "grafana").write_text(STAND_IN.format(python=sys.executable))
        (bin_ / "grafana").chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{bin_}:{os.environ['PATH']}",
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": str(HERE.parent),
    }
    command = [sys.executable, "-u", "-m", "pathryoshka.cli", "dashboards", "--ray-tmp", str(tmp_path / "ray")]
    log = tmp_path / "log"
    with log.open("w") as out:
        verb = subprocess.Popen(command, stdout=out, stderr=out, env=env, cwd=tmp_path, start_new_session=True)
    try:
        wait_for(lambda: "Ctrl-C ends" in log.read_text(), 60, log.read_text)
        below = psutil.Process(verb.pid).children(recursive=True)
        said = log.read_text()
        assert "no Ray session" in said and ("GRAFANA IS NOT INSTALLED" in said) == (not with_grafana)
        address = re.search(r"Prometheus: http://(\S+)", said)
        assert address and ask(address[1], "vector(1)") and len(below) == 1 + with_grafana
    finally:
        verb.send_signal(signal.SIGINT)
    assert verb.wait(30) == 0, log.read_text()
    assert not any(process.is_running() for process in below)
    assert {p.name for p in tmp_path.iterdir()} == {"bin", "api", "log"}


def test_without_prometheus_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServeError, match="apt-get install prometheus"):
        serve(str(tmp_path), say=lambda line: None)


# ---------------------------------------------------------------- what a log line shows


def test_a_gauge_reads_its_keys_and_no_others() -> None:
    line = {"loss": 1.5, "unexplained/a": 0.5, "unexplained/a/summary/48": 9.0, "unexplained/b": 0.25, "lossy": 3.0}
    unexplained, loss = gauges.TRIAL[0], gauges.TRIAL[1]
    assert list(unexplained.read(line)) == [({"teacher": "a"}, 0.5), ({"teacher": "b"}, 0.25)]
    assert list(loss.read(line)) == [({}, 1.5)] and not list(loss.read({}))


def test_a_budget_needs_a_price() -> None:
    with pytest.raises(config.ConfigError, match="metrics.budget needs metrics.cost_per_hour"):
        config.load_run("debug", settings=["metrics.budget=5"])


# ---------------------------------------------------------------- a real run


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    """A run on local disk that lasts until it is stopped, its log lines seconds apart."""
    tiles = str(tmp_path / "tiles")
    write_phantom(tiles, config.Storage(), num_tiles=240, num_patients=6, num_sites=2, size=48)
    tree = settings(str(tmp_path / "runs"), tiles, name="seen", plan={"num_views": 200_000, "window": 2})
    tree["train"] |= {"num_workers": 1, "checkpoint_every": 10}
    models = tree["teachers"]["models"]
    models["mock1"] = models["mock1"] | {"mock_seconds": 0.02}
    return tree | {"metrics": {"dashboard": True, "cost_per_hour": 36.0, "budget": 0.01}}


def wait_for(what: Callable[[], Any], seconds: float, why: Callable[[], str]) -> Any:
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, why()
        time.sleep(1)
    return found


@pytest.mark.full
@pytest.mark.timeout(600)
@needs_prometheus
def test_a_real_prometheus_finds_every_panel_and_alert_of_a_real_run(tree: dict[str, Any], tmp_path: Path) -> None:
    wanted = [q for q in queries(run_board()) if not set(METRIC.findall(q)) & (HARDWARE | IN_A_STORE)]
    names = set(METRIC.findall("\n".join([*wanted, *(rule["expr"] for rule in rules())])))
    found: set[str] = set()
    driver = Driver(tree, tmp_path / "driver").start()
    try:
        with scraping(tmp_path / "prometheus", short_tmp()) as address:

            def missing() -> list[str]:
                found.update(query for query in [*wanted, *names] if query not in found and ask(address, query))
                return [query for query in [*wanted, *names] if query not in found]

            driver.wait_for("step 5/")
            wait_for(lambda: not missing(), 120, lambda: f"{missing()}\n{driver.text()[-2000:]}")
            ready = {a["metric"]["teacher"]: a["value"][1] for a in ask(address, "ray_pathryoshka_teacher_ready")}
            assert ready == {"mock0": "1", "mock1": "1"}
            at_teachers = ask(address, "max by (teacher) (max_over_time(ray_pathryoshka_teacher_in_flight_views[5m]))")
            at_teachers = {one["metric"]["teacher"]: float(one["value"][1]) for one in at_teachers}
            assert 0 < at_teachers["mock1"] <= 4 * 8  # teachers.max_in_flight micro-batches
            assert ask(address, SLOWEST.replace("$run", ".*"))[0]["metric"]["stage"] == "mock1"
            assert [float(a["value"][1]) for a in ask(address, "ray_pathryoshka_run_views_planned")] == [200_000]
            wait_for(lambda: "OverBudget" in firing(address), 60, driver.text)  # .01 at 36 an hour is 1 s
            assert firing(address) <= {"OverBudget", "DiskNearlyFull"}

            driver.processes("ray::Replica")[0].kill()
            restarts = "sum by (run) (ray_pathryoshka_teacher_restarts) > 0"
            assert wait_for(lambda: ask(address, restarts), 90, driver.text)[0]["metric"]["run"] == "seen"
            wait_for(lambda: "TeacherRestarting" in firing(address), 30, driver.text)

            run = str(tmp_path / "runs" / "seen")

            def both() -> list[tuple[float, float]]:
                """(shown, written) loss of every log line that Prometheus scraped before the next one came."""
                lines = {line["views"]: line["loss"] for line in read_metrics(run, config.Storage())}
                views, losses = (ask(address, f"ray_pathryoshka_run_{n}[10m]")[0]["values"] for n in ("views", "loss"))
                at = {when: float(value) for when, value in losses}
                shown = {float(value): at[when] for when, value in views if when in at}
                return [(shown[views], lines[views]) for views in shown.keys() & lines.keys()]

            wait_for(lambda: len(both()) > 1, 180, driver.text)  # what Prometheus kept is what the run wrote down
            assert all(abs(shown - written) < 1e-6 for shown, written in both())
            driver.process.send_signal(signal.SIGINT)
            driver.wait()
    finally:
        if driver.process.poll() is None:
            driver.kill()


@pytest.mark.full
@pytest.mark.timeout(600)
@needs_prometheus
def test_a_run_that_stops_at_a_loss_that_is_not_finite_is_heard_of(tree: dict[str, Any], tmp_path: Path) -> None:
    driver = Driver(
        config.overlay(tree, {"optim": {"lr": 1e30}, "train": {"log_every": 2}}), tmp_path / "driver"
    ).start()
    try:
        with scraping(tmp_path / "prometheus", short_tmp()) as address:
            assert driver.wait(400) == 1 and "the loss was not finite by step" in driver.text()
            wait_for(lambda: "NotFinite" in firing(address), 30, driver.text)
            seen = ask(address, "max by (source) (max_over_time(ray_pathryoshka_run_nonfinite[5m])) > 0")
            assert [one["metric"] for one in seen] == [{"source": "loss"}]
    finally:
        if driver.process.poll() is None:
            driver.kill()
