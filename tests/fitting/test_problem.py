"""Which unknowns a run has, by its detector and its priors."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from bayes_refine import load_model
from bayes_refine.fitting.problem import Settings, batch_size, prepare_run
from bayes_refine.fitting.statistics_of_images import geometry_at, predictions_of
from bayes_refine.io.expt import read_experiments
from bayes_refine.io.images import ImageReader
from bayes_refine.physics.priors import Priors
from bayes_refine.simulation.files import simulate_run
from bayes_refine.simulation.truth import Simulation


@pytest.fixture(scope="module")
def stills(tmp_path_factory):
    simulation = Simulation(n_images=3, n_panels=4, n_pixels=160, d_min=6.0)
    expt = simulate_run(simulation, tmp_path_factory.mktemp("problem"))
    return read_experiments(expt).stills


def run_of(stills, priors=None):
    settings = Settings(d_min=6.0)
    return prepare_run(
        stills, None, ImageReader(), load_model("still"), priors or Priors(), settings
    )


def observations(run, priors):
    images = slice(0, len(run.stills))
    predictions = predictions_of(run, {}, priors, 2.4, images)
    slots = int(np.bincount(predictions.image).max())
    return geometry_at(run, {}, predictions, images, slots, 1e-3)[1]


def test_panels_move_where_there_are_several_and_the_priors_let_them(stills):
    assert run_of(stills).panel_groups == 4
    assert run_of(stills, Priors(panel_shift_sd_px=0.0)).panel_groups == 0
    paired = replace(stills[0].detector, groups=(0, 0, 1, 1))
    assert run_of([replace(s, detector=paired) for s in stills]).panel_groups == 2
    mixed = [replace(stills[0], detector=paired), *stills[1:]]
    assert run_of(mixed).panel_groups == 0
    one = replace(stills[0].detector, groups=(0, 0, 0, 0))
    assert run_of([replace(s, detector=one) for s in stills]).panel_groups == 0


def test_observations_have_what_the_unknowns_need_and_no_more(stills):
    """Moves of 4 groups in the plane of panels: by one pixel, a pixel of ε_t."""
    priors = Priors()
    obs = observations(run_of(stills), priors)
    assert obs.current_panels.shape == (3, 4, 3) and set(obs.panel_group.ravel()) == {0, 1, 2, 3}
    assert obs.wavelength is obs.log_pulse_energy is None
    lengths = np.linalg.norm(obs.panel_axes[:, :, 0], axis=1)
    seen = lengths > 0
    assert (
        0.6 < np.min(lengths[seen]) / (0.172 / 110.0) <= np.max(lengths[seen]) * 110 / 0.172 < 1.01
    )


def test_pulses_bring_a_wavelength_and_an_energy_of_each_shot(stills):
    priors = Priors(wavelength_jitter=2e-3, panel_shift_sd_px=0.0)
    known = [replace(still, log_pulse_energy=0.1) for still in stills[:2]]
    run = run_of([*known, stills[2]], priors)
    volumes = [still.crystal.cell.volume for still in run.stills]
    np.testing.assert_allclose(volumes, np.median(volumes))
    obs = observations(run, priors)
    np.testing.assert_allclose(obs.wavelength, 1.0)
    np.testing.assert_allclose(obs.log_pulse_energy, [[0.1], [0.1], [np.nan]])
    wavelength = [still.beam.wavelength for still in run.stills]
    np.testing.assert_allclose(1 / obs.wavevector[:, 0], wavelength)
    assert obs.panel_group is None


class Card:
    """A device of a GPU with so many bytes."""

    def __init__(self, memory: int) -> None:
        self.memory = memory

    def memory_stats(self) -> dict[str, int]:
        return {"bytes_limit": self.memory}


class SomeOnEach:
    """So many reflections on each still."""

    def __init__(self, reflections: int) -> None:
        self.reflections = reflections

    def number_on(self, still: int) -> float:
        return self.reflections + still % 2


@pytest.mark.parametrize(
    "memory, n, reflections, size",
    [(80e9, 2000, 499, 512), (80e9, 300, 499, 256), (80e9, 2000, 9000, 128), (1e9, 20, 99, 16)],
)
def test_a_batch_on_a_card_is_as_large_as_its_memory_allows(
    monkeypatch, memory, n, reflections, size
):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [Card(int(memory))])
    assert batch_size(range(n), SomeOnEach(reflections)) == size


@pytest.mark.parametrize(
    "n, reflections, size",
    [(300, 255, 64), (300, 256, 32), (300, 999, 16), (200, 99, 32), (9, 99, 9)],
)
def test_a_batch_on_a_cpu_is_large_where_its_reflections_are_few(n, reflections, size):
    """The still that has most reflections counts: 256 · 64 are as many as there may be."""
    assert batch_size(range(n), SomeOnEach(reflections)) == size
