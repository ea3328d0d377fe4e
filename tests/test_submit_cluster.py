"""`pathryoshka submit` to a real Ray cluster with a token: a head without GPUs, teacher nodes and a student node."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pathryoshka import config, storage
from pathryoshka.storage.server import S3Server
from pathryoshka.tiles.phantom import write_phantom
from tests.lab import Lab
from tests.ports import free_port
from tests.runs import outcome

pytestmark = pytest.mark.slow
TOKEN = "planted-token-0123456789abcdef-0123456789"
VIEWS = 1920


@pytest.fixture(scope="module")
def lab(s3: S3Server) -> Iterator[Lab]:
    with Lab(Path(f"/tmp/pry-lab-{os.getpid()}"), token=TOKEN) as lab:
        yield lab


@pytest.fixture(scope="module")
def tree(s3: S3Server) -> dict[str, Any]:
    root = f"s3://{s3.bucket}/submit"
    cfg = config.Storage(root=f"{root}/runs", endpoint=s3.endpoint, region="us-east-1")
    write_phantom(f"{root}/tiles", cfg, num_tiles=320, num_patients=6, num_sites=2, size=32)
    mock = {"model": "mock", "device": "mock", "batch_size": 8, "mock_seconds": 0.01, "num_gpus": 1}
    mock |= {"resources": {"teacher": 0.001}}
    return {
        "recipe": "debug",
        "name": "lab",
        "data": {"tiles": [f"{root}/tiles"]},
        "views": {"size": 32},
        "plan": {"num_views": VIEWS, "window": 2},
        "teachers": {"models": {"mock0": mock, "mock1": mock}, "max_in_flight": 4},
        "standardise": {"num_views": 64},
        "train": {
            "device": "cpu", "num_workers": 1, "global_batch": 16, "micro_batch": 8, "checkpoint_every": 1000,
            "log_every": 5, "resources_per_worker": {"student": 0.001, "CPU": 1},
        },
        "storage": {"root": f"{root}/runs", "endpoint": s3.endpoint, "region": "us-east-1", "lease_ttl_s": 10},
    }  # fmt: skip


def submit(
    *words: str, address: str | None, tmp_path: Path, tree: dict[str, Any] | None = None, **env: str
) -> subprocess.Popen[str]:
    """The command as a user types it, in a folder of its own."""
    args = [sys.executable, "-m", "pathryoshka.cli", "submit", *words]
    args += ["--address", address] if address else []
    if tree is not None:
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(tree))
        args += ["--config", str(file)]
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    base = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_"))}
    return subprocess.Popen(
        args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=base | {"HOME": str(home), "RAY_AUTH_MODE": "token"} | env,
    )  # fmt: skip


def said(process: subprocess.Popen[str], timeout: float = 300) -> tuple[int, str]:
    out, _ = process.communicate(timeout=timeout)
    return process.returncode, out


def last(text: str) -> str:
    return text.strip().splitlines()[-1]


def test_nobody_gets_in_without_the_token(lab: Lab, tree: dict[str, Any], tmp_path: Path) -> None:
    code, text = said(submit("distill", address=lab.address, tmp_path=tmp_path, tree=tree))
    assert code == 1 and "wants a token" in last(text), text
    code, text = said(submit("list", address=lab.address, tmp_path=tmp_path, RAY_AUTH_TOKEN="f" * 40))
    assert code == 1 and "refused the token" in last(text), text


def test_a_wrong_address(tmp_path: Path, tree: dict[str, Any]) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    code, text = said(submit("distill", address=nobody, tmp_path=tmp_path, tree=tree, RAY_AUTH_TOKEN=TOKEN))
    assert code == 1 and f"no Ray cluster answers at {nobody}" in last(text), text
    code, text = said(submit("list", address=None, tmp_path=tmp_path, RAY_AUTH_TOKEN=TOKEN))
    assert code == 1 and "no cluster named" in last(text), text


def test_a_cluster_that_is_too_small(lab: Lab, tree: dict[str, Any], tmp_path: Path) -> None:
    big = config.overlay(tree, {"name": "big", "teachers": {"models": {"mock0": {"replicas": 5}}}})
    code, text = said(submit("distill", address=lab.address, tmp_path=tmp_path, tree=big, RAY_AUTH_TOKEN=TOKEN))
    assert code == 1, text
    assert "teacher mock0 x 5, teacher mock1 x 1 need 6 GPU on nodes with teacher; the cluster has 2" in last(text), (
        text
    )
    code, text = said(submit("list", address=lab.address, tmp_path=tmp_path, RAY_AUTH_TOKEN=TOKEN))
    assert code == 0 and "big-distill" not in text, text


def test_a_run_stopped_joined_continued_and_losing_a_node(
    lab: Lab, s3: S3Server, tree: dict[str, Any], tmp_path: Path
) -> None:
    def do(*words: str, tree: dict[str, Any] | None = None) -> subprocess.Popen[str]:
        return submit(*words, address=lab.address, tmp_path=tmp_path, tree=tree, RAY_AUTH_TOKEN=TOKEN)

    cfg = config.Storage(**tree["storage"])
    uri = storage.join(cfg.root, "lab")

    def status() -> dict[str, Any]:
        return dict(storage.read_json(storage.join(uri, "jobs", "distill.json"), cfg))

    # submitted, joined by a second submission of the same name, stopped: a checkpoint out of turn is kept
    code, text = said(do("distill", "--no-wait", "--no-rehearse", tree=tree))
    assert code == 0 and "lab-distill-1 submitted" in text, text
    joined = do("distill", "--no-rehearse", tree=tree)
    wait_until(lambda: trained(uri, cfg) >= 160, 240)
    assert status()["state"] == "running" and status()["submission"] == "lab-distill-1"
    code, text = said(do("stop", "lab-distill-1"))
    assert code == 0 and "lab-distill-1: stopped" in text, text
    code, text = said(joined, 60)
    assert code == 143 and "joining it" in text and "was stopped" in text, text
    assert status()["state"] == "stopped" and status()["exit_code"] == 143, text[-2000:]
    kept = outcome(tree, "lab")[0].count
    assert 160 <= kept < VIEWS and "told to end" in status()["message"], status()

    # submitted again: goes on from there; a teacher node dies, another one joins, the run ends as if nothing had been
    again = do("distill", "--no-rehearse", tree=tree)
    wait_until(lambda: trained(uri, cfg) >= kept + 80, 240)
    assert lab.tell("add teacher")["nodes"] == 3
    assert lab.tell("kill teacher")["nodes"] == 2
    code, text = said(again, 420)
    assert code == 0, text[-3000:]
    assert "lab-distill-2 submitted; it goes on where lab-distill-1 ended" in text and "continuing from step" in text
    assert f"trained on {VIEWS} of {VIEWS} views, each exactly once" in text
    assert outcome(tree, "lab")[0].count == VIEWS
    assert status() | {"state": "done", "exit_code": 0, "submission": "lab-distill-2"} == status()

    # what came of it can be exported there, too; and no token is anywhere
    code, text = said(do("export", "--no-check", tree=tree))
    assert code == 0, text[-2000:]
    assert storage.exists(storage.join(uri, "export", "model.safetensors"), cfg)
    storage.download_folder(uri, tmp_path / "run", cfg)
    for folder in (tmp_path / "run", lab.folder):
        found = [
            str(p) for p in folder.rglob("*") if p.is_file() and p.name != "token" and TOKEN.encode() in p.read_bytes()
        ]
        assert not found


def trained(uri: str, cfg: config.Storage) -> int:
    """Views that the workers have presented, by the last log line."""
    where = storage.join(uri, "progress.json")
    return int(storage.read_json(where, cfg)["presented"]) if storage.exists(where, cfg) else 0


def wait_until(done: Any, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.5)
