"""Vectors of tiles in storage: the one table they stand in, and the store of teacher features made of it."""
