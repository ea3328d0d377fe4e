"""Hours, money and bytes of a run on given machines; where it waits; what would make it cheaper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pathryoshka import config
from pathryoshka.estimate.rates import (
    READ_PER_CPU,
    TRAINING,
    EstimateError,
    Measured,
    Range,
    Work,
    device_rate,
    exactly,
    rows_of,
    student_facts,
    work_of,
)
from pathryoshka.features.budget import bytes_per_view
from pathryoshka.prices import Machine, Market, Prices, price_of
from pathryoshka.tiles.plan import ROWS

TILE_BYTES = 25_000
"""Of an encoded 224-px tile: assumed (H&E as JPEG at quality 80-90 takes 15 to 40 kB)."""


@dataclass(frozen=True)
class Fleet:
    """`count` machines of a kind, bought in a market."""

    name: str
    machine: Machine
    count: int
    market: Market

    @property
    def gpus(self) -> int:
        return self.machine.gpus * self.count

    @property
    def usd_per_hour(self) -> float:
        return self.count * price_of(self.name, self.machine, self.market)


def fleet(prices: Prices, text: str, market: Market) -> Fleet:
    """From `MACHINE=N`. Raises EstimateError where it is not of that form, PriceError for a machine of no table."""
    name, _, count = text.partition("=")
    if not count.isdecimal() or int(count) < 1:
        raise EstimateError(f"machines are MACHINE=N, e.g. g6e.xlarge=8; got {text}")
    return Fleet(name, prices.machine(name), int(count), market)


@dataclass(frozen=True)
class Ask:
    """What is to be reckoned: a run on machines, with what was measured of them, if anything was."""

    run: config.Run
    prices: Prices
    teachers: Fleet | None
    students: Fleet
    teachers_measured: Measured | None = None
    students_measured: Measured | None = None
    stored: bool = False
    tile_bytes: int = TILE_BYTES


@dataclass(frozen=True)
class Estimate:
    """What a run takes.

    Attributes:
        stages: views a second of each stage if it alone mattered.
        bottleneck: the slowest one, at the middle of the ranges.
        hours, usd: of machines. usd_per_hour: of all machines together.
        read_bytes, read_requests, read_usd: of tiles (and stored features) from object storage in the same region.
        moved_bytes_per_s: of features from teachers to student, at the rate of the bottleneck.
        balance: GPUs of the teachers' kind that keep the students' just busy; none where there are no teachers.
        store_bytes, store_usd_a_month: of the features of every view of the run, if they were kept.
    """

    stages: dict[str, Range]
    bottleneck: str
    hours: Range
    usd_per_hour: float
    usd: Range
    read_bytes: float
    read_requests: float
    read_usd: float
    moved_bytes_per_s: float
    balance: float | None
    store_bytes: float
    store_usd_a_month: float


def estimate(ask: Ask) -> Estimate:
    """Raises EstimateError where the operations of a teacher are not known, PriceError where a price is not."""
    run, work = ask.run, work_of(ask.run, () if ask.stored else None)
    stages = {"read": read_rate(ask)}
    if work.teacher_gflop:
        stages["teachers"] = teacher_rate(ask, work)
    stages["student"] = student_rate(ask, work)
    low, mid, high = (min(getattr(rate, part) for rate in stages.values()) for part in ("low", "mid", "high"))
    views = run.plan.num_views
    hours = Range(low, mid, high).under(views / 3600)
    fleets = [ask.students] + ([ask.teachers] if ask.teachers and work.teacher_gflop else [])
    usd_per_hour = sum(fleet.usd_per_hour for fleet in fleets)
    kept = store_bytes(run)
    from_store = kept if ask.stored else 0.0
    read_bytes = views * ask.tile_bytes + from_store
    requests = views / ROWS * (1 + (len(run.teachers.models) if ask.stored else 0))
    storage = ask.prices.storage
    return Estimate(
        stages=stages,
        bottleneck=min(stages, key=lambda name: stages[name].mid),
        hours=hours,
        usd_per_hour=usd_per_hour,
        usd=hours.times(usd_per_hour),
        read_bytes=read_bytes,
        read_requests=requests,
        read_usd=requests / 1000 * storage.per_1000_get,
        moved_bytes_per_s=work.moved_bytes * mid,
        balance=stages["student"].mid / (stages["teachers"].mid / ask.teachers.gpus)
        if ask.teachers and "teachers" in stages
        else None,
        store_bytes=kept,
        store_usd_a_month=kept / 1e9 * storage.gb_month,
    )


def read_rate(ask: Ask) -> Range:
    """All cores but one for each GPU, which feeds it."""
    fleets = [ask.students] + ([ask.teachers] if ask.teachers and not ask.stored else [])
    cores = sum(max(1, fleet.machine.cpus - fleet.machine.gpus) * fleet.count for fleet in fleets)
    measured = ask.students_measured or ask.teachers_measured
    return (exactly(measured.read) if measured else Range(*READ_PER_CPU)).times(cores)


def teacher_rate(ask: Ask, work: Work) -> Range:
    """Every view goes through every teacher: with the GPUs shared out well, their times add up."""
    if ask.teachers is None:
        raise EstimateError("this run asks teachers; say on which machines, e.g. --teachers g6e.xlarge=8")
    if ask.teachers_measured:
        lacking = [name for name in work.teacher_gflop if name not in ask.teachers_measured.teachers]
        if lacking:
            raise EstimateError(f"{', '.join(lacking)} was not measured; measure with the same config")
        seconds = sum(1 / ask.teachers_measured.teachers[name] for name in work.teacher_gflop)
        return exactly(1 / seconds).times(ask.teachers.gpus)
    total = sum(work.teacher_gflop.values())
    if not total:
        raise EstimateError("mock teachers have no operations to count")
    return device_rate(total, ask.teachers.machine.tflops).times(ask.teachers.gpus)


def student_rate(ask: Ask, work: Work) -> Range:
    if ask.students_measured:
        return exactly(ask.students_measured.student).times(ask.students.gpus)
    return device_rate(TRAINING * work.student_gflop, ask.students.machine.tflops).times(ask.students.gpus)


def store_bytes(run: config.Run) -> float:
    """Of the features of every distinct view: all of the run's, or `views.per_tile` of each tile where that is set."""
    _, kept = student_facts(run)
    rows = rows_of(run).values()
    return float(run.plan.num_views * sum(bytes_per_view(run.store, kept, r.summary_dim, r.token_dim) for r in rows))


