"""The pipeline event by event: readers -> teachers -> student, with bounded queues, failures and recovery (SimPy).

A block is one micro-batch. Readers, teacher replicas and train workers are servers. As in `distill.stream`, readers are
a little ahead; at most `in_flight` blocks are with the teachers, each of which gets every block; finished ones wait for
the student, `prefetch` for each worker. A replica that fails loses the block it works on, which is asked again, and
comes back after `restart_s`. When a train worker fails all of them go back to the last checkpoint, after `recover_s`.

Thousands of equal servers are simulated as fewer, faster ones: `at_most` bounds them, rates and chances of failure are
kept, only the graininess of one server is not.
"""

from __future__ import annotations

import math
import random
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import Any

Event = Generator[Any, Any, Any]


@dataclass(frozen=True)
class Pool:
    """Equal servers of one stage.

    Attributes:
        seconds: one server takes for one block.
        spread: standard deviation of a block's time as a share of it; stragglers are drawn from a log-normal law.
        mtbf_s: mean time between failures of one server; 0 = never.
        restart_s: until a failed server is back.
        killed_at: seconds at which the first server fails beside that: a drill.
    """

    servers: int
    seconds: float
    spread: float = 0.0
    mtbf_s: float = 0.0
    restart_s: float = 0.0
    killed_at: tuple[float, ...] = ()


@dataclass(frozen=True)
class Line:
    """The whole pipeline.

    Attributes:
        block: views a micro-batch.
        teachers: by name; every block goes to each of them.
        student: servers are train workers, each of which takes its own blocks; seconds for one block.
        in_flight: blocks with the teachers at the same time; 0 = as many as keep all replicas busy, twice.
        handover_s: for which a replica is idle between two blocks: its answer goes out and the next question comes.
        release_s: for which a block that all teachers have answered still holds its place with them: Ray Data looks
            ten times a second for tasks that ended, and only then hands out the next.
        prefetch: finished blocks that wait for each train worker, at most.
        checkpoint_blocks: blocks between checkpoints; 0 = none, everything is lost.
        recover_s: until the workers train again after one of them failed.
    """

    block: int
    read: Pool
    teachers: dict[str, Pool]
    student: Pool
    in_flight: int = 0
    handover_s: float = 0.0
    release_s: float = 0.0
    prefetch: int = 2
    checkpoint_blocks: int = 0
    recover_s: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """views_per_s is of views that count: those made again after a failure do not.

    Attributes:
        busy: share of the time in which a stage's servers worked.
        failures: of servers, by stage.
        repeated: views trained on twice, as a share of all.
    """

    views_per_s: float
    seconds: float
    busy: dict[str, float]
    failures: dict[str, int]
    repeated: float

    @property
    def bottleneck(self) -> str:
        return max(self.busy, key=lambda name: self.busy[name])


def coarser(line: Line, at_most: int) -> Line:
    """The same rates with at most so many servers a stage: k servers become one that is k times as fast."""

    def fewer(pool: Pool) -> Pool:
        k = math.ceil(pool.servers / at_most)
        if k == 1:
            return pool
        few = math.ceil(pool.servers / k)
        return replace(
            pool,
            servers=few,
            seconds=pool.seconds * few / pool.servers,
            spread=pool.spread / math.sqrt(k),
            mtbf_s=pool.mtbf_s * few / pool.servers,
            restart_s=pool.restart_s * few / pool.servers,
        )

    shrink = max(1, math.ceil(max(pool.servers for pool in (line.student, *line.teachers.values())) / at_most))
    return replace(
        line,
        read=fewer(line.read),
        teachers={name: fewer(pool) for name, pool in line.teachers.items()},
        student=fewer(line.student),
        in_flight=math.ceil(line.in_flight / shrink),
        handover_s=line.handover_s / shrink,
        release_s=line.release_s / shrink,
    )


@dataclass
class Run:
    """The state of one simulation."""

    env: Any
    line: Line
    draw: random.Random
    read: Any
    asked: dict[str, Any]
    slots: Any
    ready: Any
    worked: dict[str, float] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    trained: int = 0
    kept: int = 0
    repeated: int = 0
    stopped_until: float = 0.0

    def taking(self, pool: Pool) -> float:
        if not pool.spread:
            return pool.seconds
        sigma = math.sqrt(math.log(1 + pool.spread**2))
        return pool.seconds * self.draw.lognormvariate(-sigma * sigma / 2, sigma)


