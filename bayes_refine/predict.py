"""Now :mod:`bayes_refine.geometry.predict`; this name stays for scripts written before the move."""

from .geometry.predict import *  # noqa: F403
