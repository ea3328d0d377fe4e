"""A real Prometheus for tests, on the files that the package writes, and questions to it."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pathryoshka.observability.files import write
from pathryoshka.observability.serve import free_port, prometheus


@contextlib.contextmanager
def scraping(folder: Path, ray_tmp: Path) -> Iterator[str]:
    """Address of a Prometheus that looks each second at the Ray session below `ray_tmp`, and at the alerts."""
    write(folder, ray_tmp=str(ray_tmp), every="1s")
    port = free_port(0)
    with prometheus(folder, port):
        yield f"127.0.0.1:{port}"


def ask(address: str, query: str) -> list[dict[str, Any]]:
    """What an instant query finds; nothing where there is no answer."""
    url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return found
    except (urllib.error.URLError, ConnectionError):
        return []


def firing(address: str) -> set[str]:
    """Names of the alerts that fire."""
    return {one["metric"]["alertname"] for one in ask(address, 'ALERTS{alertstate="firing"}')}
