"""Verbs about feature stores."""

from __future__ import annotations

import os
import socket

import click

from pathryoshka import config
from pathryoshka.cli.options import FAILED, InOrder, run_options


@click.group(cls=InOrder)
def store() -> None:
    """Keep teachers' features, so that any number of runs pays for them once."""


@store.command(name="plan")
@run_options
def store_plan(run: config.Run) -> None:
    """Say what filling the store of a run would take; write nothing."""
    from pathryoshka.features.budget import refuse_too_large
    from pathryoshka.runs import shelving

    todo = shelving.look(run)
    for line in todo.budget.lines():
        click.echo(line)
    refuse_too_large(todo.budget, todo.held, run)


@store.command(name="fill")
@run_options
def store_fill(run: config.Run) -> None:
    """Embed the views of a run's tiles that its store lacks; the same command again goes on."""
    from pathryoshka.runs import shelving

    shelving.fill(run)


@store.command(name="list")
@click.argument("uri")
@run_options
def store_list(run: config.Run, uri: str) -> None:
    """Print what the store at URI holds of each teacher."""
    from pathryoshka.features.upkeep import holdings

    for holding in holdings(uri, run.storage):
        click.echo(holding.line)


@store.command(name="verify")
@click.argument("uri")
@run_options
@click.option("--drop", "drops", is_flag=True, help="take what is broken out of the journals, to be filled again")
def store_verify(run: config.Run, uri: str, drops: bool) -> int:
    """Read every byte of the store at URI again and name the parts that are not what was written."""
    from pathryoshka.features.upkeep import broken, drop, holdings
    from pathryoshka.storage.lease import Lease

    with Lease.acquire(uri, run.storage, f"{socket.gethostname()}:{os.getpid()}"):
        num = 0
        for holding in holdings(uri, run.storage):
            found = dict(broken(uri, holding, run.storage))
            for path, what in found.items():
                click.echo(f"{holding.name}: {path} {what}", err=True)
            if found and drops:
                drop(uri, holding, set(found), run.storage)
            num += len(found)
    fate = "dropped; fill the store again" if drops else "`--drop` takes them out, to be filled again"
    click.echo(f"{uri}: {num} parts are broken; {fate}" if num else f"{uri}: every byte is what was written")
    return FAILED if num and not drops else 0


@store.command(name="gc")
@click.argument("uri")
@run_options
def store_gc(run: config.Run, uri: str) -> None:
    """Delete what the journals of the store at URI do not name: parts of fillings that were cut short, or replaced."""
    from pathryoshka.features.upkeep import collect, holdings
    from pathryoshka.storage.lease import Lease

    with Lease.acquire(uri, run.storage, f"{socket.gethostname()}:{os.getpid()}"):
        for holding in holdings(uri, run.storage):
            files, size = collect(uri, holding, run.storage)
            click.echo(f"{holding.name}: {files} files, {size / 2**20:.1f} MiB deleted")
