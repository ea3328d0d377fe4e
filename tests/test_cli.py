"""The command line: exit codes, one sentence an error, and that every verb calls the library as the library is."""

from __future__ import annotations

import importlib
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import click
import pytest
import yaml

from pathryoshka import cli, config, recipes

PATHRYOSHKA = [sys.executable, "-m", "pathryoshka.cli"]


def run(*args: str) -> int:
    """Exit code of the command line, in this process."""
    with pytest.raises(SystemExit) as ended:
        cli.main(args)
    return int(ended.value.code or 0)


def stub(monkeypatch: pytest.MonkeyPatch, where: str, **behaviour: Any) -> mock.MagicMock:
    """Replaces a library function by one that only accepts what the real one accepts."""
    module, _, name = where.rpartition(".")
    room = importlib.import_module(f"pathryoshka.{module}")
    fake = mock.create_autospec(getattr(room, name), **behaviour)
    monkeypatch.setattr(room, name, fake)
    return fake


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, "session.ray_session", return_value=mock.MagicMock())


def verbs(group: click.Group = cli.cli, before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, command in group.commands.items():
        found.append((*before, name))
        if isinstance(command, click.Group):
            found += verbs(command, (*before, name))
    return found


def test_the_verbs_are_those_that_the_readme_may_promise() -> None:
    top = {"doctor", "config", "tiles", "teachers", "store", "distill", "submit", "estimate", "serve"}
    top |= {"embed", "index", "search", "formats", "publish"}
    top |= {"sweep", "ablate", "widths", "datasets", "evaluate", "report", "export", "verify", "demo", "dashboards"}
    tiles = {("tiles", verb) for verb in ("import", "phantom", "cut", "verify", "show")}
    datasets = {("datasets", verb) for verb in ("list", "show", "fetch", "check", "convert")}
    assert datasets | {("evaluate", "compare")} <= set(verbs())
    store = {("store", verb) for verb in ("plan", "fill", "list", "verify", "gc")}
    assert {words[0] for words in verbs()} == top and tiles | store <= set(verbs()) and ("config", "show") in verbs()


@pytest.mark.parametrize("words", verbs(), ids=" ".join)
def test_every_verb_has_help(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words, "--help") == 0
    assert f"Usage: pathryoshka {' '.join(words)}" in capsys.readouterr().out


def test_help_answers_at_once_and_without_the_heavy_rooms() -> None:
    code = "import sys, pathryoshka.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "ray", "numpy", "pyarrow", "sklearn", "matplotlib"} & set(loaded)
    best = min(cpu_seconds(*PATHRYOSHKA, "--help") for _ in range(3))
    assert best < 1.0


def cpu_seconds(*command: str) -> float:
    """Of the processor, not of the wall clock, which also counts what else a busy machine does."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_config_show_prints_what_config_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("config", "show", "--recipe", "paper_s", "--set", "loss.weights.uni2_h=0.5") == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["loss"]["weights"] == {"uni2_h": 0.5}
    file = tmp_path / "run.yaml"
    file.write_text(shown)
    assert run("config", "show", "--config", str(file)) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["config", "show", "--set", "optim.lrr=1"], 2, "unknown key optim.lrr; did you mean optim.lr?"),
        (["config", "show", "--recipe", "papr_b"], 2, "did you mean paper_b?"),
        (["config", "show", "--config", "/no/such/file"], 2, "cannot read --config /no/such/file"),
        (["config", "show", "--sett", "a=1"], 2, "No such option"),
        (["distil"], 2, "No such command 'distil'"),
        (["tiles", "import", "only-one"], 2, "Missing argument 'TO'"),
        (["tiles", "verify", "/no/such/set"], 1, "/no/such/set"),
    ],
)
def test_wrong_usage_and_failure(
    args: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PATHRYOSHKA_DEBUG", raising=False)
    assert run(*args) == code
    said = capsys.readouterr()
    assert words in said.err and "Traceback" not in said.err and said.out == ""


class OurError(RuntimeError):
    """As a room of the package would define it."""


OurError.__module__ = "pathryoshka.somewhere"


class TaskError(Exception):
    """As Ray wraps what a remote function raised: the text is a traceback, the error is in `cause`."""

    def __init__(self, cause: Exception):
        super().__init__("Traceback (most recent call last): ...")
        self.cause = cause


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OurError("the bucket is not there; make it"), 1, "pathryoshka: the bucket is not there; make it\n"),
        (config.ConfigError("no such key"), 2, "pathryoshka: no such key\n"),
        (TaskError(OurError("weights do not match")), 1, "pathryoshka: weights do not match\n"),
        (raised_from(RuntimeError("task failed"), OurError("the disk is full")), 1, "pathryoshka: the disk is full\n"),
        (OSError(28, "No space left on device", "/x/y"), 1, "pathryoshka: No space left on device: /x/y\n"),
        (ZeroDivisionError("oops"), 1, "pathryoshka: ZeroDivisionError: oops (unexpected; PATHRYOSHKA_DEBUG=1"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_an_error_of_the_library_is_one_sentence(
    error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PATHRYOSHKA_DEBUG", raising=False)
    stub(monkeypatch, "runs.job.distill", side_effect=error)
    assert run("distill") == code
    said = capsys.readouterr()
    assert said.err.lstrip().startswith(words) and said.err.strip().count("\n") == 0 and said.out == ""


def test_debug_shows_the_traceback_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATHRYOSHKA_DEBUG", "1")
    stub(monkeypatch, "runs.job.distill", side_effect=OurError("the bucket is not there"))
    assert run("distill") == 1
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err and err.endswith("pathryoshka: the bucket is not there\n")


def test_a_reader_that_goes_away_is_no_error() -> None:
    done = subprocess.run(
        f"{' '.join(PATHRYOSHKA)} config show | head -n 1", shell=True, capture_output=True, text=True
    )
    assert done.stdout.count("\n") == 1 and done.stderr == ""


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, b"interrupted"), (signal.SIGTERM, 143, b"told to end")]
)
def test_an_interrupted_command_leaves_in_order(number: int, code: int, said: bytes, tmp_path: Path) -> None:
    """What a command opened is closed again (here a file that says so), and the exit code says what ended it."""
    program = f"""
import contextlib, pathlib, time
from pathryoshka import cli
@cli.cli.command()
def wait():
    with contextlib.ExitStack() as stack:
        stack.callback(pathlib.Path({str(tmp_path / "closed")!r}).touch)
        print("ready", flush=True)
        time.sleep(60)
cli.main(["wait"])
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    assert process.returncode == code and err.strip() == said
    assert (tmp_path / "closed").exists()


# ---------------------------------------------------------------- each verb calls the library as it is


def test_distill(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    result = SimpleNamespace(run_uri="s3://b/runs/x", checkpoint="step-00000010-1", metrics={})
    fake = stub(monkeypatch, "runs.job.distill", return_value=result)
    assert run("distill", "--recipe", "debug", "--set", "name=x", "--rehearse", "--allow-change", "optim.lr") == 0
    args, options = fake.call_args
    assert args == (config.load_run("debug", None, ["name=x"]),)
    assert options == {"rehearse": "only", "allow_change": ("optim.lr",)}
    assert "s3://b/runs/x: step-00000010-1" in capsys.readouterr().out


@pytest.mark.usefixtures("no_ray")
def test_tiles_import(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = SimpleNamespace(rows=7, shards=(1, 2))
    fake = stub(monkeypatch, "tiles.importing.import_images", return_value=manifest)
    assert run("tiles", "import", "folder", "s3://b/set", "--seed", "3", "--set", "storage.region=eu") == 0
    args, options = fake.call_args
    assert args == ("folder", "s3://b/set", recipes.demo().storage.model_copy(update={"region": "eu"}))
    assert (options["seed"], options["csv"], options["pseudonymise"]) == (3, None, False)
    assert capsys.readouterr().out == "s3://b/set: 7 tiles, shards: 2\n"


@pytest.mark.usefixtures("no_ray")
def test_tiles_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = stub(monkeypatch, "tiles.slides.cut_slides", return_value=SimpleNamespace(rows=1, shards=(1,)))
    assert run("tiles", "cut", "a.svs", "b.svs", "out", "--mpp", "0.25", "--slide-mpp", "0.5") == 0
    args, options = fake.call_args
    assert args[:2] == (("a.svs", "b.svs"), "out") and (options["mpp"], options["slide_mpp"]) == (("0.25",), 0.5)


def test_tiles_phantom(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = stub(monkeypatch, "tiles.phantom.write_phantom", return_value=SimpleNamespace(rows=1, shards=(1,)))
    assert run("tiles", "phantom", "out", "--num-patients", "4", "--size", "64") == 0
    args, options = fake.call_args
    assert args[0] == "out" and (options["num_patients"], options["size"], options["parallel"]) == (4, 64, False)


def test_tiles_verify(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    problem = SimpleNamespace(shard="tiles-00001.parquet", what="a byte flipped")
    fake = stub(monkeypatch, "tiles.verify.verify", return_value=[problem])
    assert run("tiles", "verify", "set") == 1
    assert "tiles-00001.parquet: a byte flipped" in capsys.readouterr().err
    fake.return_value = []
    assert run("tiles", "verify", "set") == 0


def test_tiles_show(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = stub(monkeypatch, "tiles.show.show")
    assert run("tiles", "show", "set", "sheet.png", "--num-tiles", "5") == 0
    assert fake.call_args.args[2] == Path("sheet.png") and fake.call_args.kwargs == {"n": 5, "seed": 0}


def test_evaluate_report_and_export(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    row = SimpleNamespace(
        dataset="glas", protocol="linear", encoder="student", width=24, score=0.5, low=0.4, high=0.625
    )
    fake = stub(monkeypatch, "runs.results.evaluate_run", return_value=SimpleNamespace(rows=[row]))
    assert run("evaluate", "--recipe", "debug") == 0
    assert fake.call_args.args == (recipes.debug(),)
    assert capsys.readouterr().out.split() == ["glas", "linear", "student", "24", "0.500", "[0.400,", "0.625]"]
    for verb in ("report", "export"):
        fake = stub(monkeypatch, f"runs.results.{verb}_run", return_value="where/it/is")
        assert run(verb, "--recipe", "debug", "--to", "there") == 0
        assert fake.call_args.args == (recipes.debug(), "there")
        assert capsys.readouterr().out == "where/it/is\n"
        assert run(verb) == 0 and fake.call_args.args[1] is None
        capsys.readouterr()


def test_sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = SimpleNamespace(with_status=lambda *status: [])
    ran = stub(monkeypatch, "sweep.run.run_sweep", return_value=record)
    told = stub(monkeypatch, "sweep.report.report_sweep", return_value=["a/report.html", "a/best.yaml"])
    file = tmp_path / "s.yaml"
    file.write_text("recipe: debug\nsweep: {space: {optim.lr: {choice: [0.1, 0.2]}}}\n")
    assert run("sweep", "--config", str(file), "--set", "sweep.max_failures=3", "--resume") == 0
    (swept, base), options = ran.call_args
    assert (swept.max_failures, base.recipe, options["resume"]) == (3, "debug", True)
    assert told.call_args.args == (swept, base) and capsys.readouterr().out == "a/report.html\na/best.yaml\n"
    record.with_status = lambda *status: ["one"] * (status == ("failed",))
    assert run("sweep", "--config", str(file)) == 1  # the report is written, and the exit code says that trials failed
    ran.reset_mock()
    assert run("sweep", "--config", str(file), "--report") == 0 and not ran.called
    file.write_text("recipe: debug\nsweep: {space: {optim.lrr: {choice: [0.1]}}}\n")
    assert run("sweep", "--config", str(file)) == 2
    assert "did you mean optim.lr?" in capsys.readouterr().err


def test_widths(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fake = stub(monkeypatch, "sweep.widths.widths_of_run", return_value="16 and 48")
    assert run("widths", "--recipe", "debug", "--drop", "0.02") == 0
    assert fake.call_args.args == (recipes.debug(), 0.02, "linear") and capsys.readouterr().out == "16 and 48\n"


def test_verify(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fake = stub(monkeypatch, "export.verify.verify", return_value="8 golden tiles agree")
    assert run("verify", "s3://b/export") == 0
    assert fake.call_args.args == ("s3://b/export", recipes.demo().storage)
    assert "8 golden tiles agree" in capsys.readouterr().out


def test_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = stub(monkeypatch, "demo.demo")
    assert run("demo", "--out", "here", "--set", "plan.num_views=640") == 0
    assert fake.call_args == mock.call(Path("here"), settings=("plan.num_views=640",))


def test_doctor_fails_when_a_check_does(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from pathryoshka import doctor

    bad = doctor.Check("disk", "FAIL", "0 GiB free", "free some")
    fake = stub(monkeypatch, "doctor.examine", return_value=[bad])
    assert run("doctor") == 1
    assert "-> free some" in capsys.readouterr().out
    fake.return_value = [doctor.Check("disk", "warn", "9 GiB free", "free some")]
    assert run("doctor", "--json") == 0
    assert yaml.safe_load(capsys.readouterr().out)[0]["state"] == "warn"


def test_the_installed_command_is_this_one() -> None:
    script = Path(sys.executable).parent / "pathryoshka"
    assert os.access(script, os.X_OK)
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("pathryoshka, version 0.")
