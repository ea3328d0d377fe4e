"""Publishing an export on a hub of models: what would go, whether the teachers' licences let it, only then the upload.

Token and endpoint are those of `huggingface_hub` (HF_TOKEN or its login, HF_ENDPOINT). The token is never shown, and
only files that belong to an export go.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pathryoshka import config, storage
from pathryoshka.export.card import licences_of, with_scores
from pathryoshka.export.facts import FACTS, local_folder, read_facts
from pathryoshka.export.seen import read_seen
from pathryoshka.export.verify import verify
from pathryoshka.teachers.licences import LICENCES, Terms, ledger, refuse_by_policy
from pathryoshka.teachers.row import EncoderError

Say = Callable[[str], None]
PARTS = (
    "README.md", "config.json", "model.safetensors", FACTS, "golden.safetensors", "golden/*.png", "heads.safetensors",
    "standardisers.safetensors", "seen.parquet", "tools/**/*", "formats/**/*",
)  # fmt: skip
"""What an export is made of; whatever else lies in the folder stays here."""
REPO = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
NOT_KNOWN = Terms("unknown", None, None, None, "its export does not say")


class PublishError(ValueError):
    """What keeps an export from being published; says what to do."""


def publish(
    path: str,
    repo: str,
    run: config.Run,
    *,
    upload: bool = False,
    public: bool = False,
    permissions: Sequence[str] = (),
    evaluation: str | None = None,
    say: Say = print,
) -> str | None:
    """Says what would be uploaded and whether licences allow it; with `upload` does it and returns its address.

    Args:
        run: its sections `licence` and `storage` count.
        permissions: teachers whose owners were asked where their licence does not say; a licence that says no holds.
        evaluation: folder or URI of an evaluation of this student; its scores go into the card that is uploaded.

    Raises:
        LoadError, VerifyError, FormatsError: `path` is no export, or a damaged one.
        PublishError: a name that is none, a licence that forbids it, or the hub's answer in a sentence.
    """
    if not re.fullmatch(REPO, repo):
        raise PublishError(f"--repo {repo!r} is no name on the hub; write owner/name")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(local_folder(path, run.storage))
        if evaluation:
            copy = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pathryoshka-publish-")), "export")
            folder = evaluated(folder, copy, evaluation, run.storage)
        facts = read_facts(folder, path)
        say(str(verify(folder)))
        files = parts_of(folder)
        show(folder, files, facts, repo, public, say)
        teachers = {name: terms_of(one) for name, one in facts["teachers"].items()}
        for line in ledger(teachers):
            say(line)
        refuse_by_licence(run.licence.policy, facts["licence"], teachers, permissions)
        say(f"licences and licence.policy={run.licence.policy} allow it")
        if not upload:
            say("dry run: nothing has left this machine; --yes uploads")
            return None
        where = send(folder, files, repo, public, commit_message(facts, permissions))
    say(f"published: {where}")
    return where


def evaluated(folder: Path, copy: Path, evaluation: str, cfg: config.Storage) -> Path:
    """A copy of the export whose card and facts have the scores of an evaluation.

    Raises:
        PublishError: no evaluation there, or one of another student.
    """
    from pathryoshka.evaluate.model_card import model_card_section, saw_of
    from pathryoshka.evaluate.scores import Scores

    where = storage.join(evaluation, "scores.json")
    if not storage.exists(where, cfg):
        raise PublishError(
            f"there is no evaluation at {evaluation}; `pathryoshka evaluate --encoder {folder}` makes one"
        )
    scores = Scores.model_validate(storage.read_json(where, cfg))
    shutil.copytree(folder, copy)
    facts = read_facts(copy, str(folder))
    mine = [c.encoder for c in scores.costs if c.key == facts["model_id"]]
    if not mine:
        raise PublishError(
            f"the evaluation at {evaluation} is of another student than {facts['model_id'][:16]}; evaluate this export"
        )
    licences = {**licences_of(facts), mine[0]: facts["licence"]}
    section = model_card_section(scores, saw_of([read_seen(copy / "seen.parquet")]), licences)
    card = copy / "README.md"
    card.write_text(with_scores(card.read_text(encoding="utf-8"), section), encoding="utf-8")
    facts["scores"] = scores.model_dump(mode="json")
    (copy / FACTS).write_text(json.dumps(facts))
    return copy


def parts_of(folder: Path) -> list[str]:
    """Names of the files that belong to an export, sorted."""
    found = {file.relative_to(folder).as_posix() for part in PARTS for file in folder.glob(part) if file.is_file()}
    return sorted(name for name in found if "__pycache__" not in name)


def show(folder: Path, files: Sequence[str], facts: Mapping[str, Any], repo: str, public: bool, say: Say) -> None:
    """What would go, with sizes; what stays; what of the run's own places would be read by others."""
    say(f"to {repo}, {'public' if public else 'private'}, {len(files)} files:")
    sizes = {name: (folder / name).stat().st_size for name in files}
    for name, size in sizes.items():
        say(f"  {size / 1e3:>10,.1f} kB  {name}")
    total = sum(sizes.values()) / 1e3
    say(f"  {total:>10,.1f} kB  in all; model id {facts['model_id'][:16]}, licence {facts['licence']}")
    others = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()} - set(files)
    if others:
        say(f"stays here, being no part of an export: {', '.join(sorted(others))}")
    if places := places_in(facts.get("run", {})):
        say(f"{FACTS} tells these places of the run: {', '.join(places)}")


