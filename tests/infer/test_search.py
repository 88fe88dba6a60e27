"""The moves of the search for a mode."""

from __future__ import annotations

import cloudpickle
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from bayes_refine.infer import Batches, differences, map_fit
from bayes_refine.infer.executor import InProcess
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
    assert found.iterations < 12
    assert found.status[0] != "converged" and set(found.status[1:]) == {"converged"}
    # the mode of the others given the first, which is on its crease
    of_image = found.image[:, 0]
    assert abs(of_image[0] - 0.3) < 0.02
    assert abs(found.shared[0] - of_image.sum() / 201) < 0.1 * found.shared_covariance[0, 0] ** 0.5


class Counting(InProcess):
    """Counts the batches that were worked on; sends its work as other processes would get it."""

    def __init__(self) -> None:
        self.together, self.alone = 0, 0

    def map(self, work, items, finished=None, lost=None):
        alone = isinstance(items[0][0], Search)
        self.alone += len(items) * alone
        self.together += len(items) * (not alone)
        if alone:
            work, items = cloudpickle.loads(cloudpickle.dumps((work, items)))
        return super().map(work, items, finished, lost)


def narrow(y):
    """Steps are no longer than a prior sd: from y = 12 the mode is a dozen steps away."""
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    with numpyro.plate("image", len(y), dim=-2):
        of_image = numpyro.sample("of_image", dist.Normal(level, 1.0))
        with numpyro.plate("reflection", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(of_image, 0.05), obs=y)


def test_an_image_that_is_far_goes_the_rest_of_its_way_alone():
    """The nine other batches are looked at a few times more than if it were not there."""
    y = np.random.default_rng(0).normal(size=(200, 1))
    worked = []
    for of_first in (0.3, 12.0):
        y[0] = of_first
        executor = Counting()
        data = Batches(list(y.reshape(10, 20, 1)), 20, 200, executor)
        found = map_fit(narrow, data, exact=False)
        assert set(found.status) == {"converged"}
        total = (1 + 0.05**2) * np.eye(200) + 1.0
        expected = np.linalg.solve(total, y[:, 0]).sum()
        assert abs(found.shared[0] - expected) < 0.02 * found.shared_covariance[0, 0] ** 0.5
        worked.append(executor)
    near, far = worked
    assert far.together <= near.together + 80
    assert near.alone == 0 and far.alone == 1


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
