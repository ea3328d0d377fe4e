"""What the verbs share: exit codes, the options that name a run, the order in which help lists them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pathryoshka import config

FAILED, WRONG_USAGE, INTERRUPTED, TERMINATED = 1, 2, 130, 143


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
