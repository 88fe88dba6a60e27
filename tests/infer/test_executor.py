"""Work by threads: the same results, in the same order, whoever does it."""

from __future__ import annotations

import threading

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from bayes_refine.infer import differences
from bayes_refine.infer.batches import Batches
from bayes_refine.infer.executor import IN_PROCESS, Threads, tree_sum
from bayes_refine.infer.search import Search
from bayes_refine.util.errors import InputError


def test_items_are_worked_on_beside_each_other_and_come_in_order():
    together, done = threading.Barrier(2, timeout=30), []

    def work(k):
        if k:  # the first one is alone
            together.wait()
        return k * k

    with Threads(2) as executor:
        assert executor.map(work, range(7), done.append) == [k * k for k in range(7)]
        assert executor.map(work, []) == []
    assert done == [1, 2, 3, 4, 5, 6, 7]


def test_sums_are_those_of_one_thread_to_the_last_bit():
    x = np.random.default_rng(0).standard_normal(13) * 10.0 ** np.arange(13)
    with Threads(3) as executor:
        total, own = executor.reduce(lambda k: (x[k], k), range(13))
    assert total == tree_sum(list(x)) and own == list(range(13))


def test_what_an_item_raises_is_raised():
    def work(k):
        if k == 3:
            raise InputError("the fourth")
        return k

    with Threads(2) as executor, pytest.raises(InputError, match="the fourth"):
        executor.map(work, range(6))


def curve(y, _):
    width = numpyro.sample("width", dist.Normal(0.0, 1.0))
    with numpyro.plate("image", len(y), dim=-2):
        level = numpyro.sample("level", dist.Normal(0.0, 3.0))
        with numpyro.plate("reflection", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(level, jax.numpy.exp(width)), obs=y)


def test_slope_and_curvature_are_the_same_to_the_last_bit():
    parts = list(np.random.default_rng(1).standard_normal((6, 4, 5)))
    with Threads(3) as executor:
        of_both = []
        for place in (IN_PROCESS, executor):
            search = Search(curve, (Batches(parts, 4, 24, place), 0.0), {})
            look = search.look(search.start, differences.fisher)
            of_both.append([look.slope, search.block_hessian(search.start, differences.exact)])
    for a, b in zip(*map(jax.tree.leaves, of_both), strict=True):
        np.testing.assert_array_equal(a, b)
