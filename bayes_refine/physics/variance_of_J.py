"""The variance of a spot's photons, in one place for all that need it."""

from __future__ import annotations


def variance_of_J(J, background, signal, relative=0.0):
    """v₀ + v₁·J + v₂·J²: background, counting and model error of J expected photons.

    For NumPy and JAX arrays.  Of an intensity on another scale than photons v₁ is the variance of
    counting a unit of it, and 0 where it is not known.

    Args:
        J: expected photons. background: v₀, photons². signal: v₁, photons a photon.
        relative: v₂, a fraction squared.
    """
    return background + signal * J + relative * J**2