def simulate(line: Line, num_views: int, *, seed: int = 0, at_most: int = 64) -> Outcome:
    """Runs the pipeline until so many views count.

    Args:
        at_most: servers of one stage that are simulated one by one; see `coarser`.

    Raises:
        ValueError: no views, or a stage without servers.
    """
    import simpy

    every = (line.read, *line.teachers.values(), line.student)
    if num_views < line.block or min(pool.servers for pool in every) < 1:
        raise ValueError("a simulation needs at least one block of views and one server in each stage")
    line = coarser(line, at_most)
    teachers = {f"teacher {name}": pool for name, pool in line.teachers.items()}
    pools = {"read": line.read, **teachers, "student": line.student}
    env = simpy.Environment()
    flight = line.in_flight or 2 * max((pool.servers for pool in line.teachers.values()), default=1)
    run = Run(
        env, line, random.Random(seed),
        read=simpy.Store(env, capacity=2 * line.read.servers),
        asked={name: simpy.Store(env) for name in line.teachers},
        slots=simpy.Container(env, init=flight),
        ready=simpy.Store(env, capacity=line.prefetch * line.student.servers),
    )  # fmt: skip
    blocks = math.ceil(num_views / line.block)
    done = env.event()
    for _ in range(line.read.servers):
        env.process(reading(run))
    env.process(admitting(run))
    for name, pool in line.teachers.items():
        for index in range(pool.servers):
            env.process(teaching(run, name, pool, pool.killed_at if index == 0 else ()))
    for _ in range(line.student.servers):
        env.process(training(run, blocks, done))
    if line.student.mtbf_s:
        env.process(failing_student(run))
    env.run(until=done)
    elapsed = env.now
    busy = {name: run.worked.get(name, 0.0) / elapsed / pool.servers for name, pool in pools.items()}
    views = blocks * line.block
    return Outcome(views / elapsed, elapsed, busy, run.failures, run.repeated / blocks)


def reading(run: Run) -> Event:
    while True:
        seconds = run.taking(run.line.read)
        yield run.env.timeout(seconds)
        run.worked["read"] = run.worked.get("read", 0.0) + seconds
        yield run.read.put({"left": len(run.asked)})


def admitting(run: Run) -> Event:
    while True:
        yield run.slots.get(1)
        block = yield run.read.get()
        for queue in run.asked.values():
            queue.put(block)
        if not run.asked:
            run.env.process(handing_over(run, block))


def handing_over(run: Run, block: Any) -> Event:
    """A finished block keeps its place with the teachers until there is room before the student."""
    yield run.ready.put(block)
    if run.line.release_s:
        yield run.env.timeout(run.line.release_s)
    run.slots.put(1)


def teaching(run: Run, name: str, pool: Pool, killed_at: tuple[float, ...]) -> Event:
    stage, drills = f"teacher {name}", list(killed_at)

    def next_failure() -> float:
        drawn = run.env.now + run.draw.expovariate(1 / pool.mtbf_s) if pool.mtbf_s else math.inf
        return min(drawn, drills.pop(0)) if drills else drawn

    fails_at = next_failure()
    while True:
        block = yield run.asked[name].get()
        seconds = run.taking(pool)
        if run.env.now + seconds > fails_at:
            yield run.env.timeout(max(0.0, fails_at - run.env.now))
            run.asked[name].put(block)  # asked again, of another replica
            run.failures[stage] = run.failures.get(stage, 0) + 1
            yield run.env.timeout(pool.restart_s)
            fails_at = next_failure()
            continue
        yield run.env.timeout(seconds)
        run.worked[stage] = run.worked.get(stage, 0.0) + seconds
        block["left"] -= 1
        if not block["left"]:
            run.env.process(handing_over(run, block))
        if run.line.handover_s:
            yield run.env.timeout(run.line.handover_s)


def training(run: Run, blocks: int, done: Any) -> Event:
    while not done.triggered:
        yield run.ready.get()
        while run.env.now < run.stopped_until:
            yield run.env.timeout(run.stopped_until - run.env.now)
        seconds = run.taking(run.line.student)
        yield run.env.timeout(seconds)
        run.worked["student"] = run.worked.get("student", 0.0) + seconds
        run.trained += 1
        every = run.line.checkpoint_blocks
        if every and run.trained % every == 0:
            run.kept = run.trained
        if run.trained >= blocks and not done.triggered:
            done.succeed()


def failing_student(run: Run) -> Event:
    pool = run.line.student
    while True:
        yield run.env.timeout(run.draw.expovariate(pool.servers / pool.mtbf_s))
        run.failures["student"] = run.failures.get("student", 0) + 1
        run.repeated += run.trained - run.kept
        run.trained = run.kept
        run.stopped_until = run.env.now + run.line.recover_s
