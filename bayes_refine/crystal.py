"""Now :mod:`bayes_refine.geometry.crystal`; this name stays for scripts written before the move."""

from .geometry.crystal import *  # noqa: F403
