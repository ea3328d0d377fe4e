"""`pathryoshka embed`."""

from __future__ import annotations

import os
from typing import Any

import click

from pathryoshka import config
from pathryoshka.cli.options import FAILED, run_options

FORMS = click.Choice(("parquet", "trident", "anndata", "zarr"))
FORMS_HELP = "beside the table, a file a slide for other tools, too; several times  [default: parquet, the table alone]"
FLOATS16, BFLOATS = click.Choice(("float32", "float16")), click.Choice(("float32", "bfloat16"))
FILTERS = click.Choice(("pen", "black", "white", "blur"))


@click.command()
@click.argument("source", nargs=-1, required=True)
@run_options
@click.option("--student", required=True, metavar="EXPORT", help="folder or URI that `pathryoshka export` wrote")
@click.option("--to", required=True, help="folder or URI of the table of vectors")
@click.option("--width", type=int, help="numbers a tile, one of the student's widths  [default: all]")
@click.option("--format", "formats", multiple=True, type=FORMS, help=FORMS_HELP)
@click.option("--dtype", type=FLOATS16, default="float32", show_default=True, help="of the numbers in the table")
@click.option("--precision", type=BFLOATS, default="float32", show_default=True, help="in which the student computes")
@click.option("--device", type=click.Choice(("auto", "cpu", "cuda")), default="auto", show_default=True)
@click.option("--replicas", type=click.IntRange(1), help="of the student  [default: one a GPU, or one a core]")
@click.option("--batch-size", type=click.IntRange(1), help="tiles of a batch  [default: 64, on a GPU 256]")
@click.option("--address", help="of a Ray cluster  [default: RAY_ADDRESS, else a session of its own]")
@click.option("--size", type=int, help="slides: side of a tile in pixels  [default: 224]")
@click.option("--mpp", multiple=True, help="slides: of tiles; several times, or 0.25..2.0  [default: 0.5]")
@click.option("--min-tissue", type=float, help="slides: share of a tile that must be tissue  [default: 0.5]")
@click.option("--stride", type=int, help="slides: pixels from tile to tile  [default: size]")
@click.option("--keep", multiple=True, type=FILTERS, help="slides: a filter left off")
@click.option("--cap", type=int, help="slides: most tiles of one")
@click.option("--slide-mpp", type=float, help="slides: resolution of those whose file does not say")
@click.option("--csv", help="slides: what each is: columns slide, mask, patient, site, label, mpp, split")
@click.option("--pseudonymise", is_flag=True, help="slides: names become hashes, keyed by PATHRYOSHKA_PSEUDONYM_KEY")
@click.option("--time-limit", "time_limit_s", default=3600.0, show_default=True, help="slides: seconds one may take")
@click.option("--cache-gb", default=50.0, show_default=True, help="slides: for copies out of object storage")
def embed(
    run: config.Run,
    source: tuple[str, ...],
    address: str | None,
    formats: tuple[str, ...],
    size: int | None,
    mpp: tuple[str, ...],
    min_tissue: float | None,
    stride: int | None,
    keep: tuple[str, ...],
    cap: int | None,
    student: str,
    to: str,
    **choices: Any,
) -> int:
    """Embed slides or tile data sets (files, folders, prefixes) with an exported student; again, it does what is
    missing or failed. Exits with 1 where something could not be embedded; the rest is there."""
    from pathryoshka.embedding.job import embed
    from pathryoshka.embedding.recipe import cut_of
    from pathryoshka.embedding.table import failed as failed_units

    if address:
        os.environ["RAY_ADDRESS"] = address
    cut = cut_of(size=size, mpp=mpp, min_tissue=min_tissue, stride=stride, keep=keep, cap=cap)
    manifest = embed(source, student, to, run.storage, cut=cut, **choices)
    click.echo(f"{to}: {manifest.rows} tiles of {len(manifest.parts)} parts, {manifest.recipe.width} numbers each")
    for form in sorted({*formats} - {"parquet"}):
        from pathryoshka.embedding.exporting import export_slides

        click.echo(export_slides(to, form, run.storage))
    failed = failed_units(manifest.states)
    for state in failed[:10]:
        reason = state.reason or f"{len(state.unreadable)} tiles cannot be decoded"
        click.echo(f"{state.name}: {reason}", err=True)
    return FAILED if failed else 0
