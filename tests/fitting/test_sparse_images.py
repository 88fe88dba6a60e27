"""Images of small molecules: ten reflections of a 10 Å cell, of which all are worth keeping."""

import numpy as np

from bayes_refine import load_model
from bayes_refine.fitting.measure_batch import Plan
from bayes_refine.fitting.measure_run import measure_run
from bayes_refine.fitting.problem import Settings, prepare_run
from bayes_refine.fitting.start import BROAD_MARGIN
from bayes_refine.io.expt import read_experiments
from bayes_refine.io.images import ImageReader
from bayes_refine.io.reference import read_reference
from bayes_refine.physics.priors import Priors
from bayes_refine.simulation.files import simulate_run
from bayes_refine.simulation.truth import Simulation
from bayes_refine.util.progress import Listener

SMALL = Simulation(
    n_images=3,
    n_pixels=320,
    distance_mm=30.0,
    d_min=1.2,
    cell=(10.0, 12.0, 14.0, 90.0, 90.0, 90.0),
    hall="P 2 2",
)


def test_an_image_of_few_reflections_informs_the_run(tmp_path):
    """No number of reflections is too small: their photons say how much an image is worth."""
    stills = read_experiments(simulate_run(SMALL, tmp_path)).stills
    reference = read_reference(tmp_path / "reference.mtz")
    with ImageReader() as reader:
        settings, priors = Settings(d_min=1.2), Priors()
        run = prepare_run(stills, reference, reader, load_model("still"), priors, settings)
        status = np.full(3, "", object)
        state = {"log_R1": np.full((3, 1), np.log(3e-3))}
        found = measure_run(run, state, priors, status, Plan(), BROAD_MARGIN, Listener())
    assert set(status) == {""}
    assert 0 < found.counts.min() and found.counts.max() < 30
