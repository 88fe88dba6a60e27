"""Fit a model to its observations.

Any NumPyro program can be fitted whose latent sites are either in the plate ``image`` or in no
plate.  Nothing here knows crystallography, and NumPyro appears only here, in
``per_pixel`` and in ``models/``.  :mod:`curvature` explains *block Hessian* and *coupling*.
"""

from .batches import Batches, finite_rows
from .density import IMAGE, Model, Site, evaluate, observed_sites, sites_of
from .importance import Nested, nested_draws
from .integrated_out import Held, held_integrated, held_numbers, width_of_held
from .laplace import Fit, laplace_draws, predictive_draws
from .loo import Loo, ModelComparison, compare, leave_out, leave_out_images, log_likelihoods
from .many_images import mode_of_many, near_mode_of_many
from .marginal import marginal_fit
from .newton import map_fit
from .nuts import Chains, nuts_fit
from .programs import locations
from .sites import StudentT, log_normal, normal
from .svi import Ascent, GuideFit, svi_fit

__all__ = [
    "IMAGE",
    "Ascent",
    "Batches",
    "Chains",
    "Fit",
    "GuideFit",
    "Held",
    "Loo",
    "Model",
    "ModelComparison",
    "Nested",
    "Site",
    "StudentT",
    "compare",
    "evaluate",
    "finite_rows",
    "held_integrated",
    "held_numbers",
    "laplace_draws",
    "leave_out",
    "leave_out_images",
    "locations",
    "log_likelihoods",
    "log_normal",
    "map_fit",
    "marginal_fit",
    "mode_of_many",
    "near_mode_of_many",
    "nested_draws",
    "normal",
    "nuts_fit",
    "observed_sites",
    "predictive_draws",
    "sites_of",
    "svi_fit",
    "width_of_held",
]
