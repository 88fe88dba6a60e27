"""What is not in the physics is learned within its band, and where nothing is, nothing is lost.

Statistics are drawn from the model with a piece of its own, so that the truth is known exactly.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

import bayes_refine as br
from bayes_refine import infer, physics
from bayes_refine.physics.contract import check_unknowns

pytest.importorskip("equinox")
pytest.importorskip("optax")
from bayes_refine.learned import training
from bayes_refine.learned.component import Component, Evidence, Family
from bayes_refine.learned.curve import Curve
from bayes_refine.learned.training import Learned, Material, Training, learn
from bayes_refine.simulation.truth import Simulation, square_detector
from bayes_refine.util.status import Kind, Status

IMAGES = 12
DETECTOR = square_detector(Simulation(), 110.0, np.array([240.0, 240.0]))


def log_tail(x):
    """30 % of a Lorentzian below a Gaussian."""
    return jnp.log(0.7 * jnp.exp(-(x**2)) + 0.3 / (1 + x**2))


def shadow(obs, scale):
    """A bar that absorbs half beyond x = 8 mm, and a slope along y."""
    return scale * jnp.exp(log_shadow(obs.metadata))


def log_shadow(where):
    return -0.8 / (1 + jnp.exp(-(where.x_mm - 8) / 2)) - 0.01 * where.y_mm


def test_few_images_are_refused(material):
    with pytest.raises(br.InputError, match="2 images could be fitted, and a component needs 3"):
        learn(Material(*material(2)), Family.partiality)


def test_a_correction_needs_to_know_where_reflections_are(material):
    model, obs, priors, values = material(6)
    without = Material(model, replace(obs, metadata=None), priors, values)
    with pytest.raises(br.InputError, match="metadata=True"):
        learn(without, Family.correction)


def test_only_usable_images_train(material, monkeypatch):
    model, obs, priors, values = material(8)
    status = np.array([Status(Kind.CONVERGED)] * 8)
    status[[2, 5]] = Status(Kind.NO_SIGNAL, "none")
    sites = [SimpleNamespace(name=k, per_image=np.ndim(v) > 1) for k, v in values.items()]
    run = SimpleNamespace(
        observations=obs,
        fit=SimpleNamespace(sites=sites, values=lambda: values),
        status=status,
        priors=priors,
        problem=SimpleNamespace(model=model, settings=br.Settings(d_min=3.2)),
        indexed=[SimpleNamespace(beam=SimpleNamespace(wavelength=1.0), detector=DETECTOR)] * 8,
    )
    given = []
    nothing = Learned(None, (), Evidence((0.0,) * 6, 1))
    monkeypatch.setattr(training, "learn", lambda *args: given.append(args) or nothing)
    found = training.train_component(run, Family.correction)
    used = given[0][0].observations
    kept = [0, 1, 3, 4, 6, 7]
    np.testing.assert_array_equal(used.norm_q, obs.norm_q[kept])
    np.testing.assert_array_equal(used.metadata.order, obs.metadata.order[kept])
    np.testing.assert_array_equal(given[0][0].values["log_G"], values["log_G"][kept])
    assert given[0][0].values["log_R0"] == values["log_R0"]
    assert found.origin.n_images == 6 and found.origin.setup.wavelength == 1.0
    assert found.origin.n_reflections == obs.fit[kept].sum()


@pytest.mark.parametrize("own", [0.0, 0.5])
def test_a_curve_of_each_image_has_unknowns_of_the_image(material, own):
    model, obs, priors, _ = material(3)
    made = partial(model, **Curve.start(jax.random.key(0), own).pieces())
    found = {site.name: site for site in infer.sites_of(made, (obs, priors))}
    check_unknowns(found.values())
    assert ("curve_shape" in found) == (own > 0)
    if own:
        assert found["curve_shape"].per_image and found["curve_shape"].size == 2


@pytest.mark.slow
def test_a_tail_of_the_partiality_is_found(material):
    tail = physics.Partiality(log_tail, lambda spot: 0 * spot.R0_eff)
    found = learn(Material(*material(IMAGES, 1, partiality=tail)), Family.partiality)
    assert found.evidence.recommended
    assert found.evidence.total > 10 * found.evidence.se
    x = jnp.linspace(-2.5, 2.5, 11)
    component = Component(Family.partiality, found.module, found.members, None)
    value, sd = component.band(lambda m: m.shape(x))
    width = brentq(lambda z: float(log_tail(jnp.asarray(z))) + 1, 0.1, 5)
    off = np.abs(value - np.asarray(log_tail(x * width)))
    assert np.all(off < 3 * sd + 0.05)  # three Gaussians are no Lorentzian
    assert np.all(off < 0.15)
    assert np.abs(value - np.asarray(-(x**2))).max() > 1


@pytest.mark.slow
def test_a_shadow_is_found(material):
    given = Material(*material(IMAGES, 1, correction=shadow))
    found = learn(given, Family.correction)
    assert found.evidence.total > 5 * found.evidence.se
    obs = given.observations
    where, fit = obs.metadata, obs.fit
    component = Component(Family.correction, found.module, found.members, None)
    value, sd = component.band(
        lambda m: m.log_factor(where.x_mm, where.y_mm, obs.norm_q, where.order)
    )
    truth = np.asarray(log_shadow(where))[fit]
    quarter = obs.norm_q[fit] ** 2 / 4
    truth = truth - np.polyval(np.polyfit(quarter, truth, 1), quarter)
    off = value[fit] - truth
    assert off.std() < 0.35 * truth.std()
    assert np.sqrt(np.mean((off / sd[fit]) ** 2)) < 2


@pytest.mark.slow
@pytest.mark.parametrize("family", [Family.partiality, Family.correction])
def test_where_the_physics_is_right_nothing_is_lost(material, family):
    found = learn(Material(*material(IMAGES, 2)), family, Training(epochs=60))
    assert found.evidence.total < 3 * found.evidence.se + 1
    assert found.evidence.total > -3 * found.evidence.se - IMAGES  # a nat an image at most