def places_in(tree: Any) -> list[str]:
    """Addresses of storage and absolute paths in the config of the run, which would be public with it."""
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        return sorted({place for item in tree for place in places_in(item)})
    return [tree] if isinstance(tree, str) and re.match(r"[a-z0-9]+:/|/", tree) else []


def terms_of(teacher: Mapping[str, Any]) -> Terms:
    """What the export says of a teacher; what it leaves out is not known."""
    said = {"licence": teacher.get("licence", NOT_KNOWN.licence), **teacher.get("terms", {})}
    return replace(NOT_KNOWN, **said)


def refuse_by_licence(
    policy: Any, licence: str, teachers: Mapping[str, Terms], permissions: Sequence[str] = ()
) -> None:
    """Refuses what a teacher's licence forbids, what it leaves open and nobody asked, what `policy` does not admit.

    Args:
        licence: of the student.
    """
    try:
        refuse_by_policy(policy, teachers)
    except EncoderError as error:
        raise PublishError(f"not to be published: {error}") from None
    if unknown := sorted(set(permissions) - set(teachers)):
        raise PublishError(
            f"--permission {unknown[0]}: that is no teacher of this student; it has {', '.join(teachers)}"
        )
    forbids = [f"{name} ({t.licence}, {t.source})" for name, t in teachers.items() if t.derivatives is False]
    if forbids:
        raise PublishError(
            f"not to be published: the licence of {', '.join(forbids)} does not let students be passed on; "
            "distil without it (--set teachers.models.<name>=null)"
        )
    silent = [name for name, t in teachers.items() if t.derivatives is None and name not in permissions]
    if silent:
        raise PublishError(
            f"not to be published: the licence of {', '.join(silent)} does not say whether students may be passed on; "
            f"ask its owner, then say {' '.join(f'--permission {name}' for name in silent)}"
        )
    own = LICENCES.get(licence.lower())
    unsold = [f"{name} ({t.licence})" for name, t in teachers.items() if t.commercial is False]
    if own and own.commercial and unsold:
        raise PublishError(
            f"not to be published: the student's licence {licence} allows the commercial use that {', '.join(unsold)} "
            "forbids; export it again with another export.licence, e.g. cc-by-nc-4.0"
        )


def commit_message(facts: Mapping[str, Any], permissions: Sequence[str]) -> str:
    asked = f"; passed on by permission of the owners of {', '.join(permissions)}" if permissions else ""
    return f"Student {facts['model_id'][:16]} of {', '.join(facts['teachers'])}{asked}"


def send(folder: Path, files: Sequence[str], repo: str, public: bool, message: str) -> str:
    """One commit with all files; returns its address.

    Raises:
        PublishError: no token, a public repository where a private one was meant, or what the hub said.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import disable_progress_bars

    token = get_token()
    if not token:
        raise PublishError("the hub wants a token that may write; set HF_TOKEN or run `hf auth login`")
    disable_progress_bars()
    api = HfApi(token=token)
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        if not public and api.model_info(repo).private is False:
            raise PublishError(f"{repo} is there and public; say --public, or name another repository")
        adds = [CommitOperationAdd(name, str(folder / name)) for name in files]
        commit = api.create_commit(repo, adds, commit_message=message)
    except HfHubHTTPError as error:
        raise PublishError(f"the hub refused: {first_line(str(error), token)}") from None
    except PublishError:
        raise
    except Exception as error:  # whatever the client's transport raises, and it may repeat the token
        raise PublishError(f"the upload to {api.endpoint} failed: {first_line(str(error), token)}") from None
    return str(commit.commit_url)


def first_line(text: str, token: str) -> str:
    """Of what the hub said, without the token should it repeat it."""
    said = next((line for line in text.splitlines() if line.strip()), "no reason given")
    return said.strip().replace(token, "<token>")
