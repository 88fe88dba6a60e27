"""The still model with elliptical spots: R1 is a 2×2 tensor in the detector's axes.

R1 of :mod:`still` is the geometric mean of the two widths.  Two more unknowns of each image stretch
the spot along the detector's fast axis and along its diagonal.
"""

from functools import partial

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from bayes_refine import load_model


def elliptical_spot(obs, R1, priors):
    """(M11, M22, M12), Å⁻², of a spot exp(−εᵀT⁻¹ε), T = R1²·exp of a traceless symmetric matrix."""
    plus = numpyro.sample("stretch_fast", dist.Normal(0.0, priors.stretch_sd))
    cross = numpyro.sample("stretch_diagonal", dist.Normal(0.0, priors.stretch_sd))
    size = jnp.sqrt(plus**2 + cross**2 + 1e-12)
    along, rate = jnp.cosh(size), jnp.sinh(size) / size
    cos, sin = obs.azimuth[:, 0], obs.azimuth[:, 1]  # of e1 from the fast axis
    cos2, sin2 = cos**2 - sin**2, 2 * cos * sin
    radial, mixed = plus * cos2 + cross * sin2, cross * cos2 - plus * sin2
    half = R1**2 / 2
    return half * (along + rate * radial), half * (along - rate * radial), half * rate * mixed


model = partial(load_model("still"), spot_shape=elliptical_spot, terms=6)
