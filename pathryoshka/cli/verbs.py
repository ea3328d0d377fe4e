"""The verbs of the command line, in the order of `--help`; those of a few lines are here, the others beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import yaml

from pathryoshka import __version__, config
from pathryoshka.cli.ablate import ablate
from pathryoshka.cli.dashboards import dashboards
from pathryoshka.cli.datasets import datasets
from pathryoshka.cli.embed import embed
from pathryoshka.cli.estimate import estimate
from pathryoshka.cli.evaluate import evaluate
from pathryoshka.cli.export import formats, publish
from pathryoshka.cli.options import FAILED, InOrder, run_options
from pathryoshka.cli.search import index, search
from pathryoshka.cli.serve import serve
from pathryoshka.cli.store import store
from pathryoshka.cli.submit import submit
from pathryoshka.cli.sweep import sweep, widths
from pathryoshka.cli.teachers import teachers
from pathryoshka.cli.tiles import tiles

if TYPE_CHECKING:
    from pathryoshka.runs.job import Rehearse


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="pathryoshka")
def cli() -> None:
    """Distil several pathology encoders into one small encoder whose embedding can be cut."""


@cli.command()
@run_options
@click.option("--json", "as_json", is_flag=True, help="one JSON list instead of lines")
def doctor(run: config.Run, as_json: bool) -> int:
    """Say what is missing on this machine for a run, and what to do."""
    from pathryoshka import doctor

    checks = doctor.examine(run)
    click.echo(doctor.as_json(checks) if as_json else doctor.as_lines(checks))
    return FAILED if any(check.state == "FAIL" for check in checks) else 0


@cli.group(name="config")
def config_group() -> None:
    """Look at runs."""


@config_group.command(name="show")
@run_options
def config_show(run: config.Run) -> None:
    """Print the resolved tree as YAML that --config reads."""
    from pathryoshka.recipes import as_file

    click.echo(yaml.safe_dump(as_file(run), sort_keys=False), nl=False)


cli.add_command(tiles)
cli.add_command(teachers)
cli.add_command(store)


@cli.command()
@run_options
@click.option(
    "--rehearse", "rehearse", flag_value="only", help="one segment, step, checkpoint, resume and export, then stop"
)
@click.option("--rehearse-first", "rehearse", flag_value="always", help="the same before a run that has no checkpoint")
@click.option("--no-rehearse", "rehearse", flag_value="never", help="not even before a long run")
@click.option("--allow-change", multiple=True, metavar="KEY", help="a key that may differ from the run's last start")
def distill(run: config.Run, rehearse: Rehearse | None, allow_change: tuple[str, ...]) -> None:
    """Distil; the same command again continues where the run stands."""
    from pathryoshka.runs import job

    result = job.distill(run, rehearse=rehearse or "auto", allow_change=allow_change)
    click.echo(f"{result.run_uri}: {result.checkpoint}")


cli.add_command(sweep)
cli.add_command(datasets)
cli.add_command(evaluate)
cli.add_command(ablate)
cli.add_command(widths)
cli.add_command(dashboards)


@cli.command()
@run_options
@click.option("--to", help="file or URI of the page  [default: <run>/report.html]")
def report(run: config.Run, to: str | None) -> None:
    """Write the report of an evaluated run as one HTML file."""
    from pathryoshka.runs import results

    click.echo(results.report_run(run, to))


@cli.command()
@run_options
@click.option("--to", help="folder or URI  [default: export.to, else <run>/export]")
def export(run: config.Run, to: str | None) -> None:
    """Write a run's student as a folder that plain timm loads."""
    from pathryoshka.runs import results

    click.echo(results.export_run(run, to))


cli.add_command(embed)
cli.add_command(estimate)
cli.add_command(submit)


@cli.command()
@click.argument("path")
@run_options
def verify(run: config.Run, path: str) -> None:
    """Load the export at PATH in a process without this package and compare its golden tiles."""
    from pathryoshka.export.verify import verify

    click.echo(verify(path, run.storage))


cli.add_command(formats)
cli.add_command(publish)
cli.add_command(index)
cli.add_command(search)
cli.add_command(serve)


@cli.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/demo"), show_default=True)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="e.g. plan.num_views=2000")
def demo(out: Path, settings: tuple[str, ...]) -> None:
    """From nothing to a report: phantom tissue, three real teachers, a student, minutes on two cores."""
    from pathryoshka.demo import demo

    demo(out, settings=settings)
