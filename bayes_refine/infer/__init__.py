"""From a model and its observations to a fit.

Any NumPyro program can be fitted whose latent sites are either in the plate ``image`` or in no
plate.  NumPyro appears here and in ``models/`` alone.
"""

from .batches import Batches
from .counting import (
    Noise,
    expected_variance,
    moving_variance,
    observed_variance,
    poisson,
    student_t,
)
from .density import IMAGE, Model, Site, evaluate
from .laplace import Fit, laplace_draws, predictive_draws
from .levenberg import pixel_fit
from .newton import map_fit

__all__ = [
    "IMAGE",
    "Batches",
    "Fit",
    "Model",
    "Noise",
    "Site",
    "evaluate",
    "expected_variance",
    "laplace_draws",
    "map_fit",
    "moving_variance",
    "observed_variance",
    "pixel_fit",
    "poisson",
    "predictive_draws",
    "student_t",
]
