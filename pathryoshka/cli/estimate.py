"""`pathryoshka estimate`."""

from __future__ import annotations

from pathlib import Path

import click

from pathryoshka import config
from pathryoshka.cli.options import run_options


@click.command()
@run_options
@click.option("--teachers", metavar="MACHINE=N", help="machines of the teachers, e.g. g6e.xlarge=8")
@click.option("--students", metavar="MACHINE=N", help="machines of the student, e.g. p4d.24xlarge=1")
@click.option("--spot", is_flag=True, help="teachers at spot prices")
@click.option("--stored", is_flag=True, help="all features are in a store: no teacher is run")
@click.option(
    "--prices", type=click.Path(path_type=Path), help="another price table  [default: the one that comes along]"
)
@click.option("--teacher-rates", type=click.Path(path_type=Path), help="what --measure wrote on a teachers' machine")
@click.option("--student-rates", type=click.Path(path_type=Path), help="what --measure wrote on a student's machine")
@click.option("--measure", type=click.Path(path_type=Path), metavar="FILE", help="measure this machine, and write FILE")
@click.option("--machines", is_flag=True, help="list the machines of the price table")
@click.option("--json", "as_json", is_flag=True)
def estimate(
    run: config.Run,
    teachers: str | None,
    students: str | None,
    spot: bool,
    stored: bool,
    prices: Path | None,
    teacher_rates: Path | None,
    student_rates: Path | None,
    measure: Path | None,
    machines: bool,
    as_json: bool,
) -> None:
    """Say what a run will take on given machines: hours, money, the bottleneck, and what would be cheaper."""
    from pathryoshka.estimate import measure as measuring
    from pathryoshka.estimate import reckon, tell
    from pathryoshka.estimate.rates import EstimateError, read_measured
    from pathryoshka.prices import read_prices

    table = read_prices(prices)
    if machines:
        click.echo("\n".join(tell.machines(table)))
        return
    if measure is not None:
        measuring.measure(run, click.echo).save(measure)
        click.echo(measure)
        return
    if students is None:
        raise EstimateError(
            "say on which machines: --students MACHINE=N, and --teachers MACHINE=N; --machines lists them"
        )
    ask = reckon.Ask(
        run, table,
        teachers=reckon.fleet(table, teachers, "spot" if spot else "on_demand") if teachers else None,
        students=reckon.fleet(table, students, "on_demand"),
        teachers_measured=read_measured(teacher_rates) if teacher_rates else None,
        students_measured=read_measured(student_rates) if student_rates else None,
        stored=stored,
    )  # fmt: skip
    found, advices = reckon.estimate(ask), reckon.advices(ask)
    click.echo(tell.as_json(ask, found, advices) if as_json else "\n".join(tell.lines(ask, found, advices)))
