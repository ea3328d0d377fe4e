"""Slides or tiles in, one table of vectors out: an exported student over any number of slides, on Ray Data."""
