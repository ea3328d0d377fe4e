"""What all entries do: print the resolved run, do the verb, leave a status in storage.

The status is `<storage.root>/<name>/jobs/<verb>.json`: `state` is running, done, failed, or stopped; `exit_code` as
`pathryoshka` has them (0 done, 1 failed, 2 a run that cannot be, 130 interrupted, 143 told to end); times are UTC.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import click
import yaml

from pathryoshka import __version__, cli, config, storage

SUBMISSION = "PATHRYOSHKA_SUBMISSION"
STATES = {0: "done", 130: "stopped", 143: "stopped"}


def run_verb(*verb: str, args: Sequence[str] | None = None) -> NoReturn:
    """Runs `pathryoshka <verb> <args>` with a status beside its run; exits with its code."""
    given = list(sys.argv[1:] if args is None else args)
    run = run_named_by(verb, given)
    if run is None:  # wrong usage, which the verb itself says best
        cli.main([*verb, *given])
    print(yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False), flush=True)
    begun: dict[str, Any] = {
        "job": "-".join(verb),
        "submission": os.environ.get(SUBMISSION),
        "version": __version__,
        "host": platform.node(),
        "started": now(),
    }
    said = Said()
    code = 1
    try:
        note(run, begun | {"state": "running"})
        with contextlib.redirect_stderr(said):  # type: ignore[type-var]
            cli.main([*verb, *given])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    end_state = {"state": STATES.get(code, "failed"), "exit_code": code, "ended": now()}
    note(run, begun | end_state | {"message": said.last if code else ""})
    sys.exit(code)


def run_named_by(verb: tuple[str, ...], args: list[str]) -> config.Run | None:
    """The run that `--recipe`, `--config` and `--set` name, None where they name none that can be."""
    command: click.Command = cli.cli
    for word in verb:
        assert isinstance(command, click.Group)
        command = command.commands[word]
    try:
        named = command.make_context(verb[-1], list(args)).params
        if "sweep" in verb:
            from pathryoshka.sweep.space import load_sweep

            return load_sweep(named["file"], named["recipe"], named["settings"])[1]
        return config.load_run(named["recipe"], named["file"], named["settings"])
    except (click.ClickException, click.exceptions.Exit, config.ConfigError):
        return None


def note(run: config.Run, status: dict[str, Any]) -> None:
    uri = storage.join(run.storage.root, run.name, "jobs", f"{status['job']}.json")
    storage.write_json(uri, status, run.storage)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Said(io.TextIOBase):
    """stderr that remembers its last line: the sentence that ends a verb."""

    def __init__(self) -> None:
        self.through, self.last = sys.stderr, ""

    def write(self, text: str) -> int:
        self.last = next((line for line in reversed(text.splitlines()) if line.strip()), self.last)
        return self.through.write(text)

    def flush(self) -> None:
        self.through.flush()

    def fileno(self) -> int:
        return self.through.fileno()
