"""The moves of the search for a mode."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from bayes_refine.infer import differences, map_fit, newton
from bayes_refine.infer.search import Search


def one_level(y):
    level = numpyro.sample("level", dist.Normal(0.0, 0.01))
    with numpyro.plate("image", len(y), dim=-2):
        of_image = numpyro.sample("of_image", dist.Normal(level, 1.0))
    with numpyro.plate("image", len(y), dim=-2), numpyro.plate("reflection", 1, dim=-1):
        numpyro.sample("y", dist.Normal(of_image, 1.0), obs=y)


def test_what_images_gain_does_not_outweigh_a_prior_that_loses_more():
    """A shared step that is ten times too long: each image's ln p rises by a little, the prior's
    falls by much more."""
    search = Search(one_level, (jnp.full((2, 1), 5.0),), {})
    state = search.start
    here = search.look(state, differences.fisher)
    there = np.sign(here.steps.shared) * search.reach[1]
    too_long = here._replace(steps=here.steps._replace(alone=0 * here.steps.alone, shared=there))
    tried, _ = search._tried(state, -too_long.steps.pull @ there, there)
    assert (tried.image > here.slope.image).all() and tried.log_density < here.slope.log_density
    moved = search.step(state, too_long).state
    found = search.look(moved, differences.fisher)
    assert found.slope.log_density >= here.slope.log_density


def with_a_crease(y):
    """The first image has no place where its slope vanishes: ln p falls from a crease."""
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    with numpyro.plate("image", len(y), dim=-2):
        of_image = numpyro.sample("of_image", dist.Normal(level, 1.0))
        pull = jnp.where(jnp.arange(len(y))[:, None] == 0, 1e3, 0.0)
        numpyro.factor("crease", -pull * jnp.abs(of_image - 0.3))
        with numpyro.plate("reflection", 1, dim=-1):
            numpyro.sample("y", dist.Normal(of_image, 1.0), obs=y)


def test_an_image_in_two_hundred_does_not_hold_up_the_others():
    y = jnp.asarray(np.random.default_rng(0).normal(size=(200, 1)))
    found = map_fit(with_a_crease, y)
    assert newton.PATIENCE <= found.iterations < 60
    assert found.status[0] != "converged" and set(found.status[1:]) == {"converged"}
    # the mode of the others given the first, which is on its crease
    of_image = found.image[:, 0]
    assert abs(of_image[0] - 0.3) < 0.02
    assert abs(found.shared[0] - of_image.sum() / 201) < 0.1 * found.shared_covariance[0, 0] ** 0.5


def closer_than_expected(y):
    """Scatter of a tenth of the scale: ln p curves more by a factor (ν + 3)/ν than is expected."""
    level = numpyro.sample("level", dist.Normal(0.0, 10.0))
    with numpyro.plate("image", len(y), dim=-2):
        numpyro.sample("of_image", dist.Normal(0.0, 1.0))
        with numpyro.plate("reflection", y.shape[1], dim=-1):
            numpyro.sample("y", dist.StudentT(4.0, level, 1.0), obs=y)


def test_steps_teach_the_curvature_of_shared_unknowns():
    """By the expected curvature each step would go three quarters too far."""
    y = jnp.asarray(np.random.default_rng(0).normal(3.0, 0.1, size=(50, 4)))
    found = map_fit(closer_than_expected, y, exact=False)
    assert found.iterations < 8
    assert abs(found.shared[0] - y.mean()) < 0.1 * y.std()
