"""The old name of :mod:`bayes_refine.geometry.predict`, kept for scripts that use it."""

from .geometry.predict import *  # noqa: F403
