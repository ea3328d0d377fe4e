"""Pools of frozen teachers: named, long-lived Ray actors on their own devices, and who is in them now.

Replicas belong to the driver: they live across epochs, restarts of the train workers and trials, and end with the
driver. A supervisor thread keeps them: it starts what is missing, counts failed starts, and publishes the membership
to a small `Directory` actor that the stream reads. Ray restarts an actor whose process or node died; a call that was
lost with it is repeated by the caller on any live replica (`distill/fanout.py`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from pathryoshka import config
from pathryoshka.memory import keep_freed_memory, peak_memory_mib
from pathryoshka.observability.gauges import POOL, Gauges
from pathryoshka.session import beside_the_driver, end_actors

MAX_FAILED_STARTS = 3
TICK_S = 1.0


class TeacherError(RuntimeError):
    """A teacher that cannot be had: its own last error in one sentence."""


@dataclass(frozen=True)
class Facts:
    """What a warmed replica says of itself."""

    summary_dim: int
    token_dim: int
    num_params: int
    licence: str
    terms: dict[str, Any]
    fingerprint: dict[str, Any]
    device: str
    node: str
    pid: int
    start_s: float
    memory_mib: float


@dataclass(frozen=True)
class Shared:
    """A pool that somebody else owns and keeps warm, for several runs: its directory actor, and what is in it."""

    directory: str
    facts: dict[str, Facts]


@ray.remote(concurrency_groups={"control": 1})  # type: ignore[call-overload]
class Replica:
    """One frozen teacher on one device. The weights load at the first call of `ready` or `embed`, so that a failing
    load is an error with words, not the death of an actor."""

    def __init__(self, name: str, teacher: config.Teacher, grid: tuple[int, int], size: int, storage: config.Storage):
        self.name, self.teacher, self.grid, self.size, self.storage = name, teacher, grid, size, storage
        self.lock = threading.Lock()
        self.encoder: Any = None
        self.facts: Facts | None = None

    def load(self) -> None:
        with self.lock:
            if self.encoder is not None:
                return
            import torch

            from pathryoshka.teachers import licences
            from pathryoshka.teachers.encoder import load_encoder

            started = time.perf_counter()
            device = device_of(self.teacher)
            if device == "cpu":
                torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
                keep_freed_memory()
            encoder = load_encoder(self.name, self.teacher, self.grid, device, self.storage)
            encoder(np.zeros((min(2, self.teacher.batch_size), self.size, self.size, 3), np.uint8))
            self.facts = Facts(
                encoder.summary_dim,
                encoder.token_dim,
                encoder.num_params,
                encoder.licence,
                asdict(licences.terms(encoder.row)),
                encoder.fingerprint,
                device,
                ray.get_runtime_context().get_node_id(),
                os.getpid(),
                time.perf_counter() - started,
                peak_memory_mib(device),
            )
            self.encoder = encoder

    @ray.method(concurrency_group="control")
    def ready(self) -> Facts:
        """Loads and warms the teacher if that is still to do; returns what it is."""
        self.load()
        assert self.facts is not None
        return self.facts

    def embed(self, views: np.ndarray, token_pos: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Raw features of views.

        Args:
            views: uint8 [B, S, S, 3].
            token_pos: int32 [B, K], positions on the student's grid.

        Returns:
            float16 summary [B, Ds], float16 tokens [B, K, Dt], and the seconds it took.
        """
        import torch

        from pathryoshka.teachers.encoder import sample_tokens

        self.load()
        started = time.perf_counter()
        features = self.encoder(views)
        tokens = features["tokens"]
        if token_pos.shape[1] < tokens.shape[1]:
            tokens = sample_tokens(tokens, torch.from_numpy(token_pos.astype(np.int64)).to(tokens.device))
        limit = torch.finfo(torch.float16).max
        summary, tokens = (
            x.clamp(-limit, limit).to(torch.float16).cpu().numpy() for x in (features["summary"], tokens)
        )
        return summary, tokens, time.perf_counter() - started


def device_of(teacher: config.Teacher) -> str:
    """The torch device of a replica inside its own actor ("mock" runs on the CPU and sleeps)."""
    if teacher.device in ("cpu", "mock"):
        return "cpu"
    import torch

    return "cuda" if teacher.device == "cuda" or torch.cuda.is_available() else "cpu"


