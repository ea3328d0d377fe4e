"""The verb that shows a run: boards and alerts, served here or written as files."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--to", type=click.Path(path_type=Path), help="write the files to this folder instead of serving them")
@click.option("--at", help="where that folder will lie on the machine that runs Grafana  [default: --to]")
@click.option("--ray-tmp", help="Ray's folder of sessions  [default: RAY_TMPDIR, else /tmp/ray]")
def dashboards(to: Path | None, at: str | None, ray_tmp: str | None) -> None:
    """Serve Prometheus and Grafana for the Ray session of this machine until Ctrl-C, or write what they read."""
    from pathryoshka.observability import files, serve

    if to is None:
        serve.serve(ray_tmp, click.echo)
        return
    for path in files.write(to, at, ray_tmp=ray_tmp or files.RAY_TMP):
        click.echo(path)
