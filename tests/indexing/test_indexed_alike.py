"""Stills of a detector, each indexed one of two ways at random, before anything is fitted."""

import gemmi
import numpy as np
import pytest

import bayes_refine as br
from bayes_refine.fitting.index_alike import stills_alike
from bayes_refine.fitting.problem import prepare_run
from bayes_refine.geometry.symmetry import asu_map
from bayes_refine.indexing.ambiguity import ambiguity, reindexed_stills
from bayes_refine.indexing.unmerged_alike import roughly_scaled
from bayes_refine.simulation.files import simulate_run
from bayes_refine.simulation.truth import Simulation


@pytest.mark.slow
def test_scrambled_stills_are_put_right_from_their_pixels(tmp_path):
    """P6₃ with errors of indexing (0.05°, 0.1 % of the cell), 100 photons a reflection."""
    simulation = Simulation(
        n_images=12,
        cell=(90, 90, 60, 90, 90, 120),
        hall=" P 6c",
        d_min=3.0,
        mean_photons=100.0,
    )
    stills = br.read_experiments(simulate_run(simulation, tmp_path)).stills
    reference = br.read_reference(tmp_path / "reference.mtz")
    ways = ambiguity(reference.cell, reference.space_group)
    wrong = np.random.default_rng(3).integers(0, 2, len(stills))
    scrambled = reindexed_stills(stills, ways, wrong)
    priors, settings = br.Priors(), br.Settings(d_min=3.0)
    lines = []
    with br.ImageReader() as reader:
        run = prepare_run(scrambled, reference, reader, br.load_model("still"), priors, settings)
        mended, choice = stills_alike(run, priors, lines.append)
        assert (choice.operation == wrong).all() and (choice.status == "decided").all()
        for still, true in zip(mended, stills, strict=True):
            # the indexed crystal again, but for a symmetry operation of P6₃
            turn = np.linalg.solve(true.crystal.A, still.crystal.A)
            assert np.allclose(turn, np.rint(turn), atol=1e-6)
            operations = [np.array(op.rot) // 24 for op in reference.space_group.operations()]
            assert any(np.allclose(turn.T, op) for op in operations)
        alone = stills_alike(run, priors, lines.append, by_reference=False)[1]
    assert max((row[alone.operation] == wrong).mean() for row in ways.relabellings) == 1
    assert any("indexing is ambiguous" in line for line in lines)


def test_variances_of_a_file_are_freed_of_what_was_counted():
    """Poisson counts with a gain: σ² = 40 + 3·J comes apart into 40 and 3 per unit of J."""
    rng, group = np.random.default_rng(0), gemmi.SpaceGroup("P 63")
    cell = gemmi.UnitCell(90, 90, 60, 90, 90, 120)
    hkl = gemmi.make_miller_array(cell, group, 5.0)[rng.integers(0, 800, 2000)]
    asu, isym = asu_map(hkl, group)
    J, image = rng.exponential(50, 2000), np.arange(2000) % 20
    data = br.Unmerged(
        hkl, asu, isym, J, np.sqrt(40 + 3 * J), image + 1, image, None, None, cell, group, "test"
    )
    got = roughly_scaled(data)
    np.testing.assert_allclose(got.variance_signal, 3)
    np.testing.assert_allclose(got.variance, np.maximum(40, 0.2 * (40 + 3 * J)))
