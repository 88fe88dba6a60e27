"""The moves of the search for a mode."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from bayes_refine.infer import differences
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
    moved, _ = search.step(state, too_long)
    found = search.look(moved, differences.fisher)
    assert found.slope.log_density >= here.slope.log_density
