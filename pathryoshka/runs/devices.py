"""What a run asks of a cluster: logical CPUs for a session of its own, GPUs for its pools and workers."""

from __future__ import annotations

import os

import ray

from pathryoshka import config
from pathryoshka.session import on_cluster
from pathryoshka.teachers.pool import flat_resources, placement


class DeviceError(RuntimeError):
    """The devices that a run asks for are not there; the sentence says how many are needed."""


def logical_cpus(run: config.Run) -> int:
    """CPUs a local session must announce so that every stage of the run has its own."""
    return max(os.cpu_count() or 1, int(teacher_demand(run, False).get("CPU", 0) + student_demand(run, False)["CPU"]))


def teacher_demand(run: config.Run, gpus_exist: bool) -> dict[str, float]:
    """What the pools of a run hold, by resource."""
    need: dict[str, float] = {}
    for teacher in run.teachers.models.values():
        for key, value in flat_resources(placement(teacher, gpus_exist)).items():
            need[key] = need.get(key, 0) + value * teacher.replicas
    return need


def student_demand(run: config.Run, gpus_exist: bool) -> dict[str, float]:
    """What the rest of a run holds: its train workers, and CPUs for readers, the teacher stage and what Ray adds."""
    workers, each = max(run.worker_counts), {"CPU": 1.0, **run.train.resources_per_worker}
    on_gpu = run.train.device == "cuda" or (run.train.device == "auto" and gpus_exist)
    need = {"GPU": 1.0} | each if on_gpu else each
    need = {key: value * workers for key, value in need.items()}
    return need | {"CPU": need["CPU"] + run.data.read_tasks + 3}


def refuse_too_few_devices(run: config.Run) -> None:
    """Refuses what can never be had. A local session cannot grow; a cluster may, to its autoscaler's maximum, and one
    whose maximum nobody knows is waited for.

    Raises:
        DeviceError: too few for the pools and workers, in words; or a student that is to be on a CPU and a GPU.
    """
    if run.train.device == "cpu" and run.train.resources_per_worker.get("GPU"):
        raise DeviceError(
            "train.device=cpu, but train.resources_per_worker asks for a GPU; set train.device=cuda, or leave GPU out"
        )
    have = ray.cluster_resources()
    if on_cluster():
        refuse_uncountable_workers(run)
        # private, but the only door to it: Ray Train asks here, too
        most = ray._private.state.state.get_max_resources_from_cluster_config()
        if most is None:
            return
        have = {key: max(most.get(key, 0), have.get(key, 0)) for key in {*most, *have}}
        place, advice = "the cluster can grow to", "raise its maximum"
    else:
        place, advice = "this machine has", "point RAY_ADDRESS at a larger cluster"
    need = teacher_demand(run, have.get("GPU", 0) > 0)
    need["GPU"] = need.get("GPU", 0) + (min(run.worker_counts) if run.train.device == "cuda" else 0)
    for key, value in need.items():
        if value > have.get(key, 0):
            raise DeviceError(
                f"the pools need {value:g} {key} and {place} {have.get(key, 0):g}; lower "
                f"teachers.models.<name>.replicas or num_gpus, set device=cpu, or {advice}"
            )


def refuse_uncountable_workers(run: config.Run) -> None:
    """Ray Train sizes an elastic group by all that a node has, also by what the teachers hold of it: without a resource
    of their own it starts workers that nobody can place, and waits for them for ever.

    Raises:
        DeviceError: the number of workers is a range, and they ask for nothing but CPUs and GPUs.
    """
    least, most = run.worker_counts[0], run.worker_counts[-1]
    if most > least and not {*run.train.resources_per_worker} - {"CPU", "GPU"}:
        raise DeviceError(
            f"train.num_workers=[{least}, {most}] on a cluster needs a custom resource that nodes announce for each "
            "worker they may hold (ray start --resources='{\"student\": 1}'): set "
            "train.resources_per_worker={student: 1, CPU: 1}, with GPU: 1 where it trains on one"
        )
