"""One slide in the process for slides: opened, its tissue found, then its tiles as views, a batch a call.

The slide stays open from call to call; `tiles/child.py` runs these functions and knows nothing of them.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pathryoshka.embedding.rows import Tiles, facts_table
from pathryoshka.tiles.cutting import Slide, identity, survey, tile_id, worth_keeping
from pathryoshka.tiles.grid import Cut
from pathryoshka.tiles.pixels import kept
from pathryoshka.tiles.readers import open_slide
from pathryoshka.tiles.segments import hashed
from pathryoshka.tiles.tiff import SlideError
from pathryoshka.tiles.views import identity_view


@dataclass
class Held:
    """The slide at hand."""

    stack: contextlib.ExitStack
    rows: Iterator[tuple[dict[str, Any], np.ndarray]]


held: Held | None = None


def begin(path: str, mask: bytes | None, cut: Cut, slide_mpp: float | None, what: Slide, size: int) -> int:
    """Opens a slide, in place of the one before; how many tiles there will be at most.

    Raises:
        SlideError: as `tiles.cutting.cut_slide`.
    """
    global held
    end()
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(open_slide(path))
        seen = survey(opened, mask, cut, slide_mpp, what)

        def rows() -> Iterator[tuple[dict[str, Any], np.ndarray]]:
            about = identity(what)
            for i, tile in worth_keeping(opened, seen.found, cut):
                view, place = identity_view(tile, size), seen.found[i]
                x, y, mpp = int(place["x"]), int(place["y"]), float(place["mpp"])
                facts = {"tile_id": tile_id(what, cut, x, y, mpp), "pixels": hashed(view.data), "x": x, "y": y}
                yield about | facts | {"side": float(place["side"]), "mpp": mpp}, view

        held = Held(stack.pop_all(), rows())
        return len(kept(seen.found))


def more(num: int) -> Tiles | None:
    """The next tiles, at most `num`; none when the slide is at its end, which closes it."""
    if held is None:
        raise SlideError("the process that read it was lost; run the same command again")
    batch = list(itertools.islice(held.rows, num))
    if not batch:
        end()
        return None
    return Tiles(facts_table([facts for facts, _ in batch]), np.stack([view for _, view in batch]), {})


def end() -> None:
    global held
    if held is not None:
        held.stack.close()
        held = None