def placement(teacher: config.Teacher, gpus_exist: bool) -> dict[str, Any]:
    """Ray actor options that put a replica on its own device.

    On GPU machines a teacher asks for no CPU, because Ray would otherwise take it from the readers.
    """
    on_gpu = teacher.device == "cuda" or (teacher.device == "auto" and gpus_exist)
    num_gpus = teacher.num_gpus if teacher.num_gpus is not None else (1.0 if on_gpu else 0.0)
    num_cpus = teacher.num_cpus if teacher.num_cpus is not None else (0.0 if num_gpus else 1.0)
    options: dict[str, Any] = {"num_gpus": num_gpus, "num_cpus": num_cpus}
    if teacher.resources:
        options["resources"] = dict(teacher.resources)
    if teacher.accelerator_type:
        options["accelerator_type"] = teacher.accelerator_type
    return options


@ray.remote
class Directory:
    """Who is in each pool, by version; and, once a teacher is given up, why."""

    def __init__(self) -> None:
        self.version = 0
        self.members: dict[str, list[ActorHandle]] = {}
        self.failure: str | None = None

    def publish(self, members: dict[str, list[ActorHandle]], failure: str | None) -> None:
        self.version, self.members, self.failure = self.version + 1, members, failure

    def read(self, known: int) -> tuple[int, dict[str, list[ActorHandle]] | None, str | None]:
        """(version, members or None if the caller knows them already, failure)."""
        return self.version, None if known == self.version else self.members, self.failure


@dataclass
class Member:
    """The supervisor's view of one replica."""

    teacher: str
    number: int
    actor: ActorHandle
    ping: ray.ObjectRef
    ready: bool = False
    process: tuple[str, int] | None = None


