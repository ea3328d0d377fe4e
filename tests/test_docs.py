"""The site builds strictly, and what its pages tell people to type is what the verbs take."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pathryoshka import config
from pathryoshka.ablate.twins import load_ablation
from pathryoshka.cli import cli
from pathryoshka.sweep.space import load_sweep

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "infra").rglob("*.md"))]
STOP = {"|", ">", "&&", ";", "&", "||"}


def commands(page: Path) -> Iterator[str]:
    """Lines of code that call the verbs, without prompts, remarks and what follows them in a pipe."""
    blocks = re.findall(r"^```(?:bash|console|sh)?\n(.*?)^```", page.read_text(), re.M | re.S)
    blocks += ["\n".join(re.findall(r"^ {4}(pathryoshka .*)", page.read_text(), re.M))]
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"(?:;|&&)\s+", line.split("  #")[0].split(" # ")[0]):
                if part.strip().startswith("pathryoshka "):
                    yield part.strip()


def parsed(line: str) -> None:
    """Raises click.UsageError where a verb, option or argument is not there. `...` and `[--x]` stand for more."""
    words = [word for word in shlex.split(line.replace("[", " ").replace("]", " ")) if word != "..."]
    words = words[1 : next((i for i, word in enumerate(words) if word in STOP), len(words))]
    command: click.Command = cli
    context = click.Context(cli, info_name="pathryoshka")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        inner = command.get_command(context, words[0])
        if inner is None:
            raise click.UsageError(f"there is no verb {words[0]}")
        command, words = inner, words[1:]
    takes = {name: param for param in command.params for name in param.opts}
    i, given = 0, 0
    while i < len(words):
        word = words[i].split("=")[0]
        if word.startswith("-") and word != "-" and not command.context_settings.get("ignore_unknown_options"):
            if word not in takes:
                raise click.UsageError(f"{command.name} has no option {word}")
            option = takes[word]
            assert isinstance(option, click.Option)
            i += not (option.is_flag or "=" in words[i])
        else:
            given += 1
        i += 1
    least = sum(param.required for param in command.params if isinstance(param, click.Argument))
    if given < least and "--" not in words:
        raise click.UsageError(f"{command.name} wants {least} arguments")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_are_those_of_the_verbs(page: Path) -> None:
    for line in commands(page):
        try:
            parsed(line)
        except click.UsageError as error:
            pytest.fail(f"{line}: {error.message}")


def test_a_wrong_command_is_found() -> None:
    parsed("pathryoshka export --to x")
    for line in ("pathryoshka exprot", "pathryoshka export --too x", "pathryoshka verify"):
        with pytest.raises(click.UsageError):
            parsed(line)


def files(page: Path) -> list[str]:
    return re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.M | re.S)


@pytest.mark.parametrize("page", [page for page in PAGES if files(page)], ids=lambda page: str(page.relative_to(ROOT)))
def test_the_files_of_a_page_are_runs_and_sweeps(page: Path, tmp_path: Path) -> None:
    for text in files(page):
        (tmp_path / "run.yaml").write_text(text)
        load = load_sweep if "sweep:" in text else load_ablation if "ablate:" in text else None
        if load:
            load(tmp_path / "run.yaml")
        else:
            config.load_run("paper_b", tmp_path / "run.yaml")


def test_enough_pages_were_read() -> None:
    assert sum(1 for page in PAGES for _ in commands(page)) > 40
    assert sum(len(files(page)) for page in PAGES) > 6


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    words = ["-m", "mkdocs", "build", "--quiet", "-f", str(ROOT / ".mkdocs.yml"), "-d", str(tmp_path)]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "numbers already work" in (tmp_path / "index.html").read_text()
    assert "teachers.models.&lt;name&gt;.batch_size" in (tmp_path / "config.html").read_text()
    pages = {path.stem for path in tmp_path.glob("*.html")}
    assert pages >= {path.stem for path in (ROOT / "docs").glob("*.md")} | {"cli", "api", "config"}
    outside = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="https?://', (tmp_path / "index.html").read_text())
    assert not outside, "the site loads nothing from elsewhere"
