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
from .density import IMAGE, Model, Site, evaluate, observed_sites
from .importance import Nested, nested_draws
from .laplace import Fit, laplace_draws, predictive_draws
from .loo import Compared, Loo, compare, leave_out, leave_out_images, log_likelihoods
from .marginal import marginal_fit
from .newton import map_fit
from .nuts import Chains, nuts_fit
from .pixelwise import pixel_fit
from .svi import GuideFit, svi_fit

__all__ = [
    "IMAGE",
    "Batches",
    "Chains",
    "Compared",
    "Fit",
    "GuideFit",
    "Loo",
    "Model",
    "Nested",
    "Noise",
    "Site",
    "compare",
    "evaluate",
    "expected_variance",
    "laplace_draws",
    "leave_out",
    "leave_out_images",
    "log_likelihoods",
    "map_fit",
    "marginal_fit",
    "moving_variance",
    "nested_draws",
    "nuts_fit",
    "observed_sites",
    "observed_variance",
    "pixel_fit",
    "poisson",
    "predictive_draws",
    "student_t",
    "svi_fit",
]
