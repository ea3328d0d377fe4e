"""Everything that Prometheus and Grafana read, as files: written to a folder, or compared with one."""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path
from typing import Any

import yaml

from pathryoshka.observability.boards import RUN_FILE, SWEEP_FILE, run_board, sweep_board

RAY_BOARDS = ("default", "train", "data")
RAY_TMP = "/tmp/ray"
"""Where Ray keeps its sessions unless told otherwise, and beside them the file that names every node's metrics."""
GRAFANA_INI = """\
# The board of a run can be looked at without a password, by whoever reaches this port: keep it on loopback.
[server]
http_addr = 127.0.0.1
http_port = {port}

[auth.anonymous]
enabled = true
org_role = Viewer

[analytics]
reporting_enabled = false
check_for_updates = false

[paths]
data = {data}
logs = {data}/log
provisioning = {at}/grafana/provisioning
"""


def files(
    at: str,
    *,
    ray_tmp: str = RAY_TMP,
    prometheus: str = "http://127.0.0.1:9090",
    grafana_port: int = 3000,
    grafana_data: str = "/var/lib/grafana",
    every: str = "10s",
) -> dict[str, str]:
    """Path below a folder -> text; the same text for the same arguments.

    Args:
        at: where the folder lies on the machine that runs Grafana.
        ray_tmp: Ray's folder of sessions on the machine that runs Prometheus, the head node.
        prometheus: its address, as seen by Grafana.
        every: seconds from one scrape, and one look at the alerts, to the next.
    """
    boards = f"{at}/grafana/dashboards"
    source = {"name": "Prometheus", "type": "prometheus", "url": prometheus, "access": "proxy", "isDefault": True}
    providers = [
        {"name": name, "folder": name, "type": "file", "options": {"path": path}}
        for name, path in (("Pathryoshka", boards), ("Ray", f"{at}/grafana/ray"))
    ]
    discovery = {"files": [f"{ray_tmp}/prom_metrics_service_discovery.json"]}
    scraping = {
        "global": {"scrape_interval": every, "evaluation_interval": every},
        "rule_files": ["alerts.yml"],
        "scrape_configs": [{"job_name": "ray", "file_sd_configs": [discovery]}],
    }
    provisioning = "grafana/provisioning"
    return {
        "prometheus.yml": as_yaml(scraping),
        "alerts.yml": importlib.resources.files(__package__).joinpath("alerts.yml").read_text(),
        "grafana/grafana.ini": GRAFANA_INI.format(port=grafana_port, data=grafana_data, at=at),
        f"{provisioning}/datasources/prometheus.yml": as_yaml({"apiVersion": 1, "datasources": [source]}),
        f"{provisioning}/dashboards/boards.yml": as_yaml({"apiVersion": 1, "providers": providers}),
        f"grafana/dashboards/{RUN_FILE}": json.dumps(run_board(), indent=1) + "\n",
        f"grafana/dashboards/{SWEEP_FILE}": json.dumps(sweep_board(), indent=1) + "\n",
    }


def ray_boards() -> dict[str, str]:
    """Ray's own boards, as this Ray makes them: half of what it shows is named differently in another version."""
    from ray.dashboard.modules.metrics import grafana_dashboard_factory as ray_makes

    made = {name: getattr(ray_makes, f"generate_{name}_grafana_dashboard")()[0] for name in RAY_BOARDS}
    return {f"grafana/ray/{name}_grafana_dashboard.json": text for name, text in made.items()}


def write(folder: Path, at: str | None = None, **how: Any) -> list[Path]:
    """Writes all of it, Ray's boards with it; `at` and the rest as for `files`, `at` being the folder itself."""
    written = []
    for name, text in (files(at or str(folder.absolute()), **how) | ray_boards()).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        written.append(path)
    return written


def as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False)
