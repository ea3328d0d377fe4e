"""`pathryoshka datasets`: public benchmarks, listed, fetched, checked and made into tile data sets."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import click

from pathryoshka import config
from pathryoshka.cli.options import FAILED, InOrder, run_options


@click.group(cls=InOrder)
def datasets() -> None:
    """Public benchmarks: what they are, how to get them, whether they are whole; and as tile data sets."""


@datasets.command(name="list")
def datasets_list() -> None:
    """Every benchmark with its size, unit and licence."""
    from pathryoshka.benchmarks.rows import ROWS

    for row in ROWS:
        counts = " + ".join(f"{n:,} {split}" for split, n in (row.counts or {}).items()) or "see show"
        classes = f"{len(row.classes)} classes" if row.classes else row.task
        click.echo(f"{row.name:<17} {classes:<14} {counts:<44} by {row.unit:<8} {row.licence}")


@datasets.command(name="show")
@click.argument("name")
def datasets_show(name: str) -> None:
    """Everything that is known of a benchmark, with its source."""
    from pathryoshka.benchmarks.rows import benchmark

    row = benchmark(name)
    for field in fields(row):
        value = getattr(row, field.name)
        if field.name != "layout" and value not in (None, "", ()):
            click.echo(f"{field.name:<9} {', '.join(map(str, value)) if isinstance(value, tuple) else value}")
    click.echo("reader    proven on a small tree in the true layout only")


@datasets.command(name="fetch")
@click.argument("name")
@click.argument("to", type=click.Path(path_type=Path))
def datasets_fetch(name: str, to: Path) -> None:
    """Download NAME into the folder TO, resumably; or say what has to be done by hand."""
    from pathryoshka.benchmarks.fetch import fetch
    from pathryoshka.benchmarks.rows import benchmark

    for path in fetch(benchmark(name), to, say=click.echo):
        click.echo(path)


@datasets.command(name="check")
@click.argument("name")
@click.argument("path")
@run_options
@click.option("--all", "everything", is_flag=True, help="decode every image, not twenty a class and split")
def datasets_check(run: config.Run, name: str, path: str, everything: bool) -> int:
    """Compare the folder PATH with what NAME should hold; exit code 1 where something is wrong."""
    from pathryoshka.benchmarks.check import check
    from pathryoshka.benchmarks.rows import benchmark

    found = check(benchmark(name), path, run.storage, everything=everything)
    for split, counts in found.counts.items():
        click.echo(f"{split}: {sum(counts.values()):,} images, " + ", ".join(f"{k} {n:,}" for k, n in counts.items()))
    click.echo(f"{found.num_units:,} units")
    for problem in found.problems:
        click.echo(f"wrong: {problem}", err=True)
    return FAILED if found.problems else 0


@datasets.command(name="convert")
@click.argument("name")
@click.argument("path")
@click.argument("to")
@run_options
def datasets_convert(run: config.Run, name: str, path: str, to: str) -> None:
    """Make the tile data set TO of the benchmark NAME in folder PATH, with its splits and units."""
    from pathryoshka.benchmarks.convert import convert
    from pathryoshka.benchmarks.rows import benchmark

    manifest = convert(benchmark(name), path, to, run.storage)
    click.echo(f"{to}: {manifest.rows:,} tiles in {len(manifest.shards)} shards")
