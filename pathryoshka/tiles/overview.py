"""A tile data set as one HTML page: what became of each slide, what the tiles are like, who they come from.

The page holds its pictures and asks the net for nothing. Its size is bounded: so many slides, rows and tiles are shown,
drawn by the seed, and it says of how many.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pathryoshka import config, storage
from pathryoshka.page import page, table
from pathryoshka.tiles.census import Census, Spread, spread, take_census
from pathryoshka.tiles.cutting import FOLDER
from pathryoshka.tiles.duplicates import DUPLICATES, SCOPES
from pathryoshka.tiles.preview import FATES, KEPT, OTHER, Preview, jpeg, preview
from pathryoshka.tiles.shards import DROPPED, Manifest, read_manifest
from pathryoshka.tiles.show import sample, thumbnail

SLIDES = "slides.parquet"
MAX_ROWS = 200
MAX_LABELS = 30
SAYS = {
    KEPT: "kept",
    "no_tissue": "too little tissue",
    "black": "black",
    "pen": "pen",
    "cap": "over the cap of the slide",
    "white": "without texture",
    "blur": "out of focus",
}
STYLE = """<style>
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .6rem; align-items: start }
.pair img { width: 100%; display: block; border-radius: .25rem }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); gap: .5rem }
.tiles figure { margin: 0 } .tiles img { width: 100%; display: block; border-radius: .2rem }
.tiles figcaption { font-size: .72rem; line-height: 1.3; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap }
.slide { break-inside: avoid; margin: 2rem 0 }
.histogram { max-width: 34rem; width: 100%; height: auto }
.swatch { display: inline-block; width: 2.6rem; height: 1.1rem; border-radius: .2rem; vertical-align: middle;
  border: 1px solid var(--line) }
