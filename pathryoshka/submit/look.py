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
    for roles, need, whose in by_roles(demands(run, has_gpus(seen))):
        there, may = fitting(seen["nodes"], roles), fitting(seen["may"], roles)
        where = f"nodes with {' and '.join(roles)}" if roles else "all nodes"
        for key, value in need.items():
            have = sum(node["has"].get(key, 0) for node in there)
            # nodes of a kind that may come are among those that are there already
            most = max(have, sum(kind["has"].get(key, 0) * kind["most"] for kind in may))
            if value > most + 1e-9:
                grown = " at most" if may else ""
                yield f"{whose} need {value:g} {key} on {where}; the cluster has {most:g}{grown}"


def fitting(nodes: list[dict[str, Any]], roles: tuple[str, ...]) -> list[dict[str, Any]]:
    return [node for node in nodes if all(node["has"].get(role, 0) > 0 for role in roles)]


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
        there = fitting(seen["nodes"], roles)
        with_roles = f" with {', '.join(roles)}" if roles else ""
        counts = "; ".join(
            f"{key} {value:g} of {sum(n['free'].get(key, 0) for n in there):g} free, "
            f"{sum(n['has'].get(key, 0) for n in there):g} there"
            for key, value in need.items()
            if key not in roles
        )
        yield f"{whose}: {counts} on {len(there)} nodes{with_roles}"
    for kind in seen["may"]:
        yield f"may come: up to {kind['most']} x " + ", ".join(f"{v:g} {k}" for k, v in sorted(kind["has"].items()))


def has_gpus(seen: dict[str, Any]) -> bool:
    return any(node["has"].get("GPU", 0) > 0 for node in seen["nodes"] + seen["may"])
