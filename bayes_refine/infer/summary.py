"""Parabolas in the shared unknowns that stand for images which were fitted earlier.

With an image's own unknowns integrated out, −ln p of its data is a function of the shared unknowns
alone.  Near the values at which the image was fitted this function is a parabola.  Later images add
their own parabolas, and nothing of the earlier images has to be computed anew.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Summary(NamedTuple):
    """−ln p(φ) ≈ gᵀ(φ − φ₀) + ½(φ − φ₀)ᵀ H (φ − φ₀) of some images, up to a constant.

    The arrays may have a first axis with one parabola for each batch of images.

    Attributes:
        at: (..., s) φ₀, unconstrained. slope: (..., s) g. curvature: (..., s, s) H.
    """

    at: np.ndarray
    slope: np.ndarray
    curvature: np.ndarray

    def slope_at(self, phi: np.ndarray) -> np.ndarray:
        """(..., s) slope of −ln p at φ (s,)."""
        return self.slope + np.einsum("...st,...t->...s", self.curvature, phi - self.at)

    def value_at(self, phi: np.ndarray) -> float:
        """−ln p at φ (s,) less −ln p at φ₀, of a summary without the axis of batches."""
        d = phi - self.at
        return float(self.slope @ d + 0.5 * d @ self.curvature @ d)

    def some(self, which: np.ndarray) -> Summary:
        """The summaries of some batches."""
        return Summary(*(x[which] for x in self))

    def total(self, phi: np.ndarray) -> Summary:
        """The sum over batches, about φ (s,)."""
        return Summary(phi, self.slope_at(phi).sum(0), self.curvature.sum(0))

    @classmethod
    def joined(cls, parts: list[Summary]) -> Summary:
        """One summary with the batches of several."""
        return cls(*(np.concatenate(x) for x in zip(*parts, strict=True)))
