"""An estimate in words, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from pathryoshka.estimate.rates import Range
from pathryoshka.estimate.reckon import Advice, Ask, Estimate
from pathryoshka.prices import Prices


def lines(ask: Ask, found: Estimate, advices: list[Advice]) -> Iterator[str]:
    fleets = [("teachers", ask.teachers, ask.teachers_measured), ("student", ask.students, ask.students_measured)]
    yield f"{ask.run.plan.num_views:,} views, {len(ask.run.teachers.models)} teachers"
    for what, fleet, measured in fleets:
        if fleet and (what == "student" or not ask.stored):
            how = f"measured on {measured.device}, {measured.date}" if measured else "reckoned from operations"
            yield (
                f"  {what:<9} {fleet.count} x {fleet.name} ({fleet.gpus} {fleet.machine.accelerator}, "
                f"{fleet.market.replace('_', ' ')}, {fleet.usd_per_hour:.2f} USD/h of {fleet.machine.date}); {how}"
            )
    yield "stage      views/s if it alone mattered"
    for name, rate in found.stages.items():
        yield f"  {name:<9} {band(rate)}{'   <- the bottleneck' if name == found.bottleneck else ''}"
    if found.balance is not None and ask.teachers:
        kind = ask.teachers.machine.accelerator
        yield f"balanced with {found.balance:.1f} {kind} for the teachers; there are {ask.teachers.gpus}"
    yield f"hours      {band(found.hours)}"
    yield f"USD        {band(found.usd)} of machines ({found.usd_per_hour:.2f} an hour)"
    yield (
        f"storage    reads {found.read_bytes / 1e12:.2f} TB in {found.read_requests:,.0f} requests "
        f"({found.read_usd:.2f} USD, no charge for traffic inside the region)"
    )
    if found.moved_bytes_per_s:
        yield f"network    {found.moved_bytes_per_s / 1e9:.2f} GB/s of features from teachers to student"
    yield (
        f"a store of all its features would take {found.store_bytes / 1e12:.2f} TB, "
        f"{found.store_usd_a_month:,.0f} USD a month"
    )
    if advices:
        yield "cheaper:"
        for advice in advices:
            yield f"  {advice.share:>4.0%} of the cost ({band(advice.usd)} USD): {advice.what}"
    yield "(low - middle - high; prices are those of the table's dates, yours with --prices)"


def machines(prices: Prices) -> Iterator[str]:
    head = f"{'machine':<18} {'accelerators':<13} {'CPUs':>5} {'on demand':>10} {'spot':>7}"
    yield f"{head}  USD/h in {prices.region}, of"
    for name, one in prices.machines.items():
        spot = "-" if one.spot is None else f"{one.spot:.2f}"
        on_demand = "-" if one.on_demand is None else f"{one.on_demand:.2f}"
        what = f"{one.gpus} x {one.accelerator}"
        yield f"{name:<18} {what:<13} {one.cpus:>5} {on_demand:>10} {spot:>7}  {one.date}: {one.source}"


def band(value: Range) -> str:
    return " - ".join(short(part) for part in (value.low, value.mid, value.high))


def short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def as_json(ask: Ask, found: Estimate, advices: list[Advice]) -> str:
    return json.dumps(
        {
            "views": ask.run.plan.num_views,
            "machines": {
                what: {"name": f.name, "count": f.count, "market": f.market, "usd_per_hour": f.usd_per_hour}
                for what, f in (("teachers", ask.teachers), ("students", ask.students))
                if f
            },
            **asdict(found),
            "cheaper": [asdict(advice) for advice in advices],
        },
        indent=1,
    )
