"""What a cluster says of itself, asked from its head in a small job: `python -m pathryoshka.submit.probe run.yaml`.

Prints one line, `MARK` and JSON: versions, nodes with what they have and what of it is free, the most that an
autoscaler may add (none = there is no autoscaler), and whether the run's storage can be written from there.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
import sys
import uuid
from typing import Any

import ray

from pathryoshka import config, storage
from pathryoshka.retry import StorageError

MARK = "pathryoshka-probe "
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
        "most": state.get_max_resources_from_cluster_config(),
        "storage": why_not_writable(run),
    }


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