.legend span { white-space: nowrap; margin-right: 1.1rem }
td.reason { white-space: normal; min-width: 14rem; text-align: left }
</style>"""


def write_overview(
    uri: str, cfg: config.Storage, to: str, *, num_slides: int = 24, num_tiles: int = 48, seed: int = 0
) -> None:
    """Writes the page of the data set at `uri` to the file or URI `to`, with pictures of `num_slides` slides at most.

    Raises:
        ShardError: no readable data set at `uri`.
    """
    manifest = read_manifest(uri, cfg)
    slides = read_table(uri, cfg, SLIDES) if storage.exists(storage.join(uri, SLIDES), cfg) else []
    parts = [
        STYLE,
        "<h1>Pathryoshka &middot; tiles</h1>",
        f'<p class="lead">{headline(manifest)}</p>',
        phantom_warning(manifest),
        cards(manifest),
        *slides_part(uri, cfg, slides, num_slides, seed),
        *census_part(take_census(uri, cfg, manifest, seed), manifest),
        *shares_part(manifest),
        *duplicates_part(uri, cfg),
        *tiles_part(uri, cfg, manifest, num_tiles, seed),
    ]
    storage.write_bytes(str(to), page("Pathryoshka: tiles", "\n".join(parts)).encode(), cfg)


def read_table(uri: str, cfg: config.Storage, name: str) -> list[dict[str, Any]]:
    return pq.read_table(io.BytesIO(storage.read_bytes(storage.join(uri, name), cfg))).to_pylist()


# ---------------------------------------------------------------- the first screen


def plural(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def headline(manifest: Manifest) -> str:
    counts = [plural(len(manifest.counts.get(kind, ())), kind) for kind in ("slide", "patient", "site")]
    text = f"<b>{plural(manifest.rows, 'tile')}</b> of {counts[0]}, {counts[1]}, {counts[2]}"
    labels = len(manifest.counts.get("label", ()))
    return f"{text}, {'without labels' if not labels else 'with ' + plural(labels, 'label')}."


def phantom_warning(manifest: Manifest) -> str:
    if manifest.made_by.get("kind") != "phantom":
        return ""
    return '<p class="warn"><b>PHANTOM.</b> This tissue was drawn by a program. It says nothing about patients.</p>'


def cards(manifest: Manifest) -> str:
    stats, size = manifest.tile_stats, sum(shard.bytes for shard in manifest.shards)
    splits = Counter[str]()
    for shard in manifest.shards:
        splits[shard.split or "no split"] += shard.rows
    shown = [
        ("tiles", f"{manifest.rows:,}", ", ".join(f"{name} {n:,}" for name, n in sorted(splits.items())[:6])),
        ("pixels", f"{stats['median_width']:.0f} x {stats['median_height']:.0f}", "median size of a tile"),
        ("stored", amount(size), f"{amount(size / manifest.rows)} a tile, {plural(len(manifest.shards), 'shard')}"),
        ("made by", str(manifest.made_by.get("kind", "?")), f"data set {manifest.digest()[:12]}"),
    ]
    inner = "".join(
        f'<div class="card"><span>{escape(what)}</span><b>{escape(value)}</b><span>{escape(beside)}</span></div>'
        for what, value, beside in shown
    )
    return f'<div class="cards">{inner}</div>'


def amount(size: float) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} B"


# ---------------------------------------------------------------- slides


def slides_part(uri: str, cfg: config.Storage, slides: list[dict[str, Any]], most: int, seed: int) -> list[str]:
    if not slides:
        return []
    status = Counter(slide["status"] for slide in slides)
    said = ", ".join(f"{status[name]:,} {name}" for name in ("done", "skipped", "failed") if status[name])
    first = sorted(slides, key=lambda s: (("failed", "skipped", "done").index(s["status"]), s["slide_id"]))
    reasons = [name for name in slides[0] if name.startswith("num_") and name not in ("num_positions", "num_kept")]
    # what never happened needs no column
    reasons = [name for name in reasons if any(slide[name] for slide in slides)]
    some = f" The table shows {MAX_ROWS} of them, failed ones first." if len(slides) > MAX_ROWS else ""
    head = ["slide", "patient", "site", "status", "mpp", "places", "kept"]
    rows = [("", [*slide_cells(slide, reasons)]) for slide in first[:MAX_ROWS]]
    parts = [
        "<h2>What became of the slides</h2>",
        f"<p>{plural(len(slides), 'slide')}: {said}.{some} A place is a cell of the grid; what is not kept was refused "
        "for one reason.</p>",
        table([*head, *(SAYS.get(name.removeprefix("num_"), name) for name in reasons)], rows),
        *problems(first),
    ]
    done = [slide for slide in first if slide["status"] != "failed"]
    order = np.random.default_rng(seed).permutation(len(done))[:most]
    chosen = sorted((done[i] for i in order), key=lambda slide: slide["slide_id"])
    drawn = [(slide, found) for slide in chosen if (found := preview(uri, slide, cfg))]
    if not drawn:
        return [*parts, f'<p class="faint">There are no pictures of slides in {FOLDER}.</p>']
    of = f" {len(drawn)} of {len(done)} slides, drawn by lot." if len(done) > len(drawn) else ""
    parts.append(
        f"<h2>Where tiles were cut</h2><p>Left: tissue as found, what is not tissue paler. Right: tiles.{of}</p>"
    )
    parts.append(legend(drawn))
    return [*parts, *(slide_part(slide, found) for slide, found in drawn)]


def slide_cells(slide: dict[str, Any], reasons: Sequence[str]) -> list[str]:
    mpp = f"{slide['mpp']:.4g}" if slide["mpp"] else "&ndash;"
    names = [escape(short_name(slide[name])) for name in ("slide_id", "patient_id", "site")]
    counts = [f"{slide[name]:,}" for name in ("num_positions", "num_kept", *reasons)]
    return [*names, slide["status"], mpp, *counts]


def short_name(name: str, most: int = 32) -> str:
    """The ends of names tell them apart."""
    return name if len(name) <= most else f"...{name[3 - most :]}"


def problems(slides: Sequence[dict[str, Any]]) -> list[str]:
    """Slides that gave no tile, with the reason, as they cannot be seen in a picture."""
    said = [slide for slide in slides if slide["reason"]]
    items = "".join(f"<li><b>{escape(s['slide_id'])}</b>: {escape(s['reason'])}</li>" for s in said[:MAX_ROWS])
    return [f"<h3>Slides without tiles</h3><ul>{items}</ul>"] if said else []


def legend(drawn: Sequence[tuple[dict[str, Any], Preview]]) -> str:
    there = {fate for _, found in drawn for fate in found.fates}
    keys = [name for name in (*FATES, *sorted(there - set(FATES))) if name in there]
    return f'<p class="legend">{" ".join(f"<span>{key(name)}{SAYS.get(name, name)}</span>" for name in keys)}</p>'


def key(fate: str) -> str:
    red, green, blue = FATES.get(fate, OTHER)
    return f'<span class="key" style="background: rgb({red} {green} {blue}); margin-right: .4rem"></span>'


def slide_part(slide: dict[str, Any], found: Preview) -> str:
    total = max(1, sum(found.fates.values()))
    counts = ", ".join(
        f"{found.fates[name]:,} {SAYS.get(name, name)} ({found.fates[name] / total:.0%})"
        for name in (*FATES, *sorted(set(found.fates) - set(FATES)))
        if name in found.fates
    )
    name = slide["slide_id"]
    at = f" at {found.mpp:.3g} mpp" if found.mpp else ""
    facts = f"{slide['width']:,} x {slide['height']:,} pixels at {slide['mpp']:.4g} mpp, {slide['format']}"
    return (
        f'<div class="slide"><h3>{escape(name)} <span class="faint">{escape(facts)}</span></h3><div class="pair">'
        f"{picture(found.tissue, f'tissue of {name}')}{picture(found.tiles, f'tiles of {name}: {counts}')}</div>"
        f'<p class="faint">Tiles{at}: {counts}.</p></div>'
    )


def picture(data: bytes, says: str) -> str:
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(data).decode()}" alt="{escape(says)}" loading="lazy">'


# ---------------------------------------------------------------- tiles


def census_part(census: Census, manifest: Manifest) -> list[str]:
    known = census.mpp[np.isfinite(census.mpp)]
    of = plural(len(census.tissue), "tile")
    looked = f"all {of}" if len(census.tissue) == manifest.rows else f"{of} of {manifest.rows:,}, every site in turn"
    parts = ["<h2>What the tiles are like</h2>", f'<p class="faint">From {looked}.</p>']
    parts += ["<h3>Share of tissue</h3>", histogram(census.tissue, 0.0, 1.0, "share of a tile that is stained")]
    values, counts = np.unique(np.round(known, 3), return_counts=True)
    without = len(census.mpp) - len(known)
    parts.append('<h3>Resolution <span class="faint">micrometres a pixel</span></h3>')
    if len(values) > 8:
        parts.append(histogram(known, float(known.min()), float(known.max()), "micrometres a pixel"))
    elif len(values):
        shares = (f"{n / len(census.mpp):.0%} at {value:.3g}" for value, n in zip(values, counts, strict=True))
        parts.append(f"<p>{', '.join(shares)}.</p>")
    if without:
        parts.append(f"<p>{without / len(census.mpp):.0%} do not say.</p>")
    sites = manifest.counts.get("site", {})
    overall = np.mean([colour for colour, _ in census.colours.values()], axis=0) if census.colours else np.zeros(3)
    rows = [
        ("", [escape(short_name(site)), f"{sites.get(site, 0):,}", str(n), swatch(colour), rgb(colour), away])
        for site, (colour, n) in list(census.colours.items())[:MAX_LABELS]
        for away in [f"{np.linalg.norm(colour - overall):.0f}"]
    ]
    head = ["site", "tiles", "looked at", "mean colour", "red, green, blue", "away from the mean of sites"]
    return [*parts, "<h3>Colour by site</h3>", table(head, rows)]


def swatch(colour: np.ndarray) -> str:
    return f'<span class="swatch" style="background: rgb({rgb(colour).replace(",", "")})"></span>'


def rgb(colour: np.ndarray) -> str:
    return ", ".join(f"{value:.0f}" for value in colour)


def histogram(values: np.ndarray, low: float, high: float, says: str, bins: int = 20) -> str:
    """Bars of equal width, with the ends of the axis, the median and the share of the tallest bar written in."""
    counts, _ = np.histogram(values, bins=bins, range=(low, high))
    shares, median = counts / max(1, counts.sum()), float(np.median(values))
    width, height, base = 560, 150, 112
    step, tallest = width / bins, max(float(shares.max()), 1e-9)
    bars = "".join(
        f'<rect x="{i * step + 1:.1f}" y="{base - share / tallest * 90:.1f}" width="{step - 2:.1f}" '
        f'height="{share / tallest * 90:.1f}" fill="var(--student)"><title>{share:.1%}</title></rect>'
        for i, share in enumerate(shares)
    )
    peak = (int(np.argmax(shares)) + 0.5) * step
    anchor = "start" if peak < 30 else "end" if peak > width - 30 else "middle"
    text = 'font-size="13" fill="var(--faint)"'
    says = f"{escape(says)}, median {median:.2f}"
    return (
        f'<svg class="histogram" viewBox="0 0 {width} {height}" role="img" aria-label="{says}">'
        f'{bars}<line x1="0" x2="{width}" y1="{base}" y2="{base}" stroke="var(--line)"/>'
        f'<text x="{peak:.0f}" y="15" text-anchor="{anchor}" {text}>{tallest:.0%}</text>'
        f'<text x="0" y="130" {text}>{low:.3g}</text>'
        f'<text x="{width}" y="130" text-anchor="end" {text}>{high:.3g}</text>'
        f'<text x="{width / 2}" y="130" text-anchor="middle" {text}>{says}</text></svg>'
    )


def shares_part(manifest: Manifest) -> list[str]:
    kinds = [kind for kind in ("slide", "patient", "site", "label") if manifest.counts.get(kind)]
    rows = [("", [f"{kind}s", *spread_cells(spread(manifest.counts[kind]))]) for kind in kinds]
    head = ["", "how many", "worth as many equal ones", "smallest", "median", "largest", "share of the largest"]
    parts = [
        "<h2>Who the tiles come from</h2>",
        "<p>Few large patients or sites weigh like fewer: with <code>plan.balance</code> they count alike.</p>",
        table(head, rows),
    ]
    labels = Counter(manifest.counts.get("label", {}))
    if labels:
        rows = [
            ("", [escape(name), f"{n:,}", f"{n / manifest.rows:.1%}"]) for name, n in labels.most_common(MAX_LABELS)
        ]
        more = f", the largest {MAX_LABELS} of {len(labels)}" if len(labels) > MAX_LABELS else ""
        parts += [f"<h3>Labels{more}</h3>", table(["label", "tiles", "share"], rows)]
    return parts


def spread_cells(found: Spread) -> list[str]:
    sizes = [f"{found.smallest:,}", f"{found.median:,.0f}", f"{found.largest:,}"]
    return [f"{found.num:,}", f"{found.effective:.1f}", *sizes, f"{found.largest / found.total:.0%}"]


def duplicates_part(uri: str, cfg: config.Storage) -> list[str]:
    if not storage.exists(storage.join(uri, DUPLICATES), cfg):
        return ['<p class="faint">Duplicates were not looked for: <code>pathryoshka tiles duplicates</code>.</p>']
    counts = Counter((row["scope"], row["kind"]) for row in read_table(uri, cfg, DUPLICATES))
    rows = [("", [where, *(f"{counts[where, kind]:,}" for kind in ("exact", "near"))]) for where in SCOPES]
    dropped = storage.exists(storage.join(uri, DROPPED), cfg)
    said = "A list of dropped tiles lies beside the manifest." if dropped else "None of them is left out."
    return ["<h3>Duplicates</h3>", table(["", "same pixels", "nearly the same"], rows), f"<p>{said}</p>"]


def tiles_part(uri: str, cfg: config.Storage, manifest: Manifest, num_tiles: int, seed: int) -> list[str]:
    figures = []
    for row in sample(uri, cfg, manifest, num_tiles, seed):
        says = f"{row['label'] or 'no label'}, {row['patient_id']}, {row['site']}"
        small: Image.Image = thumbnail(row["image"])
        caption = escape(row["label"] or short_name(row["patient_id"], 20))
        figures.append(f"<figure>{picture(jpeg(small), says)}<figcaption>{caption}</figcaption></figure>")
    return [f"<h2>{plural(len(figures), 'tile')} by lot</h2>", f'<div class="tiles">{"".join(figures)}</div>']
