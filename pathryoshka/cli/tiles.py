"""Verbs about tile data sets."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import click

from pathryoshka import config
from pathryoshka.cli.options import FAILED, InOrder, run_options


@click.group(cls=InOrder)
def tiles() -> None:
    """Make, check and look at tile data sets."""


@tiles.command(name="import")
@click.argument("source")
@click.argument("to")
@run_options
@click.option("--csv", help="what each tile is: columns tile, slide, patient, site, label, mpp, split")
@click.option("--split", help="of tiles whose split no CSV says")
@click.option("--seed", default=0, show_default=True, help="of the shuffle")
@click.option("--max-failed-share", default=0.01, show_default=True, help="share of unreadable images to leave out")
@click.option("--pseudonymise", is_flag=True, help="names become hashes, keyed by PATHRYOSHKA_PSEUDONYM_KEY")
def tiles_import(run: config.Run, source: str, to: str, **choices: Any) -> None:
    """Import a folder of images (sub-folders are labels) as the tile data set TO."""
    from pathryoshka.session import ray_session
    from pathryoshka.tiles.importing import import_images

    with ray_session(os.cpu_count() or 1):
        say_manifest(to, import_images(source, to, run.storage, **choices))


@tiles.command(name="phantom")
@click.argument("to")
@run_options
@click.option("--num-tiles", default=1000, show_default=True)
@click.option("--num-patients", default=30, show_default=True)
@click.option("--num-sites", default=3, show_default=True)
@click.option("--size", default=224, show_default=True, help="side of a tile in pixels")
@click.option("--seed", default=0, show_default=True)
@click.option("--parallel", is_flag=True, help="patients side by side on Ray; the bytes are the same")
def tiles_phantom(run: config.Run, to: str, parallel: bool, **choices: Any) -> None:
    """Draw labelled synthetic tissue, always called phantom, as the tile data set TO."""
    from pathryoshka.session import ray_session
    from pathryoshka.tiles.phantom import write_phantom

    with ray_session(os.cpu_count() or 1) if parallel else contextlib.nullcontext():
        say_manifest(to, write_phantom(to, run.storage, parallel=parallel, **choices))


@tiles.command(name="phantom-slide")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--width", default=8192, show_default=True, help="pixels")
@click.option("--height", default=8192, show_default=True, help="pixels")
@click.option("--seed", default=0, show_default=True)
def tiles_phantom_slide(path: Path, **choices: Any) -> None:
    """Draw a synthetic slide as the pyramidal TIFF PATH, to be cut like a real one."""
    from pathryoshka.tiles.phantom_slide import phantom_slide

    phantom_slide(path, **choices)
    click.echo(f"{path}: a phantom slide; pathryoshka tiles cut {path} TO")


@tiles.command(name="cut")
@click.argument("slides", nargs=-1, required=True)
@click.argument("to")
@run_options
@click.option("--size", default=224, show_default=True, help="side of a tile in pixels")
@click.option("--mpp", multiple=True, default=("0.5",), show_default=True, help="of tiles; several times, or 0.25..2.0")
@click.option("--min-tissue", default=0.5, show_default=True, help="share of a tile that must be tissue")
@click.option("--stride", type=int, help="pixels from tile to tile  [default: size]")
@click.option("--keep", multiple=True, type=click.Choice(("pen", "black", "white", "blur")), help="a filter left off")
@click.option("--cap", type=int, help="most tiles of a slide, drawn by the seed")
@click.option("--format", "image_format", default="jpeg", show_default=True, help="jpeg, webp or png")
@click.option("--quality", default=92, show_default=True, help="of jpeg and webp, at least 90")
@click.option("--slide-mpp", type=float, help="resolution of slides whose file does not say")
@click.option("--csv", help="what each slide is: columns slide, mask, patient, site, label, mpp, split")
@click.option("--split", help="of every tile")
@click.option("--seed", default=0, show_default=True, help="of the shuffle and of all that is drawn")
@click.option("--pseudonymise", is_flag=True, help="names become hashes, keyed by PATHRYOSHKA_PSEUDONYM_KEY")
@click.option("--resume", is_flag=True, help="refuse to begin anew; a cut that is there is continued in any case")
@click.option("--max-failed-share", default=0.1, show_default=True, help="share of slides that may fail")
@click.option("--time-limit", "time_limit_s", default=3600.0, show_default=True, help="seconds a slide may take")
@click.option("--cache-gb", default=50.0, show_default=True, help="for copies of slides out of object storage")
def tiles_cut(run: config.Run, slides: tuple[str, ...], to: str, **choices: Any) -> None:
    """Cut whole slides (files, globs, folders, prefixes or CSVs) into the tile data set TO."""
    from pathryoshka.session import ray_session
    from pathryoshka.tiles.slides import cut_slides

    with ray_session(os.cpu_count() or 1):
        say_manifest(to, cut_slides(slides, to, run.storage, **choices))


@tiles.command(name="verify")
@click.argument("uri")
@run_options
def tiles_verify(run: config.Run, uri: str) -> int:
    """Read every shard again and name the ones that are not what was written."""
    from pathryoshka.tiles.verify import verify

    problems = verify(uri, run.storage)
    for problem in problems:
        click.echo(f"{problem.shard or uri}: {problem.what}", err=True)
    click.echo(f"{uri}: {len(problems)} problems" if problems else f"{uri}: every byte is what was written")
    return FAILED if problems else 0


@tiles.command(name="show")
@click.argument("uri")
@click.argument("to", type=click.Path(path_type=Path))
@run_options
@click.option("--num-tiles", "n", default=48, show_default=True)
@click.option("--num-slides", default=24, show_default=True, help="slides drawn on a page")
@click.option("--seed", default=0, show_default=True)
def tiles_show(run: config.Run, uri: str, to: Path, n: int, num_slides: int, seed: int) -> None:
    """Show the data set at URI: as the page TO (.html) with slides and statistics, or a contact sheet (.png)."""
    from pathryoshka.tiles import overview, show

    if to.suffix == ".html":
        overview.write_overview(uri, run.storage, str(to), num_slides=num_slides, num_tiles=n, seed=seed)
    else:
        show.show(uri, run.storage, to, n=n, seed=seed)
    click.echo(f"{to}: look at it")


@tiles.command(name="duplicates")
@click.argument("uri")
@run_options
@click.option("--drop", is_flag=True, help="leave duplicates out of plans and evaluations from now on")
@click.option("--keep", multiple=True, metavar="SPLIT", help="whose tiles are kept before those of other splits")
def tiles_duplicates(run: config.Run, uri: str, drop: bool, keep: tuple[str, ...]) -> None:
    """Count tiles of the data set at URI that are there twice, exactly or nearly, and list them."""
    from pathryoshka.session import ray_session
    from pathryoshka.tiles.duplicates import as_lines, find_duplicates

    with ray_session(os.cpu_count() or 1):
        click.echo("\n".join(as_lines(find_duplicates(uri, run.storage, drop=drop, keep=keep))))


@tiles.command(name="cluster")
@click.argument("uri")
@run_options
@click.option("--teacher", default="efficientnet_lite0", show_default=True, help="row of the zoo, or timm:<name>")
@click.option("--weights", help="file, folder or URI of its weights  [default: where its row says]")
@click.option("--num-clusters", type=click.IntRange(2), default=64, show_default=True)
@click.option("--seed", default=0, show_default=True)
def tiles_cluster(run: config.Run, uri: str, teacher: str, weights: str | None, **choices: int) -> None:
    """Group the tiles of URI by what a teacher sees in them, for plan.balance=cluster."""
    from pathryoshka.clusters import cluster_tiles

    encoder = config.Teacher(model=teacher, weights=weights)
    sizes = cluster_tiles(uri, run.storage, encoder, **choices)
    click.echo(f"{uri}: {sizes.sum()} tiles in {len(sizes)} clusters of {sizes.min()} to {sizes.max()}")


def say_manifest(uri: str, manifest: Any) -> None:
    click.echo(f"{uri}: {manifest.rows} tiles, shards: {len(manifest.shards)}")
