"""A reference on the data's scale: right ones move nothing, wrong ones are believed no more than
they deserve, on observations drawn from the likelihood itself."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import gemmi
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_refine.geometry.miller import resolution
from bayes_refine.geometry.symmetry import absent, asu_map, epsilon_centric
from bayes_refine.merging.amplitude_prior import fit_prior
from bayes_refine.merging.latent import Measured, intensity_posteriors
from bayes_refine.merging.reference_scale import allowed_tensors, amplitudes_of
from bayes_refine.physics.reference import Reference

CELL, GROUP = gemmi.UnitCell(79, 79, 38, 90, 90, 90), gemmi.SpaceGroup("P 43 21 2")
D_MIN, EACH, FRACTION = 2.4, 4, 0.08
SHELLS = 20


@lru_cache
def crystal():
    """True F with the bends that Σ(d) of proteins has, its phase, and ε, centric, d."""
    rng = np.random.default_rng(0)
    hkl = np.asarray(gemmi.make_miller_array(CELL, GROUP, D_MIN), np.int32)
    hkl = asu_map(hkl[~absent(hkl, GROUP)], GROUP)[0]
    hkl = hkl[np.lexsort(hkl.T[::-1])]
    d = resolution(hkl, CELL)
    epsilon, centric = epsilon_centric(hkl, GROUP)
    bends = 0.5 * np.exp(-(((d**-2 - 0.05) / 0.02) ** 2)) - 0.5 * np.exp(-(((d - 6.0) / 1.5) ** 2))
    S = epsilon * 400 * np.exp(-10 / d**2 + bends)
    F = _complex(rng, centric) * np.sqrt(S)
    return hkl, d, epsilon, centric, S, F


def _complex(rng, centric):
    z = rng.normal(size=(2, len(centric)))
    return np.where(centric, z[0], (z[0] + 1j * z[1]) / np.sqrt(2))


@lru_cache
def observed():
    """``EACH`` observations of each reflection at scales from 0.1 to 1, and the intensities."""
    hkl, _, _, _, _, F = crystal()
    rng = np.random.default_rng(1)
    I, n = np.abs(F) ** 2, EACH * len(hkl)  # noqa: E741
    code, g = np.repeat(np.arange(len(hkl)), EACH), rng.uniform(0.1, 1, n)
    measured = Measured(
        J=jnp.zeros(n),
        scale=jnp.asarray(g),
        variance=jnp.full(n, 15.0**2),
        per_photon=jnp.ones(n),
        fraction=jnp.full(n, FRACTION),
        nu=8.0,
        code=jnp.asarray(code),
        image=jnp.asarray(rng.integers(0, 50, n)),
        weight=jnp.ones(n),
        hkl=jnp.asarray(hkl),
    )
    J = g * I[code] + np.sqrt(measured.variance_at(I[code])) * rng.standard_t(8.0, n)
    return replace(measured, J=jnp.asarray(J)), I


def posterior_with(amplitude):
    """Posterior of I, its sd, and where the reference of ``amplitude`` (m,) informed."""
    hkl, d, epsilon, centric, _, _ = crystal()
    measured, _ = observed()
    reference = Reference(hkl, amplitude**2, CELL, GROUP, "test")
    amplitudes = amplitudes_of(reference, hkl, d, CELL, 0.05, 0)
    prior = fit_prior(measured, d, epsilon, centric, amplitudes)
    found = intensity_posteriors(measured, prior).posterior
    return found.intensity, found.intensity_sd, np.asarray(amplitudes.informed)


@lru_cache
def wilson_error():
    """|I − truth| (m,) without a reference."""
    _, d, epsilon, centric, _, _ = crystal()
    measured, I = observed()  # noqa: E741
    prior = fit_prior(measured, d, epsilon, centric)
    return np.abs(intensity_posteriors(measured, prior).posterior.intensity - I)


def smooth_changes():
    """A factor of F that differs between a reference and data, each part by its own cause."""
    hkl, d = crystal()[:2]
    s = hkl @ np.array(CELL.frac.mat)
    scale_and_B = 0.01 * np.exp(-20 / (4 * d**2))
    anisotropic_B = np.exp(-6 * s[:, 2] ** 2 / 4)
    along_c = np.exp(0.15 * (s[:, 2] * d) ** 2)
    no_bulk_solvent = 1 / (1 - 0.7 * np.exp(-170 / (4 * d**2)))
    return scale_and_B * anisotropic_B * along_c * no_bulk_solvent


@pytest.mark.parametrize("changed", [False, True])
def test_a_reference_right_but_for_a_smooth_scale_is_right_everywhere(changed):
    hkl, d, _, _, _, F = crystal()
    post, sd, informed = posterior_with(np.abs(F) * (smooth_changes() if changed else 1.0))
    true = observed()[1]
    ratio = (post / true)[informed]
    along_c = np.abs(hkl @ np.array(CELL.frac.mat)[:, 2]) * d
    for place in (d, along_c):  # by resolution, and by the angle to c
        parts = np.array_split(np.argsort(place[informed]), SHELLS)
        # what k and B leave: of eight observations' 8 %, over a shell, next to nothing
        assert all(abs(np.median(ratio[rows]) - 1) < 0.01 for rows in parts)
    assert (np.abs(post - true) < 1.645 * sd)[informed].mean() > 0.86


def wrong_references():
    """F of references whose errors are no smooth factor: (m,) each."""
    _, d, _, centric, S, F = crystal()
    rng = np.random.default_rng(2)
    other = _complex(rng, centric) * np.sqrt(S)
    return {
        "worse with resolution": np.abs(F + (0.1 + 3 / d**2) * other),
        "a fifth missing": np.abs(np.sqrt(0.8) * F + np.sqrt(0.2 * 0.8) * other),
        "R = 25 % and another B": np.abs(F + 0.42 * other) * np.exp(-20 / (4 * d**2)),
        "another crystal": np.abs(other),
    }


@pytest.mark.parametrize("wrong", wrong_references())
def test_intervals_hold_with_a_wrong_reference(wrong):
    _, d, *_ = crystal()
    post, sd, informed = posterior_with(wrong_references()[wrong])
    true = observed()[1]
    holds = (np.abs(post - true) < 1.645 * sd)[informed]
    strong = np.argsort(-true[informed])[: informed.sum() // 4]
    assert 0.86 < holds.mean() < 0.94 and 0.86 < holds[strong].mean() < 0.94
    # of some 440 reflections a shell: three standard errors more
    by_d = [holds[rows].mean() for rows in np.array_split(np.argsort(d[informed]), 8)]
    assert min(by_d) > 0.86 - 0.045 and max(by_d) < 0.94 + 0.045
    error = np.abs(post - true)
    assert error[informed].sum() < 1.01 * wilson_error()[informed].sum()
    assert error[~informed].sum() < 1.03 * wilson_error()[~informed].sum()


def test_the_free_set_has_no_part_in_the_prior():
    hkl, d, epsilon, centric, _, F = crystal()
    measured, _ = observed()
    few = np.asarray(measured.code) < 300
    measured = replace(
        measured,
        **{
            name: getattr(measured, name)[few]
            for name in ("J", "scale", "variance", "per_photon", "fraction", "code",
                         "image", "weight")
        },
        hkl=measured.hkl[:300],
    )  # fmt: skip
    found = []
    for factor in (1.0, 9.0):
        given = Reference(hkl, np.abs(F) ** 2, CELL, GROUP, "test")
        informed = np.asarray(amplitudes_of(given, hkl, d, CELL, 0.2, 0).informed)
        assert 0.15 < (~informed).mean() < 0.25
        given = replace(given, intensity=np.where(informed, given.intensity, factor * 50))
        amplitudes = amplitudes_of(given, hkl[:300], d[:300], CELL, 0.2, 0)
        assert not np.asarray(amplitudes.amplitude)[~informed[:300]].any()
        prior = fit_prior(measured, d[:300], epsilon[:300], centric[:300], amplitudes)
        assert not prior.informed[~informed[:300]].any()
        found.append(np.asarray(prior.log_variance))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("group", "n"), [("P 1", 5), ("P 1 21 1", 3), ("P 21 21 21", 2), ("P 43 21 2", 1), ("P 2 3", 0)]
)
def test_as_many_tensors_as_the_laue_group_allows(group, n):
    cell = gemmi.UnitCell(60, 60, 60, 90, 90, 90)
    assert len(allowed_tensors(cell, gemmi.SpaceGroup(group))) == n


def test_trigonal_tensors_are_along_the_axis():
    (tensor,) = allowed_tensors(gemmi.UnitCell(60, 60, 90, 90, 90, 120), gemmi.SpaceGroup("P 31"))
    np.testing.assert_allclose(np.abs(np.diag(tensor)) * 6**0.5, [1, 1, 2], atol=1e-12)
