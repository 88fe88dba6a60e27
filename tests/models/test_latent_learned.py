"""A curve learned with the scales of a merge: the Gaussian among its values, a Lorentzian found."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_refine import infer, load_model, physics
from bayes_refine.merging import scaling
from bayes_refine.merging.observations import prepare
from bayes_refine.simulation.unmerged import UnmergedSimulation, simulate_unmerged

pytest.importorskip("equinox")
from bayes_refine.learned.curve import Curve


def test_it_is_the_latent_model_where_the_curve_is_gaussian():
    obs = prepare(simulate_unmerged(UnmergedSimulation(n_images=6, each=30)).data)
    priors = scaling.ScalingPriors()
    gaussian = np.array([-30.0, -30, 0, 0, 0, 0, 0, 0])
    values = {"log_G": np.asarray(obs.log_G0), "log_Sigma": np.asarray(obs.log_Sigma0)}
    one = infer.evaluate(load_model("latent_learned"), values | {"curve": gaussian}, obs, priors)
    two = partial(load_model("latent"), partiality=physics.gaussian)
    two = infer.evaluate(two, values, obs, priors)
    np.testing.assert_allclose(one["log_integrand"], two["log_integrand"], rtol=1e-9)


@pytest.mark.slow
def test_the_lorentzian_of_a_simulated_run_is_found_within_its_band():
    simulated = simulate_unmerged(UnmergedSimulation(n_images=150, each=200, n_unique=800))
    found = scaling.fit_scales(prepare(simulated.data), load_model("latent_learned"))
    mean = found.shared["curve"][0]
    x = jnp.linspace(-3.0, 3.0, 13)
    value = np.asarray(Curve.of(jnp.asarray(mean)).shape(x))
    draws = infer.laplace_draws(found.fit, 100, rng=np.random.default_rng(0))["curve"]
    each = jax.vmap(lambda numbers: Curve.of(numbers).shape(x))(jnp.asarray(draws))
    band = np.asarray(jnp.sqrt(jnp.mean((each - value) ** 2, 0)))
    truth = -np.log1p((np.e - 1) * np.asarray(x) ** 2)
    assert np.all(np.abs(value - truth) < 3 * band + 0.1)  # three Gaussians are no Lorentzian
    assert np.abs(value + np.asarray(x) ** 2).max() > 3  # nor is a Lorentzian a Gaussian