@dataclass
class TeacherPool:
    """All teachers of a run. Use as a context manager: leaving it ends the actors.

    Args:
        prefix: unique in the Ray namespace; actor names are `<prefix>/<teacher>/<number>`.
        on_failure: called once, from the supervisor's thread, when a teacher is given up after `wait_ready` returned.
        awaited: whether it has.
    """

    prefix: str
    teachers: config.Teachers
    grid: tuple[int, int]
    size: int
    storage: config.Storage
    on_failure: Callable[[str], None] = lambda _: None
    say: Callable[[str], None] = print
    facts: dict[str, Facts] = field(default_factory=dict)
    failure: str | None = None
    members: list[Member] = field(default_factory=list)
    failed_starts: dict[str, int] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
    awaited: bool = False

    def __enter__(self) -> TeacherPool:
        self.stop = threading.Event()
        self.changed = threading.Condition()
        self.gauges = Gauges("pathryoshka_teacher", POOL, ("run",))
        name = f"{self.prefix}/directory"
        self.directory = Directory.options(name=name, **beside_the_driver()).remote()  # type: ignore[attr-defined]
        for name in self.teachers.models:
            self.resize(name, self.teachers.models[name].replicas)
        self.thread = threading.Thread(target=self.supervise, name="teacher-pool", daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join(timeout=10)
        self.gauges.stopped.set()
        replicas = {f"{self.prefix}/{m.teacher}/{m.number}": m.actor for m in self.members}
        end_actors(replicas | {f"{self.prefix}/directory": self.directory})

    def resize(self, teacher: str, replicas: int) -> None:
        """Starts or ends replicas until there are `replicas`; may be called while the stream runs."""
        mine = [m for m in self.members if m.teacher == teacher]
        for member in mine[replicas:]:
            self.members.remove(member)
            ray.kill(member.actor)
        first = 1 + max((m.number for m in mine), default=-1)
        for number in range(first, first + replicas - len(mine)):
            self.members.append(self.start(teacher, number))

    def start(self, teacher: str, number: int) -> Member:
        spec = self.teachers.models[teacher]
        gpus_exist = ray.cluster_resources().get("GPU", 0) > 0
        options = placement(spec, gpus_exist) | {"max_restarts": -1, "max_task_retries": 0}
        actor = Replica.options(name=f"{self.prefix}/{teacher}/{number}", **options).remote(  # type: ignore[attr-defined]
            teacher, spec, self.grid, self.size, self.storage
        )
        return Member(teacher, number, actor, actor.ready.remote())

    def wait_ready(self) -> dict[str, Facts]:
        """Blocks until every teacher has a warmed replica; says what is pending while it waits.

        Raises:
            TeacherError: a teacher was given up, or `start_timeout_s` went by.
        """
        deadline, started, spoke = time.monotonic() + self.teachers.start_timeout_s, time.monotonic(), time.monotonic()
        with self.changed:
            while True:
                if self.failure:
                    raise TeacherError(self.failure)
                pending = sorted({m.teacher for m in self.members if not m.ready})
                if not pending:
                    self.awaited = True
                    # in the config's order, whoever came first: it decides the order of heads and optimizer states
                    return {name: self.facts[name] for name in self.teachers.models}
                if time.monotonic() > deadline:
                    raise TeacherError(
                        f"teachers {', '.join(pending)} were not placed within teachers.start_timeout_s="
                        f"{self.teachers.start_timeout_s:g}; {self.demand(pending)}"
                    )
                if time.monotonic() - spoke > 15:
                    spoke = time.monotonic()
                    who = ", ".join(pending)
                    self.say(f"waiting {spoke - started:.0f} s for teachers {who}; {self.demand(pending)}")
                self.changed.wait(timeout=1)

    def demand(self, names: list[str]) -> str:
        """What the named teachers ask for and what the cluster has, in words."""
        have = ray.cluster_resources()
        total: dict[str, float] = {}
        for name in names:
            spec = self.teachers.models[name]
            for key, value in flat_resources(placement(spec, have.get("GPU", 0) > 0)).items():
                total[key] = total.get(key, 0) + value * spec.replicas
        wants = ", ".join(f"{v:g} {k}" for k, v in total.items()) or "nothing"
        return f"they ask for {wants}; the cluster has {', '.join(f'{have.get(k, 0):g} {k}' for k in total)}"

    def supervise(self) -> None:
        while not self.stop.wait(TICK_S):
            changes = [self.look_after(member) for member in list(self.members)]
            self.gauges.show({"run": self.prefix}, self.health())
            if any(changes) or self.failure:
                with self.changed:
                    self.changed.notify_all()
                members: dict[str, list[ActorHandle]] = {name: [] for name in self.teachers.models}
                for member in self.members:
                    if member.ready:
                        members[member.teacher].append(member.actor)
                self.directory.publish.remote(members, self.failure)
            if self.failure:
                # while the main thread waits in `wait_ready` it raises by itself; a signal would hit its clean-up
                if self.awaited and not self.stop.is_set():
                    self.on_failure(self.failure)
                return

    def look_after(self, member: Member) -> bool:
        """Reads a replica's last ping and sends the next; True if its state changed."""
        done, _ = ray.wait([member.ping], timeout=0)
        if not done:
            return False
        was = member.ready
        try:
            facts = self.facts[member.teacher] = ray.get(member.ping)
            member.ready, self.failed_starts[member.teacher] = True, 0
            if member.process not in (None, (facts.node, facts.pid)):
                self.restarts[member.teacher] = self.restarts.get(member.teacher, 0) + 1
            member.process = facts.node, facts.pid
        except ActorUnavailableError:  # its node is gone or it restarts: no start that failed
            member.ready = False
        except (RayTaskError, RayActorError) as error:
            member.ready = False
            if not was:
                self.count_failed_start(member.teacher, error)
        member.ping = member.actor.ready.remote()
        return was != member.ready

    def health(self) -> dict[str, float]:
        """What is shown of the pool (`gauges.POOL`)."""
        out: dict[str, float] = {}
        for name in self.teachers.models:
            mine = [member for member in self.members if member.teacher == name]
            out |= {f"ready/{name}": float(sum(member.ready for member in mine)), f"wanted/{name}": float(len(mine))}
            out |= {
                f"{what}/{name}": float(counts.get(name, 0))
                for what, counts in (("restarts", self.restarts), ("failed_starts", self.failed_starts))
            }
        return out

    def count_failed_start(self, teacher: str, error: Exception) -> None:
        words = str(error.cause if isinstance(error, RayTaskError) else error).strip().splitlines() or [repr(error)]
        self.failed_starts[teacher] = self.failed_starts.get(teacher, 0) + 1
        self.say(f"teacher {teacher} did not start ({self.failed_starts[teacher]} of {MAX_FAILED_STARTS}): {words[-1]}")
        if self.failed_starts[teacher] >= MAX_FAILED_STARTS:
            self.failure = f"teacher {teacher} failed to start {MAX_FAILED_STARTS} times; its last error: {words[-1]}"


def flat_resources(options: dict[str, Any]) -> dict[str, float]:
    """Actor options as resource name -> amount, zeros left out."""
    named = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], **options.get("resources", {})}
    return {key: float(value) for key, value in named.items() if value}
