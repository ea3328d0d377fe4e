"""Submitting without a cluster: names of attempts, what travels, what is refused, demand against supply, lost lines."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import yaml
from ray.job_submission import JobStatus

from pathryoshka import config, storage
from pathryoshka.recipes import as_file
from pathryoshka.submit import follow as following
from pathryoshka.submit import look, probe
from pathryoshka.submit.attempts import as_lines, attempts_of, next_id
from pathryoshka.submit.client import SubmitError
from pathryoshka.submit.package import environment, make_package, refuse_folders_of_this_machine


def details(name: str | None, status: JobStatus, **more: Any) -> Any:
    base = {"submission_id": name, "status": status, "message": "", "metadata": {"run": "x"}}
    return SimpleNamespace(**(base | {"start_time": 0, "end_time": 60_000} | more))


def test_attempts_are_those_of_one_job_of_one_run_in_order() -> None:
    jobs = [
        details("b-distill-10", JobStatus.RUNNING), details("b-distill-9", JobStatus.FAILED),
        details("b-distill-9-distill-1", JobStatus.RUNNING), details("ab-distill-3", JobStatus.RUNNING),
        details(None, JobStatus.RUNNING), details("b-export-2", JobStatus.RUNNING),
    ]  # fmt: skip
    found = attempts_of("b-distill", jobs)
    assert [(a.number, a.alive) for a in found] == [(9, False), (10, True)]
    assert next_id("b-distill", found) == "b-distill-11" and next_id("b-distill", []) == "b-distill-1"


def test_a_line_a_submission() -> None:
    jobs = [details("b-distill-1", JobStatus.STOPPED, start_time=60_000, end_time=180_000)]
    jobs.append(details("raysubmit_x", JobStatus.RUNNING, metadata={}))
    (line,) = as_lines(jobs, everything=False)
    assert line.split() == ["b-distill-1", "stopped", "2.0", "min"]
    assert len(as_lines(jobs, everything=True)) == 2 and as_lines([], everything=True) == ["no submissions"]


def test_what_travels_runs_by_itself_and_holds_nothing_else(tmp_path: Path) -> None:
    run = config.load_run("debug", None, ["name=far"])
    make_package(tmp_path, as_file(run), "far-distill-1")
    tops = {p.name for p in tmp_path.iterdir()}
    assert tops == {"pathryoshka", "ray_jobs", "run.yaml"}
    assert not [p for p in tmp_path.rglob("*") if p.suffix == ".pyc" or p.name.startswith(".")]
    assert sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) < 8 * 2**20
    assert config.load_run("demo", tmp_path / "run.yaml", ()) == run
    code = "import pathryoshka, ray_jobs.distill; print(pathryoshka.__file__)"
    there = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert str(tmp_path) in there.stdout


def test_two_submissions_never_share_a_package(tmp_path: Path) -> None:
    """Ray would name both by their content, and delete it when the first job ends."""
    run = config.load_run("debug")
    texts = []
    for n in (1, 2):
        make_package(tmp_path / str(n), as_file(run), f"x-distill-{n}")
        texts.append((tmp_path / str(n) / "run.yaml").read_text())
    assert texts[0] != texts[1] and yaml.safe_load(texts[0]) == yaml.safe_load(texts[1])


def test_a_teacher_that_a_run_does_without_stays_away_on_the_other_side(tmp_path: Path) -> None:
    run = config.load_run("demo", None, ["teachers.models.lite1=null"])
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(as_file(run)))
    assert "lite1" not in run.teachers.models and config.load_run("demo", file, ()) == run


def test_the_jobs_variables() -> None:
    assert environment(("A=1", "B=x=y"), "r-distill-1", 60.0) == {
        "A": "1", "B": "x=y", "PATHRYOSHKA_SUBMISSION": "r-distill-1", "RAY_JOB_STOP_WAIT_TIME_S": "90",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "RAY_AUTH_TOKEN", "DB_PASSWORD", "wandb_api_key"]
)
def test_secrets_do_not_travel(name: str) -> None:
    with pytest.raises(SubmitError, match="looks like a secret"):
        environment((f"{name}=hunter2",), "x", 1)


def test_a_variable_without_a_value() -> None:
    with pytest.raises(SubmitError, match="KEY=VALUE"):
        environment(("A",), "x", 1)


@pytest.mark.parametrize(
    ("key", "setting"),
    [
        ("storage.root", "storage.root=out/runs"),
        ("data.tiles", "data.tiles=[tiles]"),
        ("store.uri", "store.uri=store"),
        ("evaluate.tiles", "evaluate.tiles=[s3://b/x,tiles]"),
    ],
)
def test_folders_of_this_machine_are_refused(key: str, setting: str) -> None:
    with pytest.raises(SubmitError, match=f"{key}=.*is a folder of this machine"):
        refuse_folders_of_this_machine(config.load_run("debug", None, ["storage.root=s3://b/runs", setting]))


# ---------------------------------------------------------------- may it start there?


def seen(*nodes: dict[str, float], may: tuple[tuple[int, dict[str, float]], ...] = (), **over: Any) -> dict[str, Any]:
    return {
        "ray": ray.__version__,
        "python": sys.version.split()[0],
        "packages": {"torch": "2"},
        "nodes": [{"has": n, "free": n, "labels": {}} for n in nodes],
        "may": [{"most": most, "has": has} for most, has in may],
        "storage": None,
    } | over


def cluster_run(**over: Any) -> config.Run:
    teacher = {"model": "mock", "device": "cuda", "resources": {"teacher": 0.001}, "replicas": 2}
    tree = {"recipe": "debug", "teachers": {"models": {"a": teacher, "b": teacher}}}
    tree["train"] = {"device": "cuda", "num_workers": 2, "resources_per_worker": {"student": 0.001, "CPU": 1}}
    tree["train"] |= {"global_batch": 64, "micro_batch": 8}
    return config.resolve("debug", config.overlay(tree, over))


TEACHER, STUDENT = {"CPU": 8.0, "GPU": 2.0, "teacher": 1.0}, {"CPU": 8.0, "GPU": 2.0, "student": 1.0}


def test_a_cluster_that_fits() -> None:
    there = seen({"CPU": 4}, TEACHER, TEACHER, STUDENT)
    assert list(look.wrong(cluster_run(), there)) == []
    text = "\n".join(look.lines(cluster_run(), there))
    assert "teacher a x 2, teacher b x 2: GPU 4 of 4 free, 4 there on 2 nodes with teacher" in text
    assert "student x 2: CPU 2 of 8 free, 8 there; GPU 2 of 2 free, 2 there on 1 nodes with student" in text


@pytest.mark.parametrize(
    ("there", "words"),
    [
        (seen(TEACHER, STUDENT), "teacher a x 2, teacher b x 2 need 4 GPU on nodes with teacher; the cluster has 2"),
        (seen({"CPU": 4, "GPU": 8}, STUDENT), "need 4 GPU on nodes with teacher; the cluster has 0"),
        (seen(TEACHER, TEACHER), "student x 2 need 2 GPU on nodes with student; the cluster has 0"),
        (seen(STUDENT, may=((1, TEACHER), (9, STUDENT))), "need 4 GPU on nodes with teacher; the cluster has 2"),
        (seen(TEACHER, TEACHER, STUDENT, ray="2.1.0"), "the cluster runs Ray 2.1.0"),
        (seen(TEACHER, TEACHER, STUDENT, python="3.8.1"), "the cluster runs Python 3.8.1"),
        (seen(TEACHER, TEACHER, STUDENT, packages={"torch": None}), "the cluster has no torch"),
        (seen(TEACHER, TEACHER, STUDENT, storage="no bucket b"), "the head cannot write storage.root: no bucket b"),
    ],
)  # fmt: skip
def test_a_cluster_that_does_not(there: dict[str, Any], words: str) -> None:
    assert any(words in line for line in look.wrong(cluster_run(), there))


def test_an_autoscaler_may_bring_what_is_not_there_yet() -> None:
    there = seen({"CPU": 4}, may=((2, TEACHER), (1, STUDENT)))
    assert list(look.wrong(cluster_run(), there)) == []
    assert "may come: up to 2 x 8 CPU, 2 GPU, 1 teacher" in list(look.lines(cluster_run(), there))


def test_what_may_come_is_read_from_the_autoscalers_own_file(tmp_path: Path) -> None:
    tree = {"available_node_types": {"head": {"resources": {"CPU": 0}, "max_workers": 0},
                                     "t": {"resources": TEACHER, "max_workers": 3}}}  # fmt: skip
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(tree))
    for said in (str(tmp_path / "cluster.yaml"), json.dumps(tree)):
        assert probe.may_come(said) == [{"has": TEACHER, "most": 3}]
    assert probe.may_come(None) == []


# ---------------------------------------------------------------- following


class Flaky:
    """A Jobs API whose log breaks off twice, at a character and before any."""

    def __init__(self, text: str, end: JobStatus, code: int | None = None):
        self.text, self.end, self.code, self.calls = text, end, code, 0

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        self.calls += 1
        if self.calls == 2:
            raise ConnectionError("tunnel closed")
        half = len(self.text) // 2 - 1
        yield self.text[:half]
        if self.calls == 1:
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
        yield self.text[half:]

    def get_job_status(self, job: str) -> JobStatus:
        return JobStatus.RUNNING if self.calls < 3 else self.end

    def get_job_info(self, job: str) -> Any:
        return SimpleNamespace(status=self.end, driver_exit_code=self.code, message="")


@pytest.mark.parametrize(
    ("end", "driver", "code", "words"),
    [
        (JobStatus.SUCCEEDED, 0, 0, "connected again"),
        (JobStatus.STOPPED, None, 143, "was stopped; submit it again to go on"),
        (JobStatus.FAILED, 2, 2, "failed with exit code 2"),
        (JobStatus.FAILED, None, 1, "failed with exit code 1"),
    ],
)
def test_a_log_is_taken_up_where_it_was_left(
    end: JobStatus, driver: int | None, code: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following.time, "sleep", lambda s: None)
    text = "".join(f"step {n}\n" for n in range(20))
    written: list[str] = []
    lines: list[str] = []
    client: Any = Flaky(text, end, driver)
    assert following.follow(client, "x-distill-1", written.append, lines.append) == code
    assert "".join(written) == text  # every line once
    assert sum("connection lost" in line for line in lines) == 1 and any(words in line for line in lines)


def test_a_job_that_never_starts_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "PENDING_S", 0.0)
    pending: Any = SimpleNamespace(
        get_job_status=lambda job: JobStatus.PENDING,
        get_job_info=lambda job: SimpleNamespace(message="Job needs 8 GPU for its driver"),
    )
    with pytest.raises(SubmitError, match="has not started for 0.* s: Job needs 8 GPU"):
        following.follow(pending, "x", print, print)


# ---------------------------------------------------------------- entries


def test_an_entry_leaves_its_status(tmp_path: Path) -> None:
    """In a process of its own, as Ray Jobs starts it: here the verb fails at once, because there are no tiles."""
    args = ["--recipe", "debug", "--set", f"storage.root={tmp_path}/runs", "--set", f"data.tiles=[{tmp_path}/none]"]
    done = subprocess.run(
        [sys.executable, "-m", "ray_jobs.distill", *args, "--set", "name=x"],
        capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert (
        yaml.safe_load(done.stdout[: done.stdout.index("\n\n")] if "\n\n" in done.stdout else done.stdout)["name"]
        == "x"
    )
    status = storage.read_json(f"{tmp_path}/runs/x/jobs/distill.json", config.Storage())
    assert status["state"] == "failed" and status["exit_code"] == 1 and status["message"] in done.stderr
    assert "none" in status["message"] and status["started"] <= status["ended"]


def test_an_entry_used_wrongly_says_what_the_verb_says() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ray_jobs.distill", "--recipe", "nope"],
        capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "unknown recipe 'nope'" in done.stderr
