"""Strong spots of a fitted run: whose pixels they are, and that they are those of the fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import bayes_refine as br

pytest.importorskip("equinox")
from bayes_refine.learned import strong_spots as module
from bayes_refine.learned.strong_spots import OF_IMAGE, STRONG, strong_spots
from bayes_refine.report.gallery import shoebox_gallery


@pytest.fixture(scope="module")
def run(small_run):
    return small_run.given["run"]


def test_their_photons_above_the_background_are_what_the_fit_measured(run):
    spots = strong_spots(run)
    n = len(spots.J)
    assert n >= 50 and np.bincount(spots.image).max() <= OF_IMAGE
    assert set(np.unique(spots.image)) <= {0, 1, 2, 3}  # the others cannot be read
    assert np.all(spots.J > STRONG**2)  # counting alone
    away = np.linalg.norm(spots.offsets - spots.centre[:, None], axis=2)
    whole = np.all(spots.usable | (away >= np.max(spots.offsets) - 1), axis=1)
    excess = np.sum(np.where(spots.usable, spots.photons - spots.background, 0), axis=1)
    sd = np.sqrt(np.sum(np.where(spots.usable, spots.background, 0), axis=1) + spots.J)
    pull = ((excess - spots.J) / sd)[whole]
    assert len(pull) > 20 and abs(np.median(pull)) < 0.5
    # a round spot's sd in pixels, as simulated: R1/√2 over a pixel's 0.172/(110·1) Å⁻¹
    assert spots.core_px == pytest.approx(8e-4 / np.sqrt(2) / (0.172 / 110), rel=0.1)


def test_a_run_of_weak_spots_is_told(run, monkeypatch):
    monkeypatch.setattr(module, "STRONG", 1e6)
    with pytest.raises(br.InputError, match="0 spots stand out by 1e\\+06 times"):
        strong_spots(run)


def test_the_gallery_draws_spots_as_they_were_measured(run, small_run):
    """With half of the photons a pixel further the model's spots are wider, the data the same."""

    class Moved:
        nodes, trace_px2 = ((0, 0), (1, 0)), 0.25

        def shares(self, x_mm, y_mm):
            return np.tile([0.5, 0.5], (len(x_mm), 1))

    settings = replace(run.problem.settings, point_spread=Moved())
    spread = replace(run, problem=replace(run.problem, settings=settings))
    reader = small_run.given["reader"]
    canvas = [
        shoebox_gallery(one, reader, 1).axes[0].images[0].get_array() for one in (run, spread)
    ]
    same = np.mean(np.isclose(*canvas).all(-1))
    assert canvas[0].shape == canvas[1].shape and 0.3 < same < 0.98
