"""Verbs about teachers."""

from __future__ import annotations

from pathlib import Path

import click

from pathryoshka import config
from pathryoshka.cli.options import FAILED

GIB_IN_MIB = 1024


@click.group(invoke_without_command=True)
@click.pass_context
def teachers(ctx: click.Context) -> None:
    """List the encoders that are known; look at, fetch, try and tune one."""
    if ctx.invoked_subcommand is None:
        from pathryoshka.teachers.listing import table
        from pathryoshka.teachers.zoo import ROWS

        click.echo("\n".join(table(ROWS.values())))


@teachers.command()
@click.argument("name")
def show(name: str) -> None:
    """Print every fact of a teacher, and what its licence allows."""
    from pathryoshka.teachers.listing import show
    from pathryoshka.teachers.zoo import row_by_name

    click.echo("\n".join(show(row_by_name(name))))


@teachers.command()
@click.argument("name")
@click.option("--to", type=click.Path(path_type=Path), help="folder  [default: beside the hub's cache]")
def fetch(name: str, to: Path | None) -> None:
    """Fetch a teacher's weights from the hub (HF_TOKEN); the same command again goes on where it stopped."""
    from pathryoshka.trying import fetch_teacher

    click.echo(fetch_teacher(name, to))


@teachers.command()
@click.argument("name")
@click.option("--weights", help="file, folder or URI  [default: where its row says]")
@click.option("--tiles", help="URI of a tile data set  [default: phantom tissue]")
@click.option("--num-tiles", type=click.IntRange(1), default=16, show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="e.g. storage.endpoint=http://...")
def check(
    name: str, weights: str | None, tiles: str | None, num_tiles: int, device: str, settings: tuple[str, ...]
) -> int:
    """Load a teacher strictly, embed tiles, and print shapes, norms, speed and memory."""
    from pathryoshka.teachers.check import check_lines
    from pathryoshka.trying import check_teacher

    teacher = config.Teacher.model_validate({"model": name, "weights": weights, "device": device})
    found = check_teacher(teacher, config.load_run("debug", None, settings).storage, tiles, num_tiles)
    click.echo("\n".join(check_lines(name, found)))
    return 0 if found.finite else FAILED


@teachers.command()
@click.option("--recipe", default="demo", show_default=True)
@click.option("--config", "file", type=click.Path(path_type=Path), help="YAML laid over the recipe")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE")
@click.option(
    "--memory",
    type=click.FloatRange(0, min_open=True),
    help="GiB a teacher may take  [default: on CUDA what is free, else a share]",
)
@click.option("--seconds", default=2.0, show_default=True, help="of measuring a batch size")
def tune(recipe: str, file: Path | None, settings: tuple[str, ...], memory: float | None, seconds: float) -> None:
    """Find the quickest batch size of each teacher of a run under a memory budget."""
    from pathryoshka.trying import tune_teachers

    budget = None if memory is None else memory * GIB_IN_MIB
    for tuned in tune_teachers(config.load_run(recipe, file, settings), budget, seconds):
        for p in tuned.probes:
            mark = "  <-" if p == tuned.best else ""
            click.echo(f"{tuned.teacher} {p.batch_size:>5}: {p.views_per_s:8.1f} tiles/s {p.memory_mib:8.0f} MiB{mark}")
        click.echo(f"--set teachers.models.{tuned.teacher}.batch_size={tuned.best.batch_size}")
