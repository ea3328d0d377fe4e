"""Which images of the LC25000 sample show the same tissue: its 25,000 images are augmentations of 1,250.

Found on 28 November 2026 among the 100 images of the sample: a colour histogram of 8 x 8 x 8 bins at 256 px whose
Bhattacharyya coefficient is at least .985, and features of EfficientNet-Lite0, averaged over the eight orientations,
whose cosine is at least .85; linked singly. Looking at them agrees: the same structures turned and cut otherwise, or
one slide's stain. 87 clusters; at .98 and .82 they are 86.
"""

from __future__ import annotations

CLUSTERS = (
    ("colon_aca___colonca1290_119", "colon_aca___colonca4628_105"),
    ("colon_aca___colonca1642_111", "colon_aca___colonca971_118"),
    ("colon_aca___colonca3020_109", "colon_aca___colonca3372_102"),
    ("colon_aca___colonca3978_107", "colon_aca___colonca4271_106"),
    ("colon_n___colonn2057_110", "colon_n___colonn2792_113"),
    ("colon_n___colonn224_117", "colon_n___colonn2466_116", "colon_n___colonn3102_119", "colon_n___colonn4134_106",
     "colon_n___colonn456_115"),
    ("lung_aca___lungaca1674_113", "lung_aca___lungaca220_108"),
    ("lung_aca___lungaca2456_105", "lung_aca___lungaca25_110"),
    ("lung_n___lungn1862_103", "lung_n___lungn305_116"),
    ("lung_n___lungn3960_110", "lung_n___lungn4547_107"),
)  # fmt: skip
FIRST = {name: cluster[0] for cluster in CLUSTERS for name in cluster}


def unit_of(name: str) -> str:
    """The independent unit of an image, by the name of the first of its cluster."""
    return FIRST.get(name, name)
