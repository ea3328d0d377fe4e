"""The model card: what the folder is, how to load it in five lines, what each width scored, whose licences apply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathryoshka.evaluate.scores import Scores

USE = """## Load it

```python
import timm, torch
model = timm.create_model("local-dir:<this folder>", pretrained=True).eval()  # or hf-hub:<name> once it is there
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
z = model(transform(image)[None])                                     # image: PIL, RGB; z: [1, {width}]
e = torch.nn.functional.normalize(z[:, :{small}], dim=-1)                    # any of the widths {widths}
```

A width is the first numbers of the vector, normalised again *after* cutting. timm {timm} and torch {torch} made this
folder; timm 1.0.16 is the oldest that knows `local-dir:`. With the `pathryoshka` package,
`pathryoshka.load("<this folder>", width={small}).embed(images_uint8)` does the same, and
`pathryoshka verify <this folder>` compares the eight tiles in `golden/` with their vectors in `golden.safetensors`,
which any other runtime should reach to 1e-4.
"""


def model_card(facts: Mapping[str, Any], scores: Scores | None) -> str:
    """README.md of an export, from its `pathryoshka.json` and its scores."""
    widths = ", ".join(map(str, facts["widths"]))
    small = min(facts["widths"], key=lambda width: abs(width / facts["width"] - 1 / 8))
    made = facts["made_with"]
    use = USE.format(width=facts["width"], small=small, widths=widths, timm=made["timm"], torch=made["torch"])
    return "\n".join(
        [
            front_matter(facts),
            f"# {facts['run']['name']}\n",
            f"A {facts['architecture']} of {facts['num_params'] / 1e6:.2f} M parameters and {facts['gflop']:.3g} GFLOP "
            f"a {facts['size']}-px tile, distilled from {names(list(facts['teachers']))} with Pathryoshka. Its "
            f"embedding of {facts['width']} numbers can be cut to {widths}.\n",
            f"Model id (SHA-256 of `model.safetensors`): `{facts['model_id']}`\n",
            use,
            score_part(scores),
            teacher_part(facts["teachers"]),
            limits(facts, scores),
        ]
    )


def front_matter(facts: Mapping[str, Any]) -> str:
    return (
        f"---\nlibrary_name: timm\nlicense: {facts['licence']}\npipeline_tag: image-feature-extraction\n"
        "tags: [pathology, distillation, matryoshka]\n---\n"
    )


def names(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else "no teacher"


def score_part(scores: Scores | None) -> str:
    """A table a data set: encoders down, widths across, linear probe."""
    if scores is None:
        return "## What each width is worth\n\nNot evaluated.\n"
    parts = ["## What each width is worth\n"]
    for dataset in scores.datasets:
        rows = [r for r in scores.rows if r.dataset == dataset.name and r.protocol == "linear"]
        widths = sorted({r.width for r in rows})
        marks = [mark for mark, on in (("PHANTOM tissue, drawn by a program", dataset.phantom),
                                       ("SEEN in distillation", dataset.seen)) if on]  # fmt: skip
        shown = "".join(f" ({mark})" for mark in marks)
        parts.append(
            f"{dataset.name}{shown}: {dataset.num_tiles} tiles of {dataset.num_groups} {dataset.unit}s, "
            f"{len(dataset.labels)} classes; balanced accuracy of a linear probe, cross-validated by {dataset.unit}, "
            f"95 % interval over {dataset.unit}s; chance {dataset.chance:.2f}.\n"
        )
        parts.append("| encoder | " + " | ".join(map(str, widths)) + " |\n|---|" + "---|" * len(widths))
        for name in dict.fromkeys(r.encoder for r in rows):
            mine = {r.width: r for r in rows if r.encoder == name}
            cells = [
                f"{mine[w].score:.3f} [{mine[w].low:.2f}, {mine[w].high:.2f}]" if w in mine else "" for w in widths
            ]
            parts.append(f"| {name} | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


def teacher_part(teachers: Mapping[str, Mapping[str, Any]]) -> str:
    """A line a teacher: what its licence lets one do, and where that is written."""
    lines = [
        "## Teachers and their licences\n",
        "| teacher | parameters | licence | students may be passed on | commercial use | own weights may be passed on "
        "| source |",
        "|---|---|---|---|---|---|---|",
    ]
    answers = {True: "yes", False: "**no**", None: "not said"}
    for name, facts in teachers.items():
        params = f"{facts['num_params'] / 1e6:.1f} M" if "num_params" in facts else ""
        terms = facts.get("terms", {})
        cells = [answers[terms.get(key)] for key in ("derivatives", "commercial", "redistribution")]
        licence, source = facts.get("licence", "unknown"), terms.get("source", "")
        lines.append(f"| {name} | {params} | {licence} | {' | '.join(cells)} | {source} |")
    restricted = [name for name, facts in teachers.items() if False in facts.get("terms", {}).values()]
    unknown = [name for name, facts in teachers.items() if facts.get("terms", {}).get("derivatives") is None]
    if restricted:
        lines.append(
            f"\n**Before you share this model:** the terms of {names(restricted)} restrict use, and may count a model "
            "that was trained on their outputs as a derivative. Ask their owners."
        )
    if unknown:
        lines.append(f"\nWhether students of {names(unknown)} may be passed on is not known here; find out first.")
    return "\n".join(lines) + "\n"


def limits(facts: Mapping[str, Any], scores: Scores | None) -> str:
    notes = "".join(f"- {note}\n" for note in (scores.notes if scores else ()))
    return f"""## Intended use and limits

A frozen encoder of H&E tiles for research: features for classifiers, search and clustering. It is no medical device,
and nothing here says how it behaves on other stains, scanners, magnifications or organs than those it was distilled
and scored on.

- Tiles go in as RGB at the magnification of the distillation; {facts["size"]} px is the size it was trained at.
- `seen.parquet` holds keyed hashes of the slides, patients and tiles that distillation saw. Scores on those flatter it.
- `heads.safetensors` leads from the first d numbers of the vector as timm gives it (not normalised) to raw features of
  each teacher: `<kind>_<d>_<teacher>.weight`, `.bias`; standardisers are folded in.
{notes}"""
