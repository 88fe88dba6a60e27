"""From a model and its observations to a fit.

Any NumPyro program can be fitted whose latent sites are either in the plate ``image`` or in no
plate.  NumPyro appears here and in ``models/`` alone.
"""

from .batches import Batches
from .density import IMAGE, Model, Site, evaluate
from .laplace import Fit, laplace_draws, predictive_draws
from .marginal import marginal_fit
from .newton import map_fit

__all__ = [
    "IMAGE",
    "Batches",
    "Fit",
    "Model",
    "Site",
    "evaluate",
    "laplace_draws",
    "map_fit",
    "marginal_fit",
    "predictive_draws",
]
