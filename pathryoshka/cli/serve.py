"""`pathryoshka serve`."""

from __future__ import annotations

from pathlib import Path

import click

from pathryoshka import config
from pathryoshka.cli.options import run_options


@click.command()
@click.argument("model")
@run_options
@click.option("--index", metavar="INDEX", help="embedded tiles to search")
@click.option("--slides", metavar="FOLDER", help="slides to look at in the page")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 opens it to the network")
@click.option("--port", default=8000, show_default=True)
@click.option("--replicas", type=click.IntRange(1), default=1, show_default=True, help="copies of the model")
@click.option("--device", default="cpu", show_default=True, help="cpu, or cuda: one GPU a replica")
@click.option("--token-file", type=click.Path(path_type=Path), help="the token that requests must bear, made where "
              "there is none  [default: ~/.pathryoshka/token]")  # fmt: skip
@click.option("--no-token", is_flag=True, help="let anyone on this machine ask; only with a loopback host")
def serve(
    run: config.Run,
    model: str,
    index: str | None,
    slides: str | None,
    host: str,
    port: int,
    replicas: int,
    device: str,
    token_file: Path | None,
    no_token: bool,
) -> None:
    """Serve the exported student MODEL over HTTP, with a page, until Ctrl-C; SIGHUP loads MODEL and INDEX anew."""
    try:
        from pathryoshka.serve import run as serving
    except ImportError as error:
        raise click.ClickException(f"{error.name} is not installed; pip install 'pathryoshka[serve]'") from None

    serving.serve_until_stopped(
        model=model, index=index, slides=slides, host=host, port=port, replicas=replicas, device=device,
        token_file=token_file, no_token=no_token, storage=run.storage, say=click.echo,
    )  # fmt: skip
