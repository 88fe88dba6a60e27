"""What images say of each other's intensities, against theory and against leaving images out."""

from __future__ import annotations

from dataclasses import replace

import gemmi
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_refine.fitting import crosswise_reference
from bayes_refine.geometry.miller import pack_hkl
from bayes_refine.geometry.symmetry import epsilon_centric
from bayes_refine.merging import pieces
from bayes_refine.merging.latent import Measured
from bayes_refine.physics import true_intensities
from bayes_refine.physics.reference import wilson_mean

CELL, GROUP, D_MIN, N_IMAGES = gemmi.UnitCell(40, 40, 60, 90, 90, 90), gemmi.SpaceGroup(92), 3.0, 12


@pytest.fixture(scope="module")
def before():
    return crosswise_reference.start(CELL, GROUP, D_MIN, N_IMAGES)


def measured(before, seed: int = 0, leave: int = -1, nu: float = np.inf) -> Measured:
    """J = g·I + noise of half of the reflections on each image; none of image ``leave``."""
    rng = np.random.default_rng(seed)
    ref, m = before.reference, len(before.reference.hkl)
    I = ref.intensity * rng.exponential(size=m)  # noqa: E741
    order = np.argsort(pack_hkl(ref.hkl))
    seen = rng.random((m, N_IMAGES)) < 0.5
    g = np.exp(rng.standard_normal((m, N_IMAGES)))
    sigma = 0.3 * ref.intensity.mean() * np.ones((m, N_IMAGES))
    J = g * I[:, None] + sigma * rng.standard_normal((m, N_IMAGES))
    seen[:, leave] &= leave < 0
    seen = seen[order]
    code, image = np.nonzero(seen)
    present, code = np.unique(code, return_inverse=True)
    rows = order[present][code], image
    columns = {"J": J[rows], "scale": g[rows], "variance": sigma[rows] ** 2}
    zero = np.zeros(len(code))
    return Measured(
        **{k: jnp.asarray(v) for k, v in columns.items()},
        per_photon=jnp.asarray(zero),
        fraction=jnp.asarray(zero),
        nu=nu,
        code=jnp.asarray(code),
        image=jnp.asarray(image),
        weight=jnp.asarray(zero + 1),
        hkl=jnp.asarray(ref.hkl[order][present]),
    )


def test_before_any_image_there_is_wilson(before):
    """Exponential, sd = mean; centric χ²₁, sd = √2·mean (Wilson 1949)."""
    hkl = before.reference.hkl
    centric = epsilon_centric(hkl, GROUP)[1]
    mean, sd = before.without(hkl, np.zeros(len(hkl), int))
    np.testing.assert_allclose(mean, before.reference.intensity, rtol=0.15)  # Σ(d) in few bins
    np.testing.assert_allclose((sd / mean)[~centric], 1, rtol=2e-3)
    np.testing.assert_allclose((sd / mean)[centric], np.sqrt(2), rtol=2e-3)


@pytest.mark.parametrize("nu, share", [(np.inf, 1.0), (30.0, 1.0), (3.0, 0.8)])
def test_an_image_sees_what_is_known_without_it(before, nu, share, monkeypatch):
    """As though it had never been there, to rounding: it has no say in the others' weights.

    At ν = 3 several maxima far apart are beyond 48 nodes, wherever they are (``place_nodes``).
    """
    own, wilson_of = 3, crosswise_reference.wilson_of
    # Σ(d) is of all images; held here
    monkeypatch.setattr(
        crosswise_reference, "wilson_of", lambda hkl, _: wilson_of(hkl, before.reference)
    )
    everything = crosswise_reference.renewed(before, measured(before, nu=nu))
    apart = crosswise_reference.renewed(before, measured(before, leave=own, nu=nu))
    hkl = before.reference.hkl
    image = np.full(len(hkl), own)
    for found, expected in zip(everything.without(hkl, image), apart.together(hkl), strict=True):
        assert np.quantile(np.abs(found / expected - 1), share) < 1e-6
    together = everything.together(hkl)[0]
    assert np.mean(np.abs(together / everything.without(hkl, image)[0] - 1) > 1e-3) > 0.3


