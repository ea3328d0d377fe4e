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
from typing import NoReturn

import click

from pathryoshka import config, watch
from pathryoshka.cli.options import FAILED, INTERRUPTED, TERMINATED, WRONG_USAGE
from pathryoshka.cli.verbs import cli

__all__ = ["cli", "main"]


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
