"""Search over embeddings: an index of tiles on disk or in object storage, and neighbours by any width.

How a query walks::

    query       picture -> vector, by the student the index was made with      filters     whose tiles may be found
    index       an opened index: neighbours, pictures, the tiles of a slide
    scan        short-list: every row's first numbers in 8 bits, by faiss      segment     rows on disk: files, checks
    manifest    what makes a folder an index; written last                     source      tables of vectors -> rows
    writing     build, add, delete, compact, verify: one writer at a time      picture     query and neighbours as PNG

docs/search.md says why it is made like this, with figures.
"""

from pathryoshka.search.index import Index, Neighbour, open_index

__all__ = ["Index", "Neighbour", "open_index"]
