"""The verbs about many runs: a sweep, and the choice of widths from one trained run."""

from __future__ import annotations

from pathlib import Path

import click

from pathryoshka import config
from pathryoshka.cli.options import FAILED, run_options


@click.command()
@click.option("--recipe", default="demo", show_default=True, help="demo, debug, paper_b or paper_s")
@click.option("--config", "file", type=click.Path(path_type=Path), required=True, help="YAML with a section sweep")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="e.g. sweep.num_trials=8")
@click.option("--resume", is_flag=True, help="go on where the sweep stands; nothing that finished runs again")
@click.option("--report", "only_report", is_flag=True, help="only write the report of what there is")
def sweep(recipe: str, file: Path, settings: tuple[str, ...], resume: bool, only_report: bool) -> int:
    """Run every trial of a sweep, then write its report and best.yaml."""
    from pathryoshka.sweep.report import report_sweep
    from pathryoshka.sweep.space import load_sweep

    swept, base = load_sweep(file, recipe, settings)
    failed = 0
    if not only_report:
        from pathryoshka.sweep.run import run_sweep

        failed = len(run_sweep(swept, base, resume=resume, say=click.echo).with_status("failed"))
    for where in report_sweep(swept, base):
        click.echo(where)
    return FAILED if failed else 0


@click.command()
@run_options
@click.option("--drop", type=click.FloatRange(0, 1), default=0.01, show_default=True, help="score a width may lose")
@click.option("--probe", type=click.Choice(["linear", "knn"]), default="linear", show_default=True)
def widths(run: config.Run, drop: float, probe: str) -> None:
    """Choose nested widths from the scores of a run that was evaluated at many."""
    from pathryoshka.sweep.widths import widths_of_run

    click.echo(widths_of_run(run, drop, probe))
