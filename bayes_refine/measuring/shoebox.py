"""Choose the pixels that a spot is measured on, and cut them out of an image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax
import numpy as np


@dataclass(frozen=True)
class Shoebox:
    """Pixel geometry of a measurement, px.

    Attributes:
        signal_radius: pixels nearer to the predicted centre are measured.
        ring_inner, ring_outer: pixels between these radii carry the background.
        spot_radius: a bright spot takes pixels nearer than this from its neighbours.
    """

    signal_radius: float
    ring_inner: float
    ring_outer: float
    spot_radius: float

    @cached_property
    def signal_offsets(self) -> np.ndarray:
        """(K, 2) offsets (x, y) from the central pixel of all pixels that may carry the spot."""
        return _disc(0.0, self.signal_radius)

    @cached_property
    def ring_offsets(self) -> np.ndarray:
        """(L, 2) offsets of all pixels that may carry the background."""
        return _disc(self.ring_inner, self.ring_outer)


def _disc(inner: float, outer: float) -> np.ndarray:
    """Offsets between two radii of any point of the central pixel."""
    half = int(np.ceil(outer + 0.5))
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    r = np.hypot(x, y)
    slack = np.sqrt(0.5)
    keep = (r < outer + slack) & (r > inner - slack)
    return np.stack([x[keep], y[keep]], axis=1)


def shoebox_for_width(R1_px: float) -> Shoebox:
    """A shoebox for spots of width R1 (px, exp(−r²/R1²)), in whole steps of a pixel.

    A radius of 2.5 R1 holds 99.8 % of a Gaussian spot; one pixel is added for the uncertainty of
    the centre.  The ring has at least 80 pixels.
    """
    radius = float(np.clip(np.ceil(2.5 * R1_px) + 1, 3, 12))
    inner = radius + 1
    outer = float(np.ceil(np.sqrt(inner**2 + 120 / np.pi)))
    return Shoebox(radius, inner, outer, spot_radius=radius)


class Boxes(NamedTuple):
    """Pixels of n shoeboxes: K of signal and L of background.

    Attributes:
        centre: (n, 2) predicted centre less the centre of the box's middle pixel, px.
        signal: (n, K) photons; usable: (n, K) bool, valid and in no neighbour's spot; contested:
            (n, K) bool, valid and in a neighbour's spot.
        ring: (n, L) photons, NaN where not usable.
    """

    centre: np.ndarray | jax.Array
    signal: np.ndarray | jax.Array
    usable: np.ndarray | jax.Array
    contested: np.ndarray | jax.Array
    ring: np.ndarray | jax.Array


def cut_shoeboxes(image, mask, panel, xy_px, claimed, shoebox: Shoebox) -> Boxes:
    """Pixels of the shoeboxes of one image.

    Args:
        image, mask: (P, ny, nx) photons and validity.
        panel: (n,); xy_px: (n, 2) predicted centres.
        claimed: (n,) bool, reflections bright enough to spoil a neighbour.
    """
    _, height, width = image.shape
    middle = np.floor(xy_px).astype(int)
    centre = xy_px - middle - 0.5

    def gather(offsets):
        x, y = middle[:, :1] + offsets[:, 0], middle[:, 1:] + offsets[:, 1]
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        row = panel[:, None] * height + np.clip(y, 0, height - 1)
        flat = row * width + np.clip(x, 0, width - 1)
        r2 = (offsets[:, 0] - centre[:, :1]) ** 2 + (offsets[:, 1] - centre[:, 1:]) ** 2
        return flat, inside & mask.reshape(-1)[flat], inside, r2

    flat, valid, inside, r2 = gather(shoebox.signal_offsets)
    core = (r2 < shoebox.signal_radius**2) & inside
    own = (r2 < shoebox.spot_radius**2) & inside & claimed[:, None]
    claims = np.zeros(image.size, np.int32)
    np.add.at(claims, flat[own], np.int32(1))  # 1 takes ten times as long
    contested = core & valid & (claims[flat] > own)
    signal = np.where(valid & core, image.reshape(-1)[flat], 0.0)
    usable = valid & core & ~contested

    flat, valid, _, r2 = gather(shoebox.ring_offsets)
    valid &= (r2 >= shoebox.ring_inner**2) & (r2 <= shoebox.ring_outer**2) & (claims[flat] == 0)
    ring = np.where(valid, image.reshape(-1)[flat], np.nan)
    return Boxes(centre, signal, usable, contested, ring)
