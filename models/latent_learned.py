"""The model ``latent`` with a partiality curve whose eight numbers are learned with all else.

The curve is that of :mod:`bayes_refine.learned.curve`; its numbers are unknowns of the run, the
site ``curve``, each N(0, 1) a priori.
"""

from bayes_refine import load_model
from bayes_refine.infer import normal
from bayes_refine.learned.curve import Curve
from bayes_refine.merging.observations import IntegratedObservations, ScalingPriors

_latent = load_model("latent")


def model(obs: IntegratedObservations, priors: ScalingPriors) -> None:
    """Joint density of the unknowns, among them the curve, and of integrated observations."""
    curve = Curve.of(normal("curve", 0.0, 1.0, Curve.SIZE))
    _latent(obs, priors, **curve.pieces())
