"""The verbs. No logic lives here: a command reads a run, calls one function of the library and prints what it returns.

Exit codes: 0 done, 1 failed, 2 wrong usage or a run that cannot be, 130 interrupted. An error is one sentence on
stderr; PATHRYOSHKA_DEBUG=1 adds the traceback. Heavy rooms are imported inside their command: `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
import yaml

from pathryoshka import __version__, cli_tiles_more, config

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--recipe`, `--config` and `--set`, and hands the command the run that they name."""

    @functools.wraps(command)
    def with_run(recipe: str, file: Path | None, settings: tuple[str, ...], **rest: Any) -> Any:
        return command(config.load_run(recipe, file, settings), **rest)

    decorated: Callable[..., Any] = with_run
    for option in (
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="e.g. loss.weights.uni2_h=0.5"),
        click.option("--config", "file", type=click.Path(path_type=Path), help="YAML laid over the recipe"),
        click.option("--recipe", default="demo", show_default=True, help="demo, debug, paper_b or paper_s"),
    ):
        decorated = option(decorated)
    return decorated


class InOrder(click.Group):
    """Lists verbs in the order in which they are used, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


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
    click.echo(yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False), nl=False)


@cli.group(cls=InOrder)
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


for command in cli_tiles_more.COMMANDS:
    tiles.add_command(command)


def say_manifest(uri: str, manifest: Any) -> None:
    click.echo(f"{uri}: {manifest.rows} tiles, shards: {len(manifest.shards)}")


@cli.command()
@run_options
@click.option("--rehearse", is_flag=True, help="one segment, step, checkpoint, resume and export, then stop")
@click.option("--allow-change", multiple=True, metavar="KEY", help="a key that may differ from the run's last start")
def distill(run: config.Run, rehearse: bool, allow_change: tuple[str, ...]) -> None:
    """Distil; the same command again continues where the run stands."""
    from pathryoshka import job

    result = job.distill(run, rehearse=rehearse, allow_change=allow_change)
    click.echo(f"{result.run_uri}: {result.checkpoint}")


@cli.command()
@run_options
def evaluate(run: config.Run) -> None:
    """Score every width of a run's student beside its teachers, by unseen patient."""
    from pathryoshka import results

    for row in results.evaluate_run(run).rows:
        what = f"{row.dataset:<16} {row.probe:<8} {row.encoder:<12} {row.width:>5}"
        click.echo(f"{what}  {row.score:.3f}  [{row.low:.3f}, {row.high:.3f}]")


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


@cli.command()
@click.argument("path")
@run_options
def verify(run: config.Run, path: str) -> None:
    """Load the export at PATH in a process without this package and compare its golden tiles."""
    from pathryoshka.export.verify import verify

    click.echo(verify(path, run.storage))


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
        # when a scheduler says stop: the same orderly end as on Ctrl-C, so that servers, actors and leases go too
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = cli.main(args=args, prog_name="pathryoshka", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # `pathryoshka config show | head`
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get("PATHRYOSHKA_DEBUG"):
            traceback.print_exc()
        click.echo(f"pathryoshka: {sentence(error)}", err=True)
        sys.exit(WRONG_USAGE if isinstance(error, config.ConfigError) else FAILED)


if __name__ == "__main__":
    main()
