"""A run's name is its key: what may change between two attempts under one name, and what may not."""

from __future__ import annotations

import json
import re
from typing import Any

from pathryoshka import config, storage

FREE = re.compile(
    r"(storage|store|licence|evaluate|export|metrics)\..*"
    r"|train\.(num_workers|resources_per_worker.*|log_every|checkpoint_every|keep|max_failures|grace_s|device)"
    r"|data\.(read_tasks|prefetch_batches|max_failed_share|tiles)"
    r"|teachers\.(start_timeout_s|max_in_flight)"
    r"|teachers\.models\.[^.]+\.(replicas|num_gpus|num_cpus|resources.*|accelerator_type|batch_size|compile|device|mock_seconds)"
)
"""Fields that decide how fast or where, not what is computed. `data.tiles` may move: the manifest's digest decides."""


def refuse_changes(run: config.Run, run_uri: str, manifests: list[str], allow: tuple[str, ...]) -> None:
    """Saves the resolved run; refuses another one under the same name once something was made of the first.

    A run that failed before its standardisers were fitted holds nothing that a corrected config could spoil.

    Raises:
        ConfigError: names the first field that changed, with both values.
    """
    uri = storage.join(run_uri, "run.json")
    now = {"run": json.loads(config.run_to_json(run)), "manifests": manifests}
    if storage.exists(storage.join(run_uri, "standardisers.json"), run.storage):
        old = storage.read_json(uri, run.storage)
        changes = list(differences(old["run"], now["run"]))
        changes += differences({"data.manifests": old["manifests"]}, {"data.manifests": manifests})
        for key, was, is_now in changes:
            if key not in allow and not FREE.fullmatch(key):
                raise config.ConfigError(
                    f"run {run.name} exists with {key} = {was!r}, not {is_now!r}; use another name, the old value, or "
                    f"--allow-change {key}"
                )
    storage.write_json(uri, now, run.storage)


def differences(old: Any, new: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) of every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{where}.{k}" if where else k)]
    return [] if old == new else [(where, old, new)]
