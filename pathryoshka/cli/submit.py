"""The verbs that run elsewhere, `submit distill --address ...`, and `submit list|logs|stop`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pathryoshka import config
from pathryoshka.cli.options import InOrder

VERBS = {
    "distill": ("distill",),
    "sweep": ("sweep",),
    "features": ("store", "fill"),
    "evaluate": ("evaluate",),
    "export": ("export",),
    "embed": ("embed",),
    "cut": ("tiles", "cut"),
    "import": ("tiles", "import"),
}
address_option = click.option(
    "--address", help="of the cluster's dashboard, e.g. http://127.0.0.1:8265  [default: RAY_ADDRESS]"
)


@click.group(cls=InOrder)
def submit() -> None:
    """Run a verb on a Ray cluster: checked first, followed to its end, joined or continued when submitted again."""


def shared_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--no-wait", is_flag=True, help="return once it is submitted"),
        click.option("--no-check", is_flag=True, help="do not ask the cluster first"),
        click.option("--no-rehearse", is_flag=True, help="distill: start without a rehearsal"),
        click.option("--env", multiple=True, metavar="KEY=VALUE", help="a variable of the job, no secret"),
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="e.g. loss.weights.uni2_h=0.5"),
        click.option("--config", "file", type=click.Path(path_type=Path), help="YAML laid over the recipe"),
        click.option("--recipe", default="demo", show_default=True, help="demo, debug, paper_b or paper_s"),
        address_option,
        click.argument("args", nargs=-1, type=click.UNPROCESSED),
    ):
        command = option(command)
    return command


def submitted(name: str) -> click.Command:
    """The command `submit <name>`; further options and arguments are the verb's own."""

    @click.command(
        name=name,
        help=f"Submit `pathryoshka {' '.join(VERBS[name])}`; its other options and arguments may follow.",
        context_settings={"ignore_unknown_options": True},
    )
    @shared_options
    def command(args: tuple[str, ...], no_rehearse: bool, **given: Any) -> int:
        if name == "distill" and not {"--rehearse", "--no-rehearse"} & set(args):
            args = (*args, "--no-rehearse" if no_rehearse else "--rehearse-first")
        return submit_verb(name, args, **given)

    return command


def submit_verb(
    name: str,
    args: tuple[str, ...],
    *,
    address: str | None,
    recipe: str,
    file: Path | None,
    settings: tuple[str, ...],
    env: tuple[str, ...],
    no_check: bool,
    no_wait: bool,
) -> int:
    """Resolves the run, refuses wrong usage here and not in the cluster, submits."""
    from pathryoshka.recipes import as_file
    from pathryoshka.submit import run as submitting
    from pathryoshka.submit.client import connect

    if name == "sweep":
        from pathryoshka.sweep.space import load_sweep

        if file is None:
            raise config.ConfigError("submit sweep needs --config with a section sweep")
        swept, run = load_sweep(file, recipe, settings)
        tree = as_file(run) | {"sweep": swept.model_dump(mode="json", exclude_unset=True)}
    else:
        run = config.load_run(recipe, file, settings)
        tree = as_file(run)
    refuse_wrong_usage(VERBS[name], args, file)
    client = connect(address)
    return submitting.submit(
        client,
        address or "the cluster",
        "import_tiles" if name == "import" else name,
        run,
        tree,
        args,
        env=env,
        check=not no_check,
        wait=not no_wait,
        write=lambda text: click.echo(text, nl=False),
        say=lambda line: click.echo(line, err=True),
    )


def refuse_wrong_usage(verb: tuple[str, ...], args: tuple[str, ...], file: Path | None) -> None:
    """Raises what the verb itself would say of its arguments."""
    from pathryoshka.cli import cli

    command: click.Command = cli
    for word in verb:
        assert isinstance(command, click.Group)
        if word not in command.commands:
            raise click.UsageError(f"there is no verb {' '.join(verb)} yet")
        command = command.commands[word]
    command.make_context(" ".join(verb), [*args, *(("--config", str(file)) if file else ())])


for _name in VERBS:
    submit.add_command(submitted(_name))


@submit.command(name="list")
@address_option
@click.option("--all", "everything", is_flag=True, help="also jobs that are not of this package")
def submit_list(address: str | None, everything: bool) -> None:
    """Print the cluster's submissions, the newest last."""
    from pathryoshka.submit.attempts import as_lines
    from pathryoshka.submit.client import connect, in_words

    client = connect(address)
    with in_words(address or "the cluster"):
        click.echo("\n".join(as_lines(client.list_jobs(), everything=everything)))


@submit.command(name="logs")
@click.argument("job")
@address_option
@click.option("--follow/--no-follow", default=True, show_default=True, help="until it ends")
def submit_logs(job: str, address: str | None, follow: bool) -> int:
    """Print the log of JOB; while it runs, as it grows."""
    from pathryoshka.submit import follow as following
    from pathryoshka.submit.client import connect, in_words

    client = connect(address)
    with in_words(address or "the cluster"):
        if not follow:
            click.echo(client.get_job_logs(job), nl=False)
            return 0
        client.get_job_info(job)
        return following.follow(
            client, job, lambda text: click.echo(text, nl=False), lambda line: click.echo(line, err=True)
        )


@submit.command(name="stop")
@click.argument("job")
@address_option
@click.option("--patience", default=300.0, show_default=True, help="seconds to wait for its end")
def submit_stop(job: str, address: str | None, patience: float) -> None:
    """Tell JOB to end; a run that trains keeps a checkpoint first."""
    from pathryoshka.submit.client import connect
    from pathryoshka.submit.follow import stop

    state = stop(connect(address), address or "the cluster", job, patience)
    click.echo(f"{job}: {state.lower()}")
