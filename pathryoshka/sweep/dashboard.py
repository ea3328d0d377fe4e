"""A Grafana dashboard for the trials of sweeps, which Ray lacks: beside those that Ray writes into its session folder.

Ray's own `prometheus.yml` there finds every process of the session, ours with it, so nothing else is to be configured:
point Prometheus at that file and Grafana at the folder, as Ray's documentation says for its own boards.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ray

from pathryoshka import config, storage
from pathryoshka.sweep.gauges import NAMES
from pathryoshka.sweep.record import sweep_uri

FILE = "sweep_grafana_dashboard.json"
UNITS = {"wait_share": "percentunit", "store/hit_rate": "percentunit"}
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
CHOSEN = 'sweep=~"$sweep", trial=~"$trial"'


def grafana() -> dict[str, Any]:
    """The dashboard as Grafana reads it: a panel a gauge, a line a trial (and teacher)."""
    shown = [("unexplained", "fraction unexplained, by teacher", "{{trial}} {{teacher}}", "short")]
    shown += [(name, said, "{{trial}}", UNITS.get(key, "short")) for key, (name, said) in NAMES.items()]
    panels = [panel(i, *what) for i, what in enumerate(shown)]
    views = "ray_pathryoshka_trial_views"
    variables = [
        {"name": "datasource", "type": "datasource", "query": "prometheus"},
        variable("sweep", f"label_values({views}, sweep)"),
        variable("trial", f'label_values({views}{{sweep=~"$sweep"}}, trial)'),
    ]
    return {
        "uid": "pathryoshka-sweep",
        "title": "Pathryoshka sweeps",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables},
        "panels": panels,
    }


def panel(number: int, name: str, title: str, legend: str, unit: str) -> dict[str, Any]:
    query = f"ray_pathryoshka_trial_{name}{{{CHOSEN}}}"
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": SOURCE,
        "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "targets": [{"refId": "A", "datasource": SOURCE, "expr": query, "legendFormat": legend}],
    }


def variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": query,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
    }


def provision(base: config.Run) -> list[str]:
    """Writes the board beside the sweep and, where this process started the session, beside Ray's own; where to."""
    text = json.dumps(grafana(), indent=1)
    written = [storage.join(sweep_uri(base), FILE)]
    storage.write_bytes(written[0], text.encode(), base.storage)
    folder = session_metrics()
    if folder is not None and (boards := folder / "grafana" / "dashboards").is_dir():
        (boards / FILE).write_text(text)
        written.append(str(boards / FILE))
    return written


def session_metrics() -> Path | None:
    """`metrics/` of the session folder, if this process started the session: there is no public way to ask for it."""
    node = ray._private.worker._global_node
    return None if node is None or not node.head else Path(node.get_session_dir_path()) / "metrics"
