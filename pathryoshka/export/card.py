"""The model card: what the folder is, how to load it in five lines, what each width scored, whose licences apply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pathryoshka.evaluate.model_card import HEADING, model_card_section, saw_of

if TYPE_CHECKING:
    from pathryoshka.evaluate.scores import Scores
    from pathryoshka.export.seen import Seen

USE = """## Load it

```python
import timm, torch
model = timm.create_model("local-dir:<this folder>", pretrained=True).eval()  # or hf-hub:<name> once it is there
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
z = model(transform(image)[None])                                     # image: PIL, RGB; z: [1, {width}]
e = torch.nn.functional.normalize(z[:, :{small}], dim=-1)                    # any of the widths {widths}
```

A width is the first numbers of the vector, normalised again *after* cutting. timm {timm} and torch {torch} made this
folder; timm 1.0.29 is the oldest whose `local-dir:` finds the weights (1.0.16 with
`checkpoint_path="<this folder>/model.safetensors"` in place of `pretrained=True`). With the `pathryoshka` package,
`pathryoshka.load("<this folder>", width={small}).embed(images_uint8)` does the same, and
`pathryoshka verify <this folder>` compares the eight tiles in `golden/` with their vectors in `golden.safetensors`,
which any other runtime should reach to 1e-4.
"""

WITHOUT = """## Without our code

```python
import numpy as np, onnxruntime
from PIL import Image
session = onnxruntime.InferenceSession("<this folder>/formats/{file}")  # no torch, no timm, any batch size
image = Image.open("tile.png").convert("RGB")
side = min(image.size)  # the middle square of the picture is what the student sees
left, top = (image.width - side) / 2, (image.height - side) / 2
view = image.resize(({size}, {size}), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
z = session.run(None, {{"tiles": np.asarray(view)[None]}})[0]  # uint8 [B, {size}, {size}, 3] -> [B, {width}]
e = z[:, :{small}]  # any of the widths {widths}
e /= np.linalg.norm(e, axis=1, keepdims=True)
```

Pixels are normalised inside the file. `formats/formats.json` holds the checksums; `pathryoshka verify <this folder>`
runs every file on the golden tiles on your machine. Smallest cosine to PyTorch over the golden tiles, by width:

{table}
"""
TEACHERS = "## Teachers and their licences"


def model_card(facts: Mapping[str, Any], scores: Scores | None, seen: Seen) -> str:
    """README.md of an export, from its `pathryoshka.json`, its scores and what its distillation saw."""
    widths = ", ".join(map(str, facts["widths"]))
    small = small_width(facts["widths"])
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
            model_card_section(scores, saw_of([seen]), licences_of(facts)),
            teacher_part(facts["teachers"]),
            limits(facts),
        ]
    )


def with_formats(card: str, formats: Mapping[str, Any]) -> str:
    """The card with its part on other runtimes as `formats.json` says; a part that was there is replaced."""
    before, rest = card.split(HEADING, 1)
    before = before.split(WITHOUT.partition("\n")[0], 1)[0]
    files, widths = formats["files"], formats["widths"]
    runs = [name for name in files if name.endswith(".onnx")]
    if not runs:
        return f"{before}{HEADING}{rest}"
    lines = ["| file | kB | " + " | ".join(map(str, widths)) + " |", "|---|---|" + "---|" * len(widths)]
    for name, one in files.items():
        cosine = {int(width): value for width, value in one["cosine"].items()}
        lines.append(
            f"| `{name}` | {one['num_bytes'] / 1e3:.0f} | " + " | ".join(f"{cosine[w]:.4f}" for w in widths) + " |"
        )
    lines += probed(formats["scores"], widths)
    part = WITHOUT.format(
        file="model.onnx" if "model.onnx" in runs else runs[0], size=formats["size"], width=max(widths),
        small=small_width(widths), widths=", ".join(map(str, widths)), table="\n".join(lines),
    )  # fmt: skip
    return f"{before}{part}\n{HEADING}{rest}"


def probed(scores: Sequence[Mapping[str, Any]], widths: Sequence[int]) -> list[str]:
    """What a linear probe makes of each runtime's vectors, where labelled tiles were given."""
    lines = []
    for data in dict.fromkeys(row["dataset"] for row in scores):
        lines += [f"\nBalanced accuracy of a linear probe on {data}, by width:\n",
                  "| runtime | " + " | ".join(map(str, widths)) + " |", "|---|" + "---|" * len(widths)]  # fmt: skip
        mine = [row for row in scores if row["dataset"] == data]
        for name in dict.fromkeys(row["runtime"] for row in mine):
            found = {row["width"]: f"{row['score']:.3f}" for row in mine if row["runtime"] == name}
            lines.append(f"| {name} | " + " | ".join(found[w] for w in widths) + " |")
    return lines


def small_width(widths: Sequence[int]) -> int:
    """The width nearest to an eighth of all, for examples."""
    return min(widths, key=lambda width: abs(width / max(widths) - 1 / 8))


def front_matter(facts: Mapping[str, Any]) -> str:
    return (
        f"---\nlibrary_name: timm\nlicense: {facts['licence']}\npipeline_tag: image-feature-extraction\n"
        "tags: [pathology, distillation, matryoshka]\n---\n"
    )


def names(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else "no teacher"


def with_scores(card: str, section: str) -> str:
    """The card with another part on what each width is worth."""
    before, rest = card.split(HEADING, 1)
    return f"{before}{section}\n{TEACHERS}{rest.split(TEACHERS, 1)[1]}"


def licences_of(facts: Mapping[str, Any]) -> dict[str, str]:
    """Of the student and its teachers, by the names that a run's evaluation has for them."""
    teachers = {name: one.get("licence", "unknown") for name, one in facts["teachers"].items()}
    return {"student": facts["licence"], **teachers}


def teacher_part(teachers: Mapping[str, Mapping[str, Any]]) -> str:
    """A line a teacher: what its licence lets one do, and where that is written."""
    lines = [
        f"{TEACHERS}\n",
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


def limits(facts: Mapping[str, Any]) -> str:
    return f"""## Intended use and limits

A frozen encoder of H&E tiles for research: features for classifiers, search and clustering. It is no medical device,
and nothing here says how it behaves on other stains, scanners, magnifications or organs than those it was distilled
and scored on.

- Tiles go in as RGB at the magnification of the distillation; {facts["size"]} px is the size it was trained at.
- `seen.parquet` holds keyed hashes of the slides, patients and tiles that distillation saw. Scores on those flatter it.
- `heads.safetensors` leads from the first d numbers of the vector as timm gives it (not normalised) to raw features of
  each teacher: `<kind>_<d>_<teacher>.weight`, `.bias`; standardisers are folded in.
"""
