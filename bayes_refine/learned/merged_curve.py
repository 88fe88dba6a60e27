"""A partiality curve that a merge learns together with its scales.

A merge couples all images through the true intensities, so that images cannot be profiled out one
by one as ``training`` does.  But a :class:`~.curve.Curve` has only eight numbers: they are unknowns
of the run like its widths.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ..infer import Model, normal
from .curve import Curve


@lru_cache(maxsize=8)
def with_learned_curve(model: Model) -> Model:
    """A model of a merge whose curve has eight unknowns, the site ``curve``, each N(0, 1) a priori.

        found = fit_scales(obs, with_learned_curve(load_model("latent")))
        mean, sd = found.shared["curve"]  # Curve.of(mean) is the curve

    Args:
        model: ``latent`` or ``latent_reference``, which take ``partiality``.
    """

    def learning(obs: Any, priors: Any) -> None:
        curve = Curve.of(normal("curve", 0.0, 1.0, Curve.SIZE))
        model(obs, priors, **curve.pieces())

    return learning
