"""May this run start on that cluster? Demand against what its nodes have, role by role, before anything is paid for.

A role is a custom resource that nodes announce (`teacher`, `student`) and pools and workers ask for.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray

from pathryoshka import config
from pathryoshka.teachers.pool import flat_resources, placement


@dataclass(frozen=True)
class Demand:
    """What a part of a run holds at the same time, and the custom resources that say where."""

    what: str
    count: int
    each: dict[str, float]

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(sorted(key for key in self.each if key not in ("CPU", "GPU", "memory")))


def demands(run: config.Run, gpus_exist: bool) -> list[Demand]:
    """Each teacher's replicas, and the train workers."""
    out = []
    for name, teacher in run.teachers.models.items():
        out.append(Demand(f"teacher {name}", teacher.replicas, flat_resources(placement(teacher, gpus_exist))))
    on_gpu = run.train.device == "cuda" or (run.train.device == "auto" and gpus_exist)
    each = {"CPU": 1.0} | ({"GPU": 1.0} if on_gpu else {}) | dict(run.train.resources_per_worker)
    out.append(Demand("student", run.worker_counts[0], each))
    return out


def wrong(run: config.Run | None, seen: dict[str, Any]) -> Iterator[str]:
    """Sentences that say why a job must not start, none if it may.

    Args:
        run: None for a job that holds no pools.
        seen: what `probe` printed.
    """
    ours = platform.python_version().rsplit(".", 1)[0]
    if seen["ray"] != ray.__version__:
        yield f"the cluster runs Ray {seen['ray']}, this machine {ray.__version__}; they must be the same"
    if seen["python"].rsplit(".", 1)[0] != ours:
        yield f"the cluster runs Python {seen['python']}, this machine {ours}; they must be the same"
    lacking = [name for name, version in seen["packages"].items() if version is None]
    if lacking:
        yield f"the cluster has no {', '.join(lacking)}; start its nodes from the image in infra/docker"
    if seen["storage"]:
        yield f"the head cannot write storage.root: {seen['storage']}"
    if run is not None:
        yield from too_small(run, seen)


def too_small(run: config.Run, seen: dict[str, Any]) -> Iterator[str]:
    """What the run holds that the cluster, grown to its most, does not have."""
    nodes, most = seen["nodes"], seen["most"]
    for roles, need, whose in by_roles(demands(run, has_gpus(seen))):
        fitting = [node["has"] for node in nodes if all(node["has"].get(role, 0) > 0 for role in roles)]
        where = f"nodes with {' and '.join(roles)}" if roles else "all nodes"
        for key, value in need.items():
            have = sum(has.get(key, 0) for has in fitting)
            if most is not None:  # an autoscaler may bring more; whose role that is only its config knows
                have = max(have, most.get(key, 0))
            if value > have + 1e-9:
                yield f"{whose} need {value:g} {key} on {where}; the cluster has {have:g}{' at most' if most else ''}"


def by_roles(parts: list[Demand]) -> Iterator[tuple[tuple[str, ...], dict[str, float], str]]:
    """(roles, need by resource, names) of the parts that ask for the same kind of node."""
    for roles in sorted({part.roles for part in parts}):
        need: dict[str, float] = {}
        mine = [part for part in parts if part.roles == roles]
        for part in mine:
            for key, value in part.each.items():
                need[key] = need.get(key, 0) + value * part.count
        yield roles, need, ", ".join(f"{part.what} x {part.count}" for part in mine)


def lines(run: config.Run, seen: dict[str, Any]) -> Iterator[str]:
    """What the run needs beside what there is and what is free now."""
    for roles, need, whose in by_roles(demands(run, has_gpus(seen))):
        fitting = [n for n in seen["nodes"] if all(n["has"].get(role, 0) > 0 for role in roles)]
        with_roles = f" with {', '.join(roles)}" if roles else ""
        counts = "; ".join(
            f"{key} {value:g} of {sum(n['free'].get(key, 0) for n in fitting):g} free, "
            f"{sum(n['has'].get(key, 0) for n in fitting):g} there"
            for key, value in need.items()
            if key not in roles
        )
        yield f"{whose}: {counts} on {len(fitting)} nodes{with_roles}"
    if seen["most"] is not None:
        yield "the autoscaler may bring up to " + ", ".join(f"{v:g} {k}" for k, v in sorted(seen["most"].items()))


def has_gpus(seen: dict[str, Any]) -> bool:
    most = seen["most"] or {}
    return most.get("GPU", 0) > 0 or any(node["has"].get("GPU", 0) > 0 for node in seen["nodes"])
