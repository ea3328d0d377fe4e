"""The nuisance of phantom tissue: what a site and a patient change in a picture that no label is about.

A site has a scanner (blur, gamma, noise, white, JPEG quality) and a laboratory (stain vectors and amounts); a patient,
nested in a site, varies the stains a little more and has tissue of a scale and habit of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from pathryoshka.tiles.phantom_tissue import Habit, Rng, Tissue
from pathryoshka.tiles.views import keyed_generator

PHANTOM_VERSION = 1
"""Raised whenever the same arguments would give other tiles."""

# Optical density of R, G, B for one unit of stain, unit length; between the usual reference vectors of H&E.
STAINS = np.array([[0.61, 0.71, 0.35], [0.14, 0.92, 0.36]])


def phantom_rng(seed: int, *what: int | str) -> Rng:
    """The generator of one thing: a site, a patient, a tile."""
    return keyed_generator("phantom", PHANTOM_VERSION, seed, *what)


@dataclass(frozen=True)
class Scanner:
    """What a site does to every picture."""

    blur: float
    """Sigma in pixels."""
    gamma: float
    noise: float
    """Sigma in grey levels."""
    quality: int
    """Of the JPEG."""
    white: np.ndarray
    """Red, green, blue of the empty glass."""
    stains: np.ndarray
    """Added to STAINS, [2, 3]."""
    amounts: np.ndarray
    """Logarithm of the factor on each stain, [2]."""


@dataclass(frozen=True)
class Patient:
    """What is common to the tiles of a patient."""

    habit: Habit
    stains: np.ndarray
    """Optical density of R, G, B for a unit of haematoxylin and of eosin, [2, 3]."""


def scanner_of(site: int, seed: int) -> Scanner:
    rng = phantom_rng(seed, "site", site)
    return Scanner(
        blur=rng.uniform(0.4, 1.3),
        gamma=math.exp(rng.normal(0, 0.12)),
        noise=rng.uniform(1, 4),
        quality=int(rng.integers(90, 97)),
        white=np.clip(rng.normal(241, 5) + rng.normal(0, 2, 3), 222, 254),
        stains=rng.normal(0, 0.045, (2, 3)),
        amounts=rng.normal(0, 0.16, 2),
    )


def patient_of(patient: int, site: int, seed: int) -> Patient:
    rng = phantom_rng(seed, "patient", patient, site)
    scanner = scanner_of(site, seed)
    habit = Habit(
        scale=math.exp(rng.normal(0, 0.10)),
        atypia=rng.beta(2.2, 2.2),
        cellularity=math.exp(rng.normal(0, 0.2)),
        wave=math.exp(rng.normal(0, 0.3)),
    )
    stains = np.maximum(STAINS + scanner.stains + rng.normal(0, 0.025, (2, 3)), 0.02)
    stains /= np.sqrt((stains**2).sum(axis=1, keepdims=True))
    amounts = np.exp(scanner.amounts + rng.normal(0, 0.12, 2)) * [1.0, 0.8]
    return Patient(habit, stains * amounts[:, None])


def stained(tissue: Tissue, stains: np.ndarray, white: np.ndarray) -> np.ndarray:
    """Beer-Lambert: white * 10 ^ -(densities @ stains); float32 [H, W, 3]."""
    light = np.empty((*tissue.haem.shape, 3), np.float32)
    for channel in range(3):
        haem, eosin = (np.float32(-math.log(10) * stain) for stain in stains[:, channel])
        light[..., channel] = np.exp(haem * tissue.haem + eosin * tissue.eosin) * np.float32(white[channel])
    return light


def scanned(light: np.ndarray, scanner: Scanner, rng: Rng) -> np.ndarray:
    """Blur, gamma and noise of a scanner; float32 [H, W, 3] of 0 ... 255 to uint8."""
    sharp = Image.fromarray(np.clip(light + 0.5, 0, 255).astype(np.uint8))
    blurred = np.asarray(sharp.filter(ImageFilter.GaussianBlur(scanner.blur)))
    curve = np.round(255 * (np.arange(256) / 255) ** scanner.gamma).astype(np.int16)
    grains = np.rint(scanner.noise * rng.standard_normal(light.shape[:2], dtype=np.float32)).astype(np.int16)
    return np.clip(curve.take(blurred) + grains[:, :, None], 0, 255).astype(np.uint8)
