"""Sweeps: many runs of one base over a space of settings, on Ray Tune; each trial is the production trainer."""
