"""The verbs. No logic lives here: a command reads a run, calls one function of the library and prints what it returns.

Exit codes: 0 done, 1 failed, 2 wrong usage or a run that cannot be, 130 interrupted, 143 told to end (SIGTERM). An
error is one sentence on stderr; PATHRYOSHKA_DEBUG=1 adds the traceback. Heavy rooms are imported inside their command:
`--help` answers at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click
import yaml

from pathryoshka import __version__, config, watch
from pathryoshka.cli_ablate import ablate
from pathryoshka.cli_dashboards import dashboards
from pathryoshka.cli_datasets import datasets
from pathryoshka.cli_embed import embed
from pathryoshka.cli_estimate import estimate
from pathryoshka.cli_evaluate import evaluate
from pathryoshka.cli_export import formats, publish
from pathryoshka.cli_options import FAILED, INTERRUPTED, TERMINATED, WRONG_USAGE, InOrder, run_options
from pathryoshka.cli_search import index, search
from pathryoshka.cli_serve import serve
from pathryoshka.cli_store import store
from pathryoshka.cli_submit import submit
from pathryoshka.cli_sweep import sweep, widths
from pathryoshka.cli_teachers import teachers
from pathryoshka.cli_tiles import tiles

if TYPE_CHECKING:
    from pathryoshka.job import Rehearse


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
    from pathryoshka import job

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
    from pathryoshka import results

    click.echo(results.report_run(run, to))


@cli.command()
@run_options
@click.option("--to", help="folder or URI  [default: export.to, else <run>/export]")
def export(run: config.Run, to: str | None) -> None:
    """Write a run's student as a folder that plain timm loads."""
    from pathryoshka import results

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


# ---------------------------------------------------------------- what every command shares


def sentence(error: BaseException) -> str:
    """What a user is told of an error: our own sentence where it, or what caused it in a Ray process, is ours."""
    link: BaseException | None = error
    while link is not None:
        cause = getattr(link, "cause", None)  # Ray's wrapper of an error in another process
        if any(kind.__module__.partition(".")[0] == "pathryoshka" for kind in type(link).__mro__):
            return str(cause if isinstance(cause, BaseException) else link)
        link = cause if isinstance(cause, BaseException) else link.__cause__
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error} (unexpected; PATHRYOSHKA_DEBUG=1 shows where)"


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits with its code."""
    ours = logging.getLogger("pathryoshka")  # not the root: Ray's lines are not for this terminal
    ours.setLevel(logging.INFO)
    ours.handlers = [logging.StreamHandler()]
    if threading.current_thread() is threading.main_thread():
        # when a scheduler says stop: an orderly end, so that servers, actors and leases go too
        signal.signal(signal.SIGTERM, watch.on_sigterm)
    try:
        code = cli.main(args=args, prog_name="pathryoshka", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("told to end" if watch.told.is_set() else "interrupted", err=True)
        sys.exit(TERMINATED if watch.told.is_set() else INTERRUPTED)
    except BrokenPipeError:  # `pathryoshka config show | head`
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get("PATHRYOSHKA_DEBUG"):
            traceback.print_exc()
        click.echo(f"pathryoshka: {sentence(error)}", err=True)
        if watch.told.is_set():
            sys.exit(TERMINATED)
        sys.exit(WRONG_USAGE if isinstance(error, config.ConfigError) else FAILED)


if __name__ == "__main__":
    main()
