"""More verbs about tiles, of finished data sets; like `cli.py`, which lists them, without logic."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pathryoshka import config


def storage_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--config` and `--set`, as the other verbs have them: here they say how to reach storage."""
    for option in (
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="e.g. storage.endpoint=http://..."),
        click.option("--config", "file", type=click.Path(path_type=Path), help="YAML laid over the recipe"),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("uri")
@click.option("--drop", is_flag=True, help="leave duplicates out of plans and evaluations from now on")
@click.option("--keep", multiple=True, metavar="SPLIT", help="whose tiles are kept before those of other splits")
@storage_options
def duplicates(uri: str, drop: bool, keep: tuple[str, ...], file: Path | None, settings: tuple[str, ...]) -> None:
    """Count tiles of the data set at URI that are there twice, exactly or nearly, and list them."""
    from pathryoshka.session import ray_session
    from pathryoshka.tiles.duplicates import as_lines, find_duplicates

    run = config.load_run("demo", file, settings)
    with ray_session(os.cpu_count() or 1):
        click.echo("\n".join(as_lines(find_duplicates(uri, run.storage, drop=drop, keep=keep))))


@click.command()
@click.argument("uri")
@click.option("--teacher", default="efficientnet_lite0", show_default=True, help="row of the zoo, or timm:<name>")
@click.option("--weights", help="file, folder or URI of its weights  [default: where its row says]")
@click.option("--num-clusters", type=click.IntRange(2), default=64, show_default=True)
@click.option("--seed", default=0, show_default=True)
@storage_options
def cluster(
    uri: str, teacher: str, weights: str | None, file: Path | None, settings: tuple[str, ...], **choices: int
) -> None:
    """Group the tiles of URI by what a teacher sees in them, for plan.balance=cluster."""
    from pathryoshka.clusters import cluster_tiles

    run = config.load_run("demo", file, settings)
    encoder = config.Teacher(model=teacher, weights=weights)
    sizes = cluster_tiles(uri, run.storage, encoder, **choices)
    click.echo(f"{uri}: {sizes.sum()} tiles in {len(sizes)} clusters of {sizes.min()} to {sizes.max()}")


COMMANDS = (duplicates, cluster)
