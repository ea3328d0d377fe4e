"""`pathryoshka index` and `pathryoshka search`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pathryoshka import config
from pathryoshka.cli.options import FAILED, InOrder, run_options


def vectors_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what says whose vectors are taken, from where and into which index."""
    for option in (
        click.option("--student", metavar="EXPORT", help="that made the vectors; `build` records it for searches"),
        click.option("--encoder", metavar="NAME", help="whose vectors, where the table has those of several"),
        click.option("--tiles", multiple=True, metavar="DATASET", help="data set that the tiles are from: for patient, "
                     "site and label where the table lacks them, and for pictures; several times"),
        click.option("--to", required=True, metavar="INDEX", help="folder or URI of the index"),
        run_options,
        click.argument("table"),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group(cls=InOrder)
def index() -> None:
    """Keep embeddings so that they can be searched."""


@index.command(name="build")
@vectors_options
@click.option("--dtype", type=click.Choice(["float16", "float32"]), default="float16", show_default=True)
def index_build(run: config.Run, table: str, to: str, dtype: str, **given: Any) -> None:
    """Make an index of TABLE: a Parquet file of vectors, or a folder of them."""
    from pathryoshka.search import writing

    made = writing.build(table, to, run.storage, dtype=dtype, say=click.echo, **given)
    click.echo(f"{to}: {made.rows} tiles, {made.width} numbers each")


@index.command(name="add")
@vectors_options
def index_add(run: config.Run, table: str, to: str, **given: Any) -> None:
    """Add the tiles of TABLE that the index does not have."""
    from pathryoshka.search import writing

    made, added, met = writing.add(table, to, run.storage, say=click.echo, **given)
    click.echo(f"{to}: {added} tiles added, {met} were there; {made.rows} in all")


@index.command(name="delete")
@click.argument("where", metavar="INDEX")
@run_options
@click.option("--slide", "slides", multiple=True, metavar="SLIDE", help="several times")
@click.option("--patient", "patients", multiple=True, metavar="PATIENT", help="several times")
def index_delete(run: config.Run, where: str, slides: tuple[str, ...], patients: tuple[str, ...]) -> None:
    """Take slides or patients out; `index compact` then removes their bytes, too."""
    from pathryoshka.search import writing

    if not slides and not patients:
        raise click.UsageError("say what to delete with --slide or --patient")
    made, gone = writing.delete(where, run.storage, slides, patients)
    click.echo(f"{where}: {gone} tiles deleted; {made.rows} are left")


@index.command(name="compact")
@click.argument("where", metavar="INDEX")
@run_options
def index_compact(run: config.Run, where: str) -> None:
    """Join small segments, and remove the bytes of deleted tiles and of writers that were killed."""
    from pathryoshka.search import writing

    made, freed = writing.compact(where, run.storage)
    click.echo(f"{where}: {made.rows} tiles, segments: {len(made.segments)}; {freed / 2**20:.1f} MiB removed")


@index.command(name="list")
@click.argument("where", metavar="INDEX")
@run_options
def index_list(run: config.Run, where: str) -> None:
    """Print what the index holds."""
    from pathryoshka.search.manifest import read_manifest

    found = read_manifest(where, run.storage)
    size = sum(file.bytes for one in found.segments for file in one.files.values())
    click.echo(f"{where}: {found.rows} tiles, {found.width} numbers each ({found.dtype}), {size / 2**20:.1f} MiB")
    click.echo(f"model {found.model_id}" + (f", {found.student}" if found.student else ""))
    for uri in found.tiles:
        click.echo(f"tiles {uri}")
    for one in found.segments:
        click.echo(f"{one.name}: {one.rows} rows, {sum(f.bytes for f in one.files.values()) / 2**20:.1f} MiB")
    if found.deleted:
        click.echo(f"deleted, until compacted: {found.deleted.rows} rows")


@index.command(name="verify")
@click.argument("where", metavar="INDEX")
@run_options
def index_verify(run: config.Run, where: str) -> int:
    """Read every byte of the index again and name the files that are not what was written."""
    from pathryoshka.search import writing

    wrong = writing.verify(where, run.storage)
    for line in wrong:
        click.echo(line, err=True)
    click.echo(f"{where}: {len(wrong)} files are broken; build the index again" if wrong else
               f"{where}: every byte is what was written")  # fmt: skip
    return FAILED if wrong else 0


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@run_options
@click.option("--index", "where", required=True, metavar="INDEX", help="folder or URI")
@click.option("--student", metavar="EXPORT", help="that embeds the picture  [default: the index's]")
@click.option("--width", type=click.IntRange(1), help="one of the student's  [default: all of the index's numbers]")
@click.option("--top", type=click.IntRange(1), default=10, show_default=True, help="neighbours")
@click.option("--not-patient", multiple=True, metavar="PATIENT", help="leave this patient's tiles out; several times")
@click.option("--not-slide", multiple=True, metavar="SLIDE", help="leave this slide's tiles out; several times")
@click.option("--site", multiple=True, metavar="SITE", help="only tiles of this site, or these")
@click.option("--label", multiple=True, metavar="LABEL", help="only tiles with this label, or these")
@click.option("--exact", is_flag=True, help="look at every number of every tile")
@click.option("--picture", type=click.Path(path_type=Path), metavar="PNG", help="draw query and neighbours")
def search(
    run: config.Run, image: Path, where: str, student: str | None, width: int | None, top: int,
    not_patient: tuple[str, ...], not_slide: tuple[str, ...], site: tuple[str, ...], label: tuple[str, ...],
    exact: bool, picture: Path | None,
) -> None:  # fmt: skip
    """Print the tiles of an index that are most like IMAGE."""
    from pathryoshka.search import query
    from pathryoshka.search.filters import Filter
    from pathryoshka.search.index import open_index
    from pathryoshka.search.picture import write_picture

    opened = open_index(where, run.storage)
    only = Filter(not_patient, not_slide, site, label)
    answer = query.ask(opened, image, run.storage, student=student, width=width, top=top, only=only, exact=exact)
    for line in query.lines(answer):
        click.echo(line)
    if picture is not None:
        missing = write_picture(opened, answer, picture)
        click.echo(f"{picture}" + (f" ({missing} without a picture; name their data set with --tiles when they "
                                   "are added)" if missing else ""))  # fmt: skip
