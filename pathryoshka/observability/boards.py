"""Boards for Grafana, as it reads them: one of runs, one of the trials of sweeps. Ray's own are beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pathryoshka.observability.gauges import TRIAL

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
RUN_FILE, SWEEP_FILE = "run_grafana_dashboard.json", "sweep_grafana_dashboard.json"
COLUMNS = 24  # of Grafana's grid

THIS = '{run=~"$run"}'
WIDE, NARROW = 12, 4


@dataclass(frozen=True)
class Panel:
    """A title, lines as (query, legend), a unit of Grafana's, and columns of 24; `last` shows only the last value."""

    title: str
    lines: tuple[tuple[str, str], ...]
    unit: str = "short"
    width: int = WIDE
    last: bool = False
    said: str = ""


def run(name: str, *by: str) -> str:
    """A gauge of the chosen runs, without the labels of whoever shows it: after a restart that is another process."""
    return f"max by ({', '.join(('run', *by))}) (ray_pathryoshka_{name}{THIS})"


HOURS = f"(time() - {run('run_began_timestamp_seconds')}) / 3600"
SLOWEST = f"bottomk by (run) (1, {run('run_stage_rate', 'stage')})"
DISK = "ray_node_disk_usage / (ray_node_disk_usage + ray_node_disk_free)"
RUN_PANELS = (
    Panel("trained", ((f"{run('run_views')} / {run('run_views_planned')}", "{{run}}"),), "percentunit", NARROW, True,
          "views trained on, of those planned"),
    Panel("time left", ((run("run_seconds_left"), "{{run}}"),), "s", NARROW, True),
    Panel("bottleneck", ((SLOWEST, "{{stage}} ({{run}})"),), "short", NARROW, True,
          "the slowest stage and the views a second that it could make"),
    Panel("since the last line", ((f"time() - {run('run_logged_timestamp_seconds')}", "{{run}}"),), "s", NARROW, True),
    Panel("since the last checkpoint", ((f"time() - {run('run_checkpoint_timestamp_seconds')}", "{{run}}"),), "s",
          NARROW, True, "what an accident now would cost"),
    Panel("spent", ((f"{HOURS} * {run('run_cost_per_hour')}", "{{run}}"),), "short", NARROW, True,
          "hours of all attempts times metrics.cost_per_hour; empty without one"),
    Panel("stages: views a second each could make", ((run("run_stage_rate", "stage"), "{{stage}} {{run}}"),)),
    Panel("views trained on a second", ((run("run_tiles_per_s"), "{{run}}"),)),
    Panel("waiting for data, share of the time", ((run("run_wait_share"), "{{run}}"),), "percentunit"),
    Panel("views at the teachers", ((run("teacher_in_flight_views", "teacher"), "{{teacher}} {{run}}"),),
          said="sent and not yet answered: a teacher whose queue stays full is too slow or too few"),
    Panel("micro-batches between stages",
          (("sum by (dataset, operator) (ray_data_num_external_inqueue_blocks)", "before {{operator}}"),),
          said="made by one stage and not yet taken by the next"),
    Panel("features out of the store", ((run("run_store_hit_rate"), "{{run}}"),), "percentunit"),
    Panel("loss", ((run("run_loss"), "{{run}}"),)),
    Panel("fraction unexplained, by teacher", ((run("run_unexplained", "teacher"), "{{teacher}} {{run}}"),)),
    Panel("not finite, in a log interval", ((run("run_nonfinite", "source"), "{{source}} {{run}}"),)),
    Panel("teachers: replicas", ((run("teacher_ready", "teacher"), "{{teacher}} ready {{run}}"),
                                 (run("teacher_wanted", "teacher"), "{{teacher}} wanted {{run}}"))),
    Panel("teachers: restarts and failed starts", (
        (run("teacher_restarts", "teacher"), "{{teacher}} restarts {{run}}"),
        (run("teacher_failed_starts", "teacher"), "{{teacher}} failed starts {{run}}"))),
    Panel("nodes: GPUs in use", (("ray_node_gpus_utilization", "{{ip}} {{GpuIndex}}"),), "percent"),
    Panel("nodes: CPUs in use", (("ray_node_cpu_utilization", "{{ip}}"),), "percent"),
    Panel("nodes: memory in use", (("ray_node_mem_used / ray_node_mem_total", "{{ip}}"),), "percentunit"),
    Panel("nodes: disk in use", ((DISK, "{{ip}}"),), "percentunit"),
    Panel("nodes alive", (("count (ray_node_mem_total)", "nodes"),)),
    Panel("nodes: object store", (("sum by (NodeAddress) (ray_object_store_memory)", "{{NodeAddress}}"),), "bytes"),
)  # fmt: skip


def run_board() -> dict[str, Any]:
    """'Pathryoshka: a run': how far, how fast, what limits it, how the teachers and nodes are, what it costs."""
    return board("pathryoshka-run", "Pathryoshka: a run", ("run",), "ray_pathryoshka_run_views", RUN_PANELS)


def sweep_board() -> dict[str, Any]:
    """'Pathryoshka sweeps': a panel a gauge, a line a trial (and teacher)."""
    panels = [
        Panel(
            f"{shown.said}, by {shown.label}" if shown.label else shown.said,
            ((f'ray_pathryoshka_trial_{shown.name}{{sweep=~"$sweep", trial=~"$trial"}}', legend(shown.label)),),
            shown.unit,
        )
        for shown in TRIAL
    ]
    return board("pathryoshka-sweep", "Pathryoshka sweeps", ("sweep", "trial"), "ray_pathryoshka_trial_views", panels)


def legend(label: str) -> str:
    return f"{{{{trial}}}} {{{{{label}}}}}" if label else "{{trial}}"


def board(uid: str, title: str, choices: tuple[str, ...], metric: str, panels: Any) -> dict[str, Any]:
    """A board whose variables are the values of the labels `choices` of `metric`, each within those before it."""
    variables: list[dict[str, Any]] = [{"name": "datasource", "type": "datasource", "query": "prometheus"}]
    for n, name in enumerate(choices):
        within = ", ".join(f'{other}=~"${other}"' for other in choices[:n])
        variables.append(variable(name, f"label_values({metric}{{{within}}}, {name})"))
    placed: list[dict[str, Any]] = []
    x = y = tall = 0
    for number, one in enumerate(panels, start=1):
        height = 4 if one.last else 8
        if x + one.width > COLUMNS:
            x, y = 0, y + tall
        placed.append(drawn(one, number, {"h": height, "w": one.width, "x": x, "y": y}))
        x, tall = x + one.width, height
    return {
        "uid": uid,
        "title": title,
        "tags": ["pathryoshka"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables},
        "panels": placed,
    }


def drawn(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    """A panel in Grafana's words."""
    how: dict[str, Any] = {"type": "timeseries"}
    if panel.last:
        shows = {
            "reduceOptions": {"values": False, "calcs": ["lastNotNull"], "fields": ""},
            "textMode": "value_and_name",
        }
        how = {"type": "stat", "options": shows}
    return {
        "id": number,
        "title": panel.title,
        "description": panel.said,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + n), "datasource": SOURCE, "expr": query, "legendFormat": words}
            for n, (query, words) in enumerate(panel.lines)
        ],
    } | how


def variable(name: str, query: str) -> dict[str, Any]:
    """A choice of label values, all of them at first."""
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": query,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }
