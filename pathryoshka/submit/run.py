"""A job, submitted: package, look, submit or join, follow."""

from __future__ import annotations

import contextlib
import json
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ray.job_submission import JobSubmissionClient

from pathryoshka import config
from pathryoshka.submit import look
from pathryoshka.submit.attempts import attempts_of, next_id
from pathryoshka.submit.client import SubmitError, in_words
from pathryoshka.submit.follow import follow
from pathryoshka.submit.package import RUN_FILE, environment, make_package, refuse_folders_of_this_machine
from pathryoshka.submit.probe import MARK

HOLDS_POOLS = ("distill", "sweep", "features")


def submit(
    client: JobSubmissionClient,
    address: str,
    entry: str,
    run: config.Run,
    tree: dict[str, Any],
    args: Sequence[str] = (),
    *,
    env: tuple[str, ...] = (),
    check: bool = True,
    wait: bool = True,
    write: Callable[[str], None],
    say: Callable[[str], None],
) -> int:
    """Submits a job of `run`, or joins its live attempt; returns the exit code.

    Args:
        entry: which of ray_jobs/.
        run: the resolved run: what the cluster is checked for.
        tree: what travels as run.yaml: the resolved tree, with a section `sweep` where it is one.
        args: further arguments of the job.
        env: KEY=VALUE for the job.
        check: ask the cluster first.
        wait: follow the log to the end; else return 0 at once.

    Raises:
        SubmitError: one sentence.
    """
    refuse_folders_of_this_machine(run)
    stem = f"{run.name}-{entry}"
    with in_words(address):
        before = attempts_of(stem, client.list_jobs())
    if before and before[-1].alive:
        job = before[-1].id
        say(f"{job} is {before[-1].state.lower()} already; joining it")
    else:
        job = next_id(stem, before)
        variables = environment(env, job, run.train.grace_s)
        if check:
            with packaged(tree, f"look for {job}") as folder:
                examine(client, address, folder, run, entry, dict(pair.split("=", 1) for pair in env), say)
        with packaged(tree, job) as folder, in_words(address):
            client.submit_job(
                entrypoint=shlex.join(["python", "-m", f"ray_jobs.{entry}", *args, "--config", RUN_FILE]),
                submission_id=job,
                runtime_env={"working_dir": folder, "env_vars": variables},
                metadata={"run": run.name, "job": entry},
            )
        say(f"{job} submitted" + (f"; it goes on where {before[-1].id} ended" if before else ""))
    if not wait:
        say(f"see: pathryoshka submit logs {job}    stop: pathryoshka submit stop {job}")
        return 0
    return follow(client, job, write, say)


@contextlib.contextmanager
def packaged(tree: dict[str, Any], submission: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="pathryoshka-submit-") as name:
        make_package(Path(name), tree, submission)
        yield name


def examine(
    client: JobSubmissionClient,
    address: str,
    folder: str,
    run: config.Run,
    entry: str,
    env: dict[str, str],
    say: Callable[[str], None],
) -> None:
    """Runs the probe on the cluster; says what the run will find there.

    Raises:
        SubmitError: it must not start there; every reason.
    """
    held = run if entry in HOLDS_POOLS else None
    with in_words(address):
        job = client.submit_job(
            entrypoint=f"python -m pathryoshka.submit.probe {RUN_FILE}",
            runtime_env={"working_dir": folder, "env_vars": env},
            metadata={"run": run.name, "job": "probe"},
        )
        text: list[str] = []
        follow(client, job, text.append, lambda line: None)
    said = "".join(text)
    found = [line for line in said.splitlines() if line.startswith(MARK)]
    if not found:
        last = next((line for line in reversed(said.splitlines()) if line.strip()), "nothing was said")
        raise SubmitError(f"the cluster could not be looked at ({last.strip()}); --no-check submits without")
    seen = json.loads(found[-1].removeprefix(MARK))
    for line in look.lines(run, seen) if held else ():
        say(line)
    problems = list(look.wrong(held, seen))
    if problems:
        raise SubmitError("; ".join(problems))
