"""What the licence of a teacher lets one do with a student of it: a ledger to read, and a policy that refuses.

Three questions are asked of each: may a model that learned from its outputs be passed on, may it be used commercially,
may the teacher's own weights be passed on. None means that the licence does not say, or that nobody here has read it.
What a row says of derivatives goes first: the gate of a repository may add to its licence. This is a reading aid and
no legal advice; the source stands beside each line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pathryoshka.teachers.row import EncoderError, Row

CC = "https://creativecommons.org/licenses/"


@dataclass(frozen=True)
class Licence:
    """A licence by itself, before the terms that a repository adds."""

    derivatives: bool | None
    commercial: bool | None
    redistribution: bool | None
    source: str


@dataclass(frozen=True)
class Terms:
    """What holds for one teacher: its licence, and what its own page says."""

    licence: str
    derivatives: bool | None
    commercial: bool | None
    redistribution: bool | None
    source: str


LICENCES: dict[str, Licence] = {
    "apache-2.0": Licence(True, True, True, "https://www.apache.org/licenses/LICENSE-2.0"),
    "mit": Licence(True, True, True, "https://opensource.org/license/mit"),
    "bsd-2-clause": Licence(True, True, True, "https://opensource.org/license/bsd-2-clause"),
    "bsd-3-clause": Licence(True, True, True, "https://opensource.org/license/bsd-3-clause"),
    "cc0-1.0": Licence(True, True, True, "https://creativecommons.org/publicdomain/zero/1.0/"),
    "cc-by-4.0": Licence(True, True, True, f"{CC}by/4.0/"),
    "cc-by-nc-4.0": Licence(True, False, True, f"{CC}by-nc/4.0/"),
    "cc-by-nc-sa-4.0": Licence(True, False, True, f"{CC}by-nc-sa/4.0/"),
    "cc-by-nc-nd-4.0": Licence(False, False, True, f"{CC}by-nc-nd/4.0/"),
    # Apache's text, to which the model card adds research use only
    "apache-2.0 with conditions": Licence(None, None, None, "the model card"),
    "owkin-non-commercial": Licence(None, False, None, "the model card"),
    "kaiko-non-commercial": Licence(None, False, None, "the model card"),
    "lunit-non-commercial": Licence(None, False, None, "the model card"),
}
UNKNOWN = Licence(None, None, None, "nobody has read it")
QUESTIONS = {
    "derivatives": "students of it may be passed on",
    "commercial": "commercial use",
    "redistribution": "its own weights may be passed on",
}


def terms(row: Row) -> Terms:
    """What holds for a row. A licence that is not listed answers nothing but what the row itself says."""
    known = LICENCES.get(row.licence.lower(), UNKNOWN)
    derivatives = known.derivatives if row.derivatives is None else row.derivatives
    source = row.licence_source if known is UNKNOWN else f"{row.licence_source}, {known.source}"
    return Terms(row.licence, derivatives, known.commercial, known.redistribution, source)


def ledger(teachers: Mapping[str, Terms]) -> list[str]:
    """One line a teacher, what it allows and who says so."""
    answers = {True: "yes", False: "NO", None: "not said"}
    return [
        f"licence of {name}: {t.licence}; "
        + ", ".join(f"{question}: {answers[getattr(t, key)]}" for key, question in QUESTIONS.items())
        + f" ({t.source})"
        for name, t in teachers.items()
    ]


def refuse_by_policy(policy: Literal["any", "permissive"], teachers: Mapping[str, Terms]) -> None:
    """Under "permissive", refuses every teacher that does not say yes to all three questions.

    Raises:
        EncoderError: names them and what is missing.
    """
    if policy == "any":
        return
    wrong = []
    for name, t in teachers.items():
        lacks = [question for key, question in QUESTIONS.items() if getattr(t, key) is not True]
        if lacks:
            wrong.append(f"{name} ({t.licence}; not granted: {', '.join(lacks)})")
    if wrong:
        raise EncoderError(
            f"licence.policy=permissive does not admit {'; '.join(wrong)}; leave them out "
            "(--set teachers.models.<name>=null), or set licence.policy=any and ask their owners"
        )
