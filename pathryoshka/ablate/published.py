"""Published distillation recipes as a few lines over any run: what they ask of the student, at the run's own budget.

Teachers, student, data, views and schedule stay the run's, so that recipes are compared by what they are about:
targets, losses, heads. What a source leaves open is said, and what cannot be said in this tree is left out, also said.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from pathryoshka.config import ConfigError

MLP: dict[str, Any] = {"kind": "separate", "hidden": 1280}
LINEAR: dict[str, Any] = {"kind": "separate", "hidden": 0}


@dataclass(frozen=True)
class Published:
    """`over` is laid over a run; `apart` says how it departs from the source, or what the source leaves open.

    `nested`: trains widths below the full one; of the others only the full width has a loss.
    """

    over: dict[str, Any]
    source: str
    apart: str = ""
    nested: bool = False


def raw(kind: str) -> dict[str, Any]:
    return {"summary": kind, "tokens": kind}


PUBLISHED: dict[str, Published] = {
    "am_radio": Published(
        {"standardise": raw("none"), "loss": {"summary": "cosine", "tokens": "smooth_l1_mix"},
         "student": {"heads": MLP}},
        "AM-RADIO, Ranzinger et al. 2024, arXiv 2312.06709",
        "hidden units are 1280, the source's are the widest teacher's",
    ),
    "phi_s": Published(
        {"standardise": raw("phi_s"), "loss": {"summary": "cosine", "tokens": "mse"}, "student": {"heads": MLP}},
        "PHI-S, Ranzinger et al. 2025, arXiv 2410.01680",
        "every view asks every teacher; the source asks one teacher a view",
    ),
    "unic": Published(
        {"standardise": raw("per_channel"), "loss": {"summary": "smooth_l1_half", "tokens": "smooth_l1_half",
         "teacher_drop": 0.5}, "student": {"heads": MLP}},
        "UNIC, Sariyildiz et al. 2024, arXiv 2408.05088",
        "statistics are fitted once instead of averaged along; one projector at the last block instead of a ladder",
    ),
    "dune": Published(
        {"standardise": raw("per_channel"), "loss": {"summary": "smooth_l1_half", "tokens": "smooth_l1_half"},
         "student": {"heads": MLP}},
        "DUNE, Sariyildiz et al. 2025, arXiv 2503.14405",
        "an MLP in place of a transformer block as projector",
    ),
    "litefm": Published(
        {"standardise": raw("none"), "loss": {"summary": "l1", "kinds": {"tokens": 0.0}}, "student": {"heads": LINEAR}},
        "LitePath, github.com/caiyu6666/LitePath",
        "teachers weigh alike; the source weighs Virchow2 .4, H-optimus-1 .3, UNI2-h .3",
    ),
    "gpfm": Published(
        {"standardise": raw("none"), "loss": {"summary": "smooth_l1_mix", "tokens": "smooth_l1_mix"},
         "student": {"heads": MLP}},
        "GPFM, Ma et al. 2024, arXiv 2407.18449",
        "its distillation losses without the self-supervised ones beside them",
    ),
    "distillpath": Published(
        {"standardise": raw("none"), "loss": {"summary": "cosine", "tokens": "cosine", "relation": 0.33,
         "kinds": {"tokens": 0.44}}, "student": {"heads": MLP}},
        "DistillPath, arXiv 2608.17872",
        "weights are fixed where the source sets them for shares of a quarter each; no triplet angles",
    ),
    "patho_distill": Published(
        {"standardise": raw("per_channel"), "loss": {"summary": "cosine", "tokens": "smooth_l1_half",
         "kinds": {"tokens": 2.0}}, "student": {"heads": MLP}},
        "patho-distill, github.com/makuleprohaska/dl-seminar",
        "statistics of the data instead of the batch; heads for summary and tokens are apart",
    ),
    "mrl": Published(
        {"student": {"heads": LINEAR}, "loss": {"widths_per_step": 0}},
        "Matryoshka Representation Learning, Kusupati et al. 2022, arXiv 2205.13147",
        "the loss is this run's; every width has a head of its own at every step",
        nested=True,
    ),
    "mrl_e": Published(
        {"student": {"heads": {"kind": "tied", "hidden": 0}}, "loss": {"widths_per_step": 0}},
        "MRL-E, Kusupati et al. 2022, section 3",
        "the loss is this run's; the widths share one sliced head",
        nested=True,
    ),
}  # fmt: skip


def published(name: str) -> Published:
    """Raises ConfigError for a name that no recipe has."""
    if name not in PUBLISHED:
        near = difflib.get_close_matches(name, PUBLISHED, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(PUBLISHED)}"
        raise ConfigError(f"unknown published recipe {name!r}; {hint}")
    return PUBLISHED[name]
