"""`pathryoshka evaluate`: a run's student, any encoders, runs against runs."""

from __future__ import annotations

import click

from pathryoshka import config
from pathryoshka.cli.options import run_options


@click.group(invoke_without_command=True)
@run_options
@click.option("--encoder", "encoders", multiple=True, metavar="[NAME=]WHAT", help="an export, a row of the zoo, "
              "timm:<name> or module:function, instead of the run's; several times")  # fmt: skip
@click.option("--tiles", multiple=True, metavar="WHERE", help="tile data set, or a CSV of your own tiles: columns "
              "tile, label, patient; instead of evaluate.tiles")  # fmt: skip
@click.option("--slides", metavar="CSV", help="labels of slides: columns slide, label, patient; slides are scored then")
@click.option("--to", default="out/evaluation", show_default=True, help="folder or URI, with --encoder")
@click.pass_context
def evaluate(
    context: click.Context,
    run: config.Run,
    encoders: tuple[str, ...],
    tiles: tuple[str, ...],
    slides: str | None,
    to: str,
) -> None:
    """Score every width of a run's student beside its teachers, by unseen patient; or any encoders with --encoder."""
    if context.invoked_subcommand:
        return
    from pathryoshka import scorecard
    from pathryoshka.runs import results

    if tiles:
        found = scorecard.tiles_of_csv(tiles, to, run.storage, click.echo)
        run = config.make_run(config.overlay(run.model_dump(), {"evaluate": {"tiles": found}}))
    if slides:
        run = config.make_run(config.overlay(run.model_dump(), {"evaluate": {"slides": slides}}))
    if encoders:
        scores = scorecard.score_encoders(encoders, run, to, say=click.echo)
    else:
        scores = results.evaluate_run(run, say=click.echo)
    for row in scores.rows:
        what = f"{row.dataset:<16} {row.protocol:<16} {row.encoder:<16} {row.width:>5}"
        click.echo(f"{what}  {row.score:.3f}  [{row.low:.3f}, {row.high:.3f}]")


@evaluate.command()
@click.argument("first", metavar="[NAME=]RUN[,RUN...]")
@click.argument("others", nargs=-1, required=True, metavar="[NAME=]RUN[,RUN...]")
@run_options
def compare(run: config.Run, first: str, others: tuple[str, ...]) -> None:
    """Evaluated runs against others, paired by patient; seeds of one recipe are joined by commas."""
    from pathryoshka.evaluate.across import contrast, lines
    from pathryoshka.scorecard import side

    one = side(first, run.storage)
    for text in others:
        other = side(text, run.storage)
        for line in lines(one, other, contrast(one, other)):
            click.echo(line)
