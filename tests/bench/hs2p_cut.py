"""Cuts slides with hs2p 6 (its own environment: `pip install hs2p[openslide,turbojpeg]`) and prints tiles and seconds.

For bench_tiling.py. hs2p takes a level within 5 % of the resolution asked for as it is, where `tiles cut` resamples,
and halves the colours of its JPEGs (4:2:0, quality 90): both make it faster, and are its only way.
Usage: python hs2p_cut.py OUT SIZE MPP SLIDE...
"""

import importlib.util
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

from hs2p import (
    DEFAULT_MASK_SAMPLING,
    BatchPartialFailureWarning,
    SegmentationConfig,
    SlideSpec,
    TilingConfig,
    tile_slides,
)


def main() -> None:
    out, size, mpp, *slides = sys.argv[1:]
    warnings.simplefilter("error", BatchPartialFailureWarning)  # a slide that fails is no figure
    encoder = "pil"
    if importlib.util.find_spec("turbojpeg"):
        import turbojpeg

        try:
            turbojpeg.TurboJPEG()
            encoder = "turbojpeg"
        except RuntimeError:  # the C library is not on this machine
            pass
    begun = time.perf_counter()
    done = tile_slides(
        [SlideSpec(sample_id=Path(slide).stem, image_path=Path(slide)) for slide in slides],
        tiling=TilingConfig(
            requested_spacing_um=float(mpp),
            requested_tile_size_px=int(size),
            tolerance=0.05,
            overlap=0.0,
            backend="openslide",
        ),
        segmentation=SegmentationConfig(method="otsu"),
        output_dir=Path(out),
        num_workers=2,
        save_tiles=True,
        jpeg_backend=encoder,
        masks=replace(DEFAULT_MASK_SAMPLING, min_coverage={"tissue": 0.5}),
    )
    seconds = time.perf_counter() - begun
    print(encoder, sum(one.num_tiles for one in done), seconds)


if __name__ == "__main__":
    main()
