"""The sd of mosaic shapes is found from images that tell it with an error of their own."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from bayes_refine import infer
from bayes_refine.fitting.learned_priors import learned_from
from bayes_refine.geometry.experiments import InSweep
from bayes_refine.infer import normal
from bayes_refine.physics.priors import Priors
from bayes_refine.util.status import Kind, Status


def fit_of(true_sd, error, used, n, seed=0, off=0.0):
    """Posteriors of n images' five numbers under N(0, used²), of measurements with an error.

    Args:
        off: posterior sd by which the search ended beside each mode.
    """
    rng = np.random.default_rng(seed)
    seen = true_sd * rng.standard_normal((n, 1, 5)) + error * rng.standard_normal((n, 1, 5))
    variance = 1 / (error**-2.0 + used**-2.0)
    beside = off * variance**0.5 * rng.standard_normal(seen.shape)
    values = {"mosaic_shape": seen * variance / error**2 + beside}
    sd = {"mosaic_shape": np.full((n, 1, 5), variance**0.5)}
    return SimpleNamespace(
        sites=[SimpleNamespace(name="mosaic_shape")],
        status=np.array([Status(Kind.CONVERGED)] * n, dtype=object),
        values=lambda: values,
        sd=sd.__getitem__,
    )


@pytest.mark.parametrize("true_sd", [0.15, 0.8])
@pytest.mark.parametrize("used", [0.2, 1.0])
def test_the_sd_is_found_whatever_prior_the_round_had(true_sd, used):
    """200 images, 1000 numbers: to 1/√2000 for small errors, thus 10 % with errors of 0.2."""
    priors = replace(Priors(), log_mosaic_shape_sd_sd=3.0)
    fit = fit_of(true_sd, 0.2, used, 200)
    found = learned_from(fit, priors, replace(priors, mosaic_shape_sd=used))
    assert found.mosaic_shape_sd == pytest.approx(true_sd, rel=0.1)
    assert replace(found, mosaic_shape_sd=priors.mosaic_shape_sd) == priors


def test_images_that_say_nothing_leave_the_prior():
    priors = Priors()
    fit = fit_of(0.8, 50.0, 0.2, 3)
    assert learned_from(fit, priors, priors).mosaic_shape_sd == pytest.approx(0.2, rel=0.02)
    other = SimpleNamespace(sites=[SimpleNamespace(name="log_G")])
    assert learned_from(other, priors, priors) is priors


def test_the_tolerance_of_the_search_is_no_signal():
    """Images that say next to nothing, each a tenth of an sd from its mode: 3.3 were found."""
    priors = Priors()
    used = replace(priors, mosaic_shape_sd=0.15)
    found = learned_from(fit_of(0.1, 3.0, 0.15, 20, off=0.1), priors, used)
    assert found.mosaic_shape_sd == pytest.approx(0.2, rel=0.02)


def test_it_reads_a_fit():
    """Of a model with this site alone, by ``map_fit``: y ~ N(shape, 0.2²)."""

    def model(y, priors):
        with numpyro.plate("image", len(y), dim=-2):
            shape = normal("mosaic_shape", 0.0, priors.mosaic_shape_sd, 5)
        with numpyro.plate("image", len(y), dim=-2), numpyro.plate("number", 5, dim=-1):
            numpyro.sample("y", dist.Normal(shape[:, 0], 0.2), obs=y)

    rng = np.random.default_rng(1)
    y = 0.8 * rng.standard_normal((60, 5)) + 0.2 * rng.standard_normal((60, 5))
    priors = replace(Priors(), log_mosaic_shape_sd_sd=3.0)
    found = learned_from(infer.map_fit(model, jnp.asarray(y), priors), priors, priors)
    expected = np.sqrt(np.mean(y**2) - 0.04)
    assert found.mosaic_shape_sd == pytest.approx(expected, rel=0.02)


def test_the_scatter_of_frames_about_a_smooth_scale_is_found():
    """200 frames with ln G 3 % about a line, each known to 2 %: the sd to 1/√400 and the error."""
    n, rng, priors = 200, np.random.default_rng(2), replace(Priors(), log_frame_log_G_sd_sd=3.0)
    used, error = 0.05, 0.02
    smooth = np.stack([np.ones(n), np.linspace(0, 1, n)], axis=1)
    seen = 0.03 * rng.standard_normal(n) + error * rng.standard_normal(n)
    variance = 1 / (error**-2 + used**-2)
    line = np.array([2.0, -0.7])
    values = {
        "log_G": (smooth @ line + seen * variance / error**2)[:, None],
        "log_G_sweep": line,
        "mosaic_shape": np.zeros((n, 1, 5)),
    }
    sites = [
        SimpleNamespace(name=name, per_image=name == "log_G", size=1)
        for name in ("log_G", "mosaic_shape", "mosaic_shape_sweep")
    ]
    fit = SimpleNamespace(
        sites=sites,
        status=np.array([Status(Kind.CONVERGED)] * n, dtype=object),
        values=lambda: values,
        image_precision=np.full((n, 1, 1), 1 / variance),
    )
    places = [SimpleNamespace(sweep=InSweep(np.ones(1), row, row, np.eye(3))) for row in smooth]
    found = learned_from(fit, priors, replace(priors, frame_log_G_sd=used), places)
    assert found.frame_log_G_sd == pytest.approx(0.03, rel=0.12)
    assert found.mosaic_shape_sd == priors.mosaic_shape_sd
