"""Lays the board of a sweep's trials beside the sweep, and beside those that Ray writes into its session folder."""

from __future__ import annotations

import json
from pathlib import Path

import ray

from pathryoshka import config, storage
from pathryoshka.observability.boards import SWEEP_FILE, sweep_board
from pathryoshka.sweep.record import sweep_uri


def provision(base: config.Run) -> list[str]:
    """Writes the board beside the sweep and, where this process started the session, beside Ray's own; where to."""
    text = json.dumps(sweep_board(), indent=1)
    written = [storage.join(sweep_uri(base), SWEEP_FILE)]
    storage.write_bytes(written[0], text.encode(), base.storage)
    folder = session_metrics()
    if folder is not None and (boards := folder / "grafana" / "dashboards").is_dir():
        (boards / SWEEP_FILE).write_text(text)
        written.append(str(boards / SWEEP_FILE))
    return written


def session_metrics() -> Path | None:
    """`metrics/` of the session folder, if this process started the session: there is no public way to ask for it."""
    node = ray._private.worker._global_node
    return None if node is None or not node.head else Path(node.get_session_dir_path()) / "metrics"
