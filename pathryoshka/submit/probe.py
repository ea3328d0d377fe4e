"""What a cluster says of itself, asked from its head in a small job: `python -m pathryoshka.submit.probe run.yaml`.

Prints one line, `MARK` and JSON: versions, nodes with what they have and what of it is free, the kinds of nodes that an
autoscaler may bring and the most of each, and whether the run's storage can be written from there.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import sys
import uuid
from pathlib import Path
from typing import Any

import ray
import yaml

from pathryoshka import config, storage
from pathryoshka.storage.retry import StorageError

MARK = "pathryoshka-probe "
CLUSTER = "PATHRYOSHKA_CLUSTER"
"""On the head of a cluster that grows: its YAML for Ray's autoscaler, or a file of it. Ray itself tells nobody."""
PACKAGES = ("torch", "timm", "deepspeed", "pyarrow")


def main() -> None:
    tree = config.read_file(sys.argv[1])
    tree.pop("sweep", None)
    run = config.resolve("debug", tree)
    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    print(MARK + json.dumps(probe(run)), flush=True)


def probe(run: config.Run) -> dict[str, Any]:
    """See the module; needs a connected Ray."""
    state = ray._private.state.state  # private, but the only door to what is free on each node
    free = state.available_resources_per_node()
    nodes = [
        {"has": node["Resources"], "free": free.get(node["NodeID"], {}), "labels": node.get("Labels", {})}
        for node in ray.nodes()
        if node["Alive"]
    ]
    return {
        "ray": ray.__version__,
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in PACKAGES},
        "nodes": nodes,
        "may": may_come(os.environ.get(CLUSTER)),
        "storage": why_not_writable(run),
    }


def may_come(cluster: str | None) -> list[dict[str, Any]]:
    """What each kind of node has, and the most of it that there may be; none where no autoscaler is."""
    if not cluster:
        return []
    text = Path(cluster).read_text() if cluster.startswith("/") else cluster
    kinds = yaml.safe_load(text)["available_node_types"].values()
    return [{"has": kind["resources"], "most": kind["max_workers"]} for kind in kinds if kind.get("max_workers")]


def version_of(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def why_not_writable(run: config.Run) -> str | None:
    """None when a file can be written under `storage.root` and read back, else why not."""
    few = run.storage.model_copy(update={"max_attempts": 2})
    uri = storage.join(run.storage.root, f".probe-{uuid.uuid4().hex}")
    try:
        storage.ensure_root(run.storage.root, few)
        storage.write_bytes(uri, b"probe", few)
        same = storage.read_bytes(uri, few) == b"probe"
        storage.delete(uri, few)
    except StorageError as error:
        return str(error)
    return None if same else f"{uri} did not read back as it was written"


if __name__ == "__main__":
    main()