# ---------------------------------------------------------------- cheaper


@dataclass(frozen=True)
class Advice:
    what: str
    usd: Range
    share: float
    """Of the cost as asked, at the middle of the ranges."""


def advices(ask: Ask) -> list[Advice]:
    """Changes that were reckoned in the same way and cost less, the cheapest first."""
    base = estimate(ask)
    changes: list[tuple[str, Callable[[], Ask]]] = []
    if not ask.stored:
        text = f"train again from a store of the features ({base.store_bytes / 1e12:.2f} TB, filled once by this run)"
        changes.append((text, lambda: replace(ask, stored=True)))
    if "tokens" in ask.run.kinds:
        changes.append(
            ("leave token terms out (loss.kinds.tokens=0)", lambda: replace(ask, run=without_tokens(ask.run)))
        )
    if base.balance is not None and ask.teachers:
        count = max(1, round(base.balance / ask.teachers.machine.gpus))
        if count != ask.teachers.count:
            text = f"{count} x {ask.teachers.name} for the teachers, which keeps both sides busy"
            balanced = replace(ask.teachers, count=count)
            changes.append((text, lambda: replace(ask, teachers=balanced)))
    if ask.teachers and ask.teachers.market == "on_demand" and ask.teachers.machine.spot is not None:
        spot = replace(ask.teachers, market="spot")
        changes.append(("teachers on spot: losing one costs seconds", lambda: replace(ask, teachers=spot)))
    found = []
    for what, change in changes:
        usd = estimate(change()).usd
        if base.usd.mid > 0 and usd.mid < 0.97 * base.usd.mid:
            found.append(Advice(what, usd, usd.mid / base.usd.mid))
    return sorted(found, key=lambda advice: advice.usd.mid)


def without_tokens(run: config.Run) -> config.Run:
    return config.make_run(config.overlay(run.model_dump(), {"loss": {"kinds": {"tokens": 0.0}}}))