def test_all_images_together_say_what_french_and_wilson_say(before, monkeypatch):
    wilson_of = crosswise_reference.wilson_of
    monkeypatch.setattr(
        crosswise_reference, "wilson_of", lambda hkl, _: wilson_of(hkl, before.reference)
    )
    d = measured(before)
    now = crosswise_reference.renewed(before, d)
    hkl, code = np.asarray(d.hkl), np.asarray(d.code)
    precision = np.bincount(code, d.scale**2 / d.variance)
    mean = np.bincount(code, d.scale * d.J / d.variance) / precision
    epsilon, centric = epsilon_centric(hkl, GROUP)
    S = wilson_mean(
        before.reference.d, before.reference.intensity / epsilon_of(before), spacing(hkl)
    )
    expected = true_intensities.wilson_posterior(
        mean, precision**-0.5, np.log(epsilon * S), centric
    )
    np.testing.assert_allclose(now.together(hkl)[0], expected.intensity, rtol=1e-5)
    np.testing.assert_allclose(now.together(hkl)[1], expected.intensity_sd, rtol=1e-5)


def test_a_weak_observation_does_not_make_outliers_of_the_strong(before):
    """5 S seen as 0.5 S where the curve is steep, and twice as it is.

    Errors are fractions of what is expected: of the intensity that the weak one says, the others
    are outliers of tens of σ; of the true one, all three are as they should be.
    """
    hkl = np.array([[3, 2, 7]], np.int32)
    S = crosswise_reference.wilson_of(hkl, before.reference)[0][0]
    ones = jnp.ones(3)
    d = Measured(
        J=S * jnp.array([0.5, 5.0, 5.0]),
        scale=ones,
        variance=(0.01 * S) ** 2 * ones,
        per_photon=0 * ones,
        fraction=jnp.array([0.5, 0.1, 0.1]),
        nu=3.0,
        code=jnp.zeros(3, int),
        image=jnp.arange(3),
        weight=ones,
        hkl=jnp.asarray(hkl),
    )
    mean, sd = crosswise_reference.renewed(before, d).together(hkl)
    assert abs(mean[0] - 5 * S) < 2 * sd[0] < S


def test_of_what_no_other_image_has_seen_there_is_wilson(before):
    d = measured(before)
    mine = np.asarray(d.image) == 0
    code, first = np.unique(np.asarray(d.code)[mine], return_inverse=True)
    names = pieces.COLUMNS
    alone = replace(
        d, **{k: getattr(d, k)[mine] for k in names}, code=jnp.asarray(first), hkl=d.hkl[code]
    )
    now = crosswise_reference.renewed(before, alone)
    hkl, image = np.asarray(alone.hkl), np.zeros(len(code), int)
    S, centric = crosswise_reference.wilson_of(hkl, now.reference)
    mean, sd = now.without(hkl, image)
    np.testing.assert_allclose(mean / S, 1, atol=0.3)  # Σ(d) as it was
    np.testing.assert_allclose((sd / mean)[~centric], 1, rtol=1e-3)
    np.testing.assert_allclose((sd / mean)[centric], np.sqrt(2), rtol=1e-3)
    assert np.median(now.together(hkl)[1] / now.together(hkl)[0]) < 0.7


def epsilon_of(now) -> np.ndarray:
    return epsilon_centric(now.reference.hkl, GROUP)[0]


def spacing(hkl) -> np.ndarray:
    return CELL.calculate_d_array(np.ascontiguousarray(hkl, np.int32))


def test_nothing_is_known_of_an_absent_reflection(before):
    """4₁ along c: (0, 0, 1) is absent."""
    mean, sd = before.together(np.array([[0, 0, 1], [0, 0, 4]]))
    assert mean[0] == sd[0] == 0 and mean[1] > 0
