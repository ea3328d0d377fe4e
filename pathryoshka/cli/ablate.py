"""`pathryoshka ablate`: twins of one run, and what sets them apart."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--config", "file", required=True, type=click.Path(path_type=Path), help="YAML with a section ablate")
@click.option("--recipe", default="demo", show_default=True, help="that the base run is laid over")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="e.g. ablate.seeds=5")
def ablate(file: Path, recipe: str, settings: tuple[str, ...]) -> None:
    """Train a run's twins (single teachers, no nesting, published recipes ...) on the same views and compare them.

    The same command again trains what is missing.
    """
    from pathryoshka import storage
    from pathryoshka.ablate.report import render
    from pathryoshka.ablate.run import run_ablation
    from pathryoshka.ablate.table import as_csv, as_lines, as_tree
    from pathryoshka.ablate.twins import load_ablation, twins

    section, base = load_ablation(file, recipe, settings)
    found = run_ablation(section, base, say=click.echo)
    folder = storage.absolute(storage.join(base.storage.root, base.name))
    storage.write_json(storage.join(folder, "ablation.json"), as_tree(found), base.storage)
    storage.write_bytes(storage.join(folder, "ablation.csv"), as_csv(found).encode(), base.storage)
    html = render(base.name, found, {twin.name: twin.says for twin in twins(section, base)})
    storage.write_bytes(storage.join(folder, "report.html"), html.encode(), base.storage)
    for line in as_lines(found):
        click.echo(line)
    click.echo(f"{storage.join(folder, 'report.html')}, ablation.json, ablation.csv")
