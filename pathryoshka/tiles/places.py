"""The same tissue on several slides: the last part of a tile's id names the place that it shows."""


def place_of(tile_id: str) -> str:
    return tile_id.rsplit("/", 1)[-1]
