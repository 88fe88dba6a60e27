"""Images made of numbers: what they claim is right, permuted, or nothing at all."""

from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest

from bayes_refine.fitting.claims import claims_of, judged
from bayes_refine.fitting.reflections import Reflections
from bayes_refine.util.status import Kind, settled

NU = 6.0


def images(kind: str, n: int, m: int, photons: float, seed: int = 0) -> Reflections:
    """n images of m reflections of Wilson's intensities, Gaussian partialities, background 20²."""
    rng = np.random.default_rng(seed)
    N = n * m
    p, intensity = np.exp(-(rng.uniform(-1.5, 1.5, N) ** 2)), rng.exponential(size=N)
    J_model = photons * p * intensity
    shown = {"right": J_model, "blank": 0 * J_model, "another": photons * _elsewhere(rng, N)}[kind]
    variance = 400.0 + shown + 0.01 * shown**2
    columns = {
        "image": np.repeat(np.arange(n), m),
        "d": rng.uniform(2.0, 10.0, N),
        "J": shown + np.sqrt(variance) * rng.standard_normal(N),
        "variance_background": np.full(N, 400.0),
        "variance_signal": np.ones(N),
        "relative_variance": np.full(N, 0.01),
        "expected": intensity,
        "intensity_reference": intensity,
        "scale": photons * p,
        "covered": np.ones(N),
        "informs": np.ones(N, bool),
    }
    return Reflections(**{f.name: columns.get(f.name, np.zeros(N)) for f in fields(Reflections)})


def _elsewhere(rng, N):
    return np.exp(-(rng.uniform(-1.5, 1.5, N) ** 2)) * rng.exponential(size=N)


def kinds(r: Reflections, n: int, k: int = 0) -> list[Kind]:
    """Statuses of images of which k unknowns were fitted, which gains k/2 (Wilks 1938)."""
    fit = SimpleNamespace(
        status=settled(np.ones(n, bool)),
        image=np.zeros((n, k)),
        image_prior_sd=np.ones(k),
        image_variance=lambda: np.zeros((n, k)),
    )
    claims = claims_of(r, NU, [f"image {i}" for i in range(n)], 0)
    claims = claims._replace(over_chance=claims.over_chance + k / 2)
    return [status.kind for status in judged(fit, claims)]


@pytest.mark.parametrize(("m", "photons"), [(10, 300.0), (100, 40.0), (300, 20.0)])
def test_what_is_right_passes(m, photons):
    """Ten reflections of 15 sd, or hundreds of one or two."""
    assert kinds(images("right", 40, m, photons), 40).count(Kind.CONVERGED) >= 39


@pytest.mark.parametrize("m", [10, 100])
def test_blank_images_have_no_signal(m):
    """ln odds of 3 at the expected scale: one in twenty at the most exceeds them."""
    found = kinds(images("blank", 100, m, 50.0), 100)
    assert found.count(Kind.NO_SIGNAL) >= 95


@pytest.mark.parametrize("m", [30, 300])
def test_images_of_another_crystal_are_doubtful(m):
    """Three sd of chance: one of 700 passes if ln p of permutations were normal."""
    found = kinds(images("another", 100, m, 200.0), 100)
    assert found.count(Kind.CONVERGED) <= 3


def test_few_reflections_of_unknown_intensity():
    """Eight, of which resolution alone says how bright they are, and eight unknowns.  The evidence
    of a right image is 4 ± 3, of a wrong one −1 ± 4: halfway, a third and a quarter of them err.
    """
    n = 100

    def passed(kind):
        r = images(kind, n, 8, 800.0)
        unknown = np.ones(len(r))
        r = replace(r, intensity_reference=unknown, reference_error=unknown)
        return kinds(r, n, 8).count(Kind.CONVERGED) / n

    assert passed("right") > 0.5 and passed("another") < 0.35


def test_chance_is_drawn_by_identifier_not_by_place():
    r = images("right", 2, 40, 100.0)
    swapped = Reflections(
        **{f.name: np.roll(getattr(r, f.name), 40, axis=0) for f in fields(Reflections)}
        | {"image": r.image}
    )
    first, second = claims_of(r, NU, ["a", "b"], 0), claims_of(swapped, NU, ["b", "a"], 0)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other[::-1])
