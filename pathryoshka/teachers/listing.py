"""The rows of the zoo as people read them: a table of all, a page of one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from pathryoshka.teachers import licences
from pathryoshka.teachers.row import Row

COLUMNS = ("name", "parameters", "summary", "token", "patch @ input", "licence", "gated", "role")
NUMBERS = {1, 2, 3, 4}


def cells(row: Row) -> tuple[str, ...]:
    """One line of the table of teachers."""
    return (
        row.name,
        f"{row.num_params / 1e6:,.1f} M" if row.num_params else "-",
        str(row.summary_dim),
        str(row.token_dim),
        f"{row.stride} @ {row.input_size}" if row.input_size else "any",
        row.licence,
        "yes" if row.gated else "no",
        "teaches" if row.role == "teacher" else "competes",
    )


def table(rows: Iterable[Row]) -> list[str]:
    """The rows as lines of aligned columns, numbers to the right."""
    lines = [COLUMNS, *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            f"{cell:>{width}}" if i in NUMBERS else f"{cell:<{width}}"
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def show(row: Row) -> list[str]:
    """Every fact of a row, what its licence allows included."""
    width = max(map(len, asdict(row)))
    lines = [f"{key:<{width}}  {said(value)}" for key, value in asdict(row).items()]
    return [*lines, "", *licences.ledger({row.name: licences.terms(row)})]


def said(value: object) -> str:
    if value is None or value in ("", (), {}):
        return "-"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}={v}" for key, v in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
