"""Where reflections are and when they were taken: carried only where a model asks for it."""

from __future__ import annotations

import numpy as np
import pytest

import bayes_refine as br
from bayes_refine.fitting.problem import prepare_run
from bayes_refine.fitting.statistics_of_images import geometry_at, predictions_of
from bayes_refine.physics import Metadata
from bayes_refine.simulation.files import simulate_run
from bayes_refine.util.store import Store

SIMULATION = br.Simulation(n_images=3, seed=2, n_pixels=64, d_min=8.0, n_panels=4, distance_mm=40.0)


@pytest.fixture(scope="module")
def stills(tmp_path_factory):
    return br.read_experiments(simulate_run(SIMULATION, tmp_path_factory.mktemp("run"))).stills


def observed(stills, metadata):
    settings = br.Settings(d_min=SIMULATION.d_min, metadata=metadata)
    run = prepare_run(stills, None, None, br.load_model("still"), br.Priors(), settings)
    images = slice(1, 3)
    predictions = predictions_of(run, {}, br.Priors(), 2.4, images)
    return (*geometry_at(run, {}, predictions, images, 32, 1e-3), predictions)


def test_plain_observations_carry_no_metadata(stills):
    assert observed(stills, False)[1].metadata is None


def test_metadata_are_where_the_ray_meets_the_detector(stills):
    """x = z·s_x/s_z on a flat detector normal to the beam, on each of its four panels."""
    where, obs, predictions = observed(stills, True)
    assert isinstance(obs.metadata, Metadata)
    s_hat = where.flat(obs.s_hat)
    ray = s_hat[:, :2] / s_hat[:, 2:] * stills[0].detector.origin_mm[0, 2]
    found = np.stack([where.flat(obs.metadata.x_mm), where.flat(obs.metadata.y_mm)], axis=1)
    np.testing.assert_allclose(found, ray, atol=1e-6)
    np.testing.assert_array_equal(where.flat(obs.metadata.panel), predictions.panel)
    np.testing.assert_array_equal(where.flat(obs.metadata.x_px), predictions.xy_px[:, 0])
    np.testing.assert_allclose(obs.metadata.order[:2, 0], [1.5 / 3, 2.5 / 3])
    assert len(obs.metadata.order) == len(obs.fit) == 3  # a batch has room for all images


def test_metadata_are_read_as_they_were_measured(stills):
    store: Store = Store(1)
    obs = observed(stills, True)[1]
    store.put(0, obs)
    for name, value in vars(obs.metadata).items():
        np.testing.assert_array_equal(getattr(store[0].metadata, name), value)
