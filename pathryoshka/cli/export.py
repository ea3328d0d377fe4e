"""`pathryoshka formats` and `publish`: an exported student for other runtimes and other people."""

from __future__ import annotations

import click

from pathryoshka import config
from pathryoshka.cli.options import run_options

KINDS = ("onnx", "int8", "torch-export")


@click.command()
@click.argument("path")
@run_options
@click.option("--only", metavar="KIND[,KIND]", help=f"of {', '.join(KINDS)}  [default: all]")
@click.option("--data", multiple=True, metavar="WHERE", help="labelled tiles or a CSV: probe scores of each format")
@click.option("--browser", is_flag=True, help="also a page that embeds a tile without a server")
def formats(run: config.Run, path: str, only: str | None, data: tuple[str, ...], browser: bool) -> None:
    """Write the export at PATH as ONNX, int8 ONNX and torch.export, each held to the golden vectors."""
    kinds = tuple(dict.fromkeys(only.split(","))) if only else KINDS
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise click.BadParameter(f"{unknown[0]!r} is no format; there are {', '.join(KINDS)}", param_hint="--only")
    from pathryoshka import deploy

    deploy.make_formats(path, kinds, run, data=data, browser=browser, say=click.echo)


@click.command()
@click.argument("path")
@run_options
@click.option("--repo", required=True, metavar="OWNER/NAME", help="on the hub; HF_TOKEN and HF_ENDPOINT count")
@click.option("--yes", is_flag=True, help="upload; without it nothing leaves this machine")
@click.option("--public", is_flag=True, help="a repository that all may see  [default: private]")
@click.option("--permission", "permissions", multiple=True, metavar="TEACHER", help="its owner lets you pass "
              "the student on, where its licence does not say; several times")  # fmt: skip
@click.option("--evaluation", metavar="WHERE", help="what `evaluate --encoder PATH` wrote: its scores go into the card")
def publish(
    run: config.Run,
    path: str,
    repo: str,
    yes: bool,
    public: bool,
    permissions: tuple[str, ...],
    evaluation: str | None,
) -> None:
    """Show what publishing the export at PATH would upload, and whether licences allow it; with --yes do it."""
    from pathryoshka.export.publish import publish

    publish(path, repo, run, upload=yes, public=public, permissions=permissions, evaluation=evaluation, say=click.echo)
