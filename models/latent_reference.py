"""The latent model with a reference: double Wilson instead of Wilson.

Given F_ref, the complex F of a reflection has mean α·F_ref and variance ε·β(d) (Lunin & Skovoroda
1995; Read 1990 with α = σ_A·√(Σ/Σ_ref) and β = Σ·(1 − σ_A²)).  The scale α is smooth because
physics is: k·exp(−B/4d²), anisotropic, with bulk solvent (docs/theory.md, The scale of a
reference).  β is as large as the reference turns out to be wrong.  The free set has Wilson's prior
with Σ = α²·Σ_ref + β.
"""

from functools import partial

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from bayes_refine import load_model


def double_wilson(obs, priors):
    """The prior of F given the reference's amplitudes, with its scale α and its error β unknown."""

    def normal(name, mean, sd, shape=()):
        mean = jnp.broadcast_to(mean, shape)
        return numpyro.sample(name, dist.Normal(mean, sd).to_event(len(shape)))

    numbers = {
        "log_k": normal("reference_log_k", obs.reference.log_k0, priors.reference_log_k_sd),
        "B": normal("reference_B", obs.reference.B0, priors.reference_B_sd),
        "direction": normal("reference_direction", 0.0, priors.reference_direction_sd, (5,)),
        "anisotropy": normal("reference_anisotropy", 0.0, priors.reference_anisotropy_sd, (5,)),
        "solvent": normal("solvent", 0.0, priors.solvent_sd),
        "log_solvent_B": normal(
            "log_solvent_B", jnp.log(priors.solvent_B), priors.log_solvent_B_sd
        ),
    }
    knots = obs.log_Sigma0.shape
    log_beta = normal("log_beta", obs.log_Sigma0 + priors.log_beta_mean, priors.log_beta_sd, knots)
    departure = normal("log_departure", 0.0, obs.departure_sd, knots)
    prior, _ = obs.reference.double_wilson(
        numbers,
        obs.knot_weight @ log_beta,
        obs.knot_weight @ departure,
        obs.log_epsilon,
        obs.centric,
    )
    numpyro.deterministic("centre", prior.centre)
    numpyro.deterministic("log_variance", prior.log_variance)
    return prior


model = partial(load_model("latent"), amplitude_prior=double_wilson)
