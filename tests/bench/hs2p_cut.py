"""Cuts slides with hs2p 6 in an environment of its own, and prints tiles and seconds; for bench_tiling.py.

    python3 -m venv /tmp/hs2p && /tmp/hs2p/bin/pip install 'hs2p[openslide,turbojpeg]' openslide-bin 'PyTurboJPEG<2'
    apt-get install libturbojpeg0
    make bench NAME=tiling HS2P_PYTHON=/tmp/hs2p/bin/python

PyTurboJPEG 2 wants libjpeg-turbo 3, which Debian 12 has not. hs2p takes a level within 5 % of the resolution asked for
as it is, where `tiles cut` resamples, and halves the colours of its JPEGs (4:2:0, quality 90): both make it faster, and
are its only way.
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
