"""Runs of few photons and of wrong images: each ends with finite numbers (long: marked slow)."""

from dataclasses import replace

import numpy as np
import pytest

import bayes_refine as br
from bayes_refine.fitting.tables import usable_images
from bayes_refine.geometry.crystal import rotation_matrix

D_MIN = 3.5
SIMULATION = br.Simulation(n_images=9, n_pixels=220, distance_mm=70.0, d_min=D_MIN)


def fitted(stills, reference):
    with br.ImageReader() as reader:
        settings = br.Settings(d_min=D_MIN)
        return br.fit_run(stills, reference, reader, br.load_model("still"), settings=settings)


def simulated(folder, **changes):
    expt = br.simulate_run(replace(SIMULATION, **changes), folder)
    return br.read_experiments(expt).stills, br.read_reference(folder / "reference.mtz")


def assert_finite(run):
    table = br.image_table(run)
    used = usable_images(run)
    assert used.any()
    for name, values in table.items():
        if name not in ("identifier", "status"):
            assert np.isfinite(np.asarray(values, float)[used]).all(), name
    for name, number in br.shared_values(run).items():
        assert np.isfinite([number["value"], number["sd"]]).all(), name


@pytest.mark.slow
@pytest.mark.parametrize("with_reference", [True, False])
@pytest.mark.parametrize("photons", [30.0, 1000.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_runs_of_any_seed_and_strength_end_with_results(tmp_path, seed, photons, with_reference):
    stills, reference = simulated(tmp_path, seed=seed, mean_photons=photons)
    assert_finite(fitted(stills, reference if with_reference else None))


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["blank", "misindexed", "another crystal"])
def test_a_third_of_the_images_wrong_leaves_the_others_as_they_were(tmp_path, wrong):
    """Against the fit without these: each within half of its own sd, and none of them used."""
    stills, reference = simulated(tmp_path / "good", seed=3)
    bad = np.arange(len(stills)) % 3 == 0
    if wrong == "misindexed":
        others = [_turned(still) for still in stills]
    else:
        other = {"mean_photons": 1e-9} if wrong == "blank" else {"seed": 4, **ANOTHER}
        shown = simulated(tmp_path / "other", **other)[0]
        pairs = zip(shown, stills, strict=True)
        others = [replace(image, crystal=claimed.crystal) for image, claimed in pairs]
    mixed = [o if b else s for s, o, b in zip(stills, others, bad, strict=True)]
    without = fitted([s for s, b in zip(stills, bad, strict=True) if not b], reference)
    run = fitted(mixed, reference)
    assert not usable_images(run)[bad].any() and usable_images(run)[~bad].all()
    assert_finite(run)
    for name in ("log_G", "B", "rotation_mrad"):
        moved = run.fit.values()[name][~bad] - without.fit.values()[name]
        sd = without.fit.sd(name).reshape(moved.shape)
        assert np.sqrt(np.mean((moved / sd) ** 2)) < 0.5, name


ANOTHER = {"cell": (57.0, 57.0, 150.0, 90.0, 90.0, 90.0), "hall": "P 4 2"}


def _turned(still):
    turn = rotation_matrix(np.array([0.0, 0.0, 1.0]) * np.radians(5) * 1e3)
    return replace(still, crystal=replace(still.crystal, A=turn @ still.crystal.A))
