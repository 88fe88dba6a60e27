"""Batches of one run may have room for different numbers of reflections."""

from __future__ import annotations

import numpy as np
import pytest

from bayes_refine.fitting import padding
from bayes_refine.fitting.measure_batch import Plan
from bayes_refine.fitting.measure_run import measure_run
from bayes_refine.fitting.problem import Settings, prepare_run
from bayes_refine.fitting.statistics_of_images import predictions_of
from bayes_refine.infer.search import Search
from bayes_refine.io.expt import read_experiments
from bayes_refine.io.images import ImageReader
from bayes_refine.io.reference import read_reference
from bayes_refine.loading import load_model
from bayes_refine.physics.priors import Priors
from bayes_refine.simulation.files import simulate_run
from bayes_refine.simulation.truth import Simulation
from bayes_refine.util.progress import SILENT


def test_another_shape_only_where_it_spares_enough():
    few, many = np.full(64, 40), np.full(64, 85)
    assert padding.shapes([few] * 40 + [many], 64, 96) == (96,)  # 40 · 64 · 32 are too few
    assert padding.shapes([few] * 60 + [many], 64, 96) == (64, 96)
    # 96 spares 160 · 64 · 32 slots, 64 only 60 · 64 · 64; after it 64 spares 60 · 64 · 32
    assert padding.shapes([few] * 60 + [many] * 100 + [few + 60], 64, 128) == (64, 96, 128)
    assert padding.shapes([few] * 40 + [many] * 100 + [few + 60], 64, 128) == (96, 128)
    assert padding.shapes([np.zeros(0, int), many], 64, 96) == (96,)


@pytest.mark.usefixtures("small_batches")
def test_a_run_of_two_shapes_has_the_density_of_one(tmp_path, monkeypatch):
    """Eight stills, the four with the fewest reflections in the first batch."""
    simulate_run(Simulation(n_images=8, n_pixels=160, distance_mm=60, seed=3), tmp_path)
    stills = read_experiments(tmp_path / "indexed.expt").stills
    ref, model, margin = read_reference(tmp_path / "reference.mtz"), load_model("still"), 2.5
    start = {"log_R1": np.full((8, 1), np.log(1e-3))}

    def prepared(stills):
        return prepare_run(stills, ref, reader, model, Priors(), Settings(d_min=3.6))

    def measured(run):
        """Slots of the batches, and the slope of ln p."""
        none = np.full(8, "", dtype=object)
        found = measure_run(run, start, Priors(), none, Plan(), margin, SILENT)
        search = Search(model, (found.observations, Priors()), start)
        return [batch.where.shape[1] for batch in found.batches], search.slope(search.start)

    with ImageReader(gain=1.0) as reader:
        predicted = predictions_of(prepared(stills), start, Priors(), margin, slice(0, 8))
        run = prepared([stills[i] for i in np.argsort(np.bincount(predicted.image))])
        one, plain = measured(run)
        monkeypatch.setattr(padding, "SPARED", 1)
        two, found = measured(run)
    assert one[0] == one[1] == two[1] > two[0]
    np.testing.assert_allclose(found.image, plain.image, rtol=1e-9)
    scale = np.abs(plain.g_image).max(0)
    np.testing.assert_allclose(found.g_image / scale, plain.g_image / scale, atol=1e-9)
    np.testing.assert_allclose(found.g_shared, plain.g_shared, rtol=1e-8)
