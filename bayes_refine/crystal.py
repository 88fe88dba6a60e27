"""The old name of :mod:`bayes_refine.geometry.crystal`, kept for scripts that use it."""

from .geometry.crystal import *  # noqa: F403
