"""What travels to the cluster: this package, the entries, and the resolved run. No data, no tests, no credentials."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import yaml

from pathryoshka import config, storage
from pathryoshka.submit.client import SubmitError

RUN_FILE = "run.yaml"
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|ACCESS_KEY|API_KEY|PRIVATE", re.IGNORECASE)


def make_package(folder: Path, tree: dict[str, object], submission: str) -> None:
    """Fills `folder` with what a job needs; `tree` is written as run.yaml.

    Each submission's package is its own: Ray names packages by content, and deletes one when the job that brought it
    ends, also where the next job was told that it is there already.
    """
    package = Path(__file__).parent.parent
    for source in (package, package.parent / "ray_jobs"):
        if not source.is_dir():
            raise SubmitError(f"{source} is missing: install Pathryoshka from its repository or its whole wheel")
        shutil.copytree(source, folder / source.name, ignore=LEFT_OUT)
    (folder / RUN_FILE).write_text(f"# {submission}\n{yaml.safe_dump(tree, sort_keys=False)}")


def environment(given: tuple[str, ...], submission: str, grace_s: float) -> dict[str, str]:
    """Variables of the job. Ray shows them to everyone who may see the cluster, so secrets are refused.

    Args:
        given: KEY=VALUE from the user.
        grace_s: what a run may take to keep a last checkpoint when it is stopped; Ray kills it some seconds later.

    Raises:
        SubmitError: a variable that looks like a secret, or has no value.
    """
    env = {"PATHRYOSHKA_SUBMISSION": submission, "RAY_JOB_STOP_WAIT_TIME_S": str(int(grace_s) + 30)}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise SubmitError(f"--env takes KEY=VALUE, not {pair!r}")
        if SECRET.search(key):
            raise SubmitError(
                f"--env {key} looks like a secret, and everyone who sees the cluster sees a job's variables; give it "
                "to the nodes instead (an instance role, a mounted file)"
            )
        env[key] = value
    return env


def refuse_folders_of_this_machine(run: config.Run) -> None:
    """Nodes of a cluster share object storage, or folders that all of them mount under one absolute path.

    Raises:
        SubmitError: names the key whose path is relative.
    """
    places = [("storage.root", run.storage.root), *(("data.tiles", uri) for uri in run.data.tiles)]
    places += [("evaluate.tiles", uri) for uri in run.evaluate.tiles]
    places += [("store.uri", run.store.uri)] if run.store.uri else []
    for key, uri in places:
        if not storage.split(uri)[0] and not Path(uri).is_absolute():
            raise SubmitError(
                f"{key}={uri} is a folder of this machine, which the cluster does not see; use an object store, or the "
                "absolute path of a folder that every node mounts"
            )
