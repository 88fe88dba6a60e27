"""The latent model with a reference: double Wilson instead of Wilson.

The reference's amplitude shares a part r(d) of each true one; r falls with resolution as a
coordinate error makes it fall (Read 1990), r = r0·exp(−D/4d²).
"""

from functools import partial

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from bayes_refine import load_model
from bayes_refine.physics import true_intensities


def double_wilson(F, log_mean, obs, priors):
    """ln π(F) given the reference, r fitted; where ``informed`` is false, r = 0: the free set."""
    r0 = numpyro.sample("correlation", dist.Beta(priors.correlation_a, priors.correlation_b))
    D = numpyro.sample("correlation_B", dist.HalfNormal(priors.correlation_B_sd))
    r = r0 * jnp.exp(-0.25 * D * obs.norm_q_unique**2) * obs.informed
    numpyro.deterministic("correlation_unique", r)
    return true_intensities.log_double_wilson(F, log_mean, obs.centric, obs.E_reference, r)


model = partial(load_model("latent"), amplitude_prior=double_wilson)
