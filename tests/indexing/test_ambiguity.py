"""Cosets of the Laue group in the lattice's symmetry, and how they act on crystals and indices."""

import gemmi
import numpy as np
import pytest

from bayes_refine.geometry.crystal import Crystal
from bayes_refine.geometry.experiments import Still
from bayes_refine.geometry.predict import candidate_indices, predict
from bayes_refine.geometry.symmetry import asu_map
from bayes_refine.indexing.ambiguity import (
    ambiguity,
    reindexed_stills,
    reindexed_unmerged,
    transformed,
)
from bayes_refine.io.unmerged import Unmerged
from bayes_refine.simulation.truth import Simulation
from bayes_refine.simulation.truth import draw_truth as draw
from bayes_refine.util.errors import InputError

HEXAGONAL = (90, 90, 60, 90, 90, 120)


@pytest.mark.parametrize(
    ("group", "cell", "names"),
    [
        # Order of the lattice's point group over that of the Laue group's rotations; operations
        # as the CCP4 documentation on reindexing lists them (k,h,-l and -h,-k,l).
        ("P 63", HEXAGONAL, {"h,k,l", "k,h,-l"}),
        ("P 3", HEXAGONAL, {"h,k,l", "-h,-k,l", "k,h,-l", "-k,-h,-l"}),
        ("P 31 2 1", HEXAGONAL, {"h,k,l", "-h,-k,l"}),
        ("P 31 1 2", HEXAGONAL, {"h,k,l", "k,h,-l"}),
        ("P 61 2 2", HEXAGONAL, {"h,k,l"}),
        ("R 3:H", (90, 90, 120, 90, 90, 120), {"h,k,l", "k,h,-l"}),
        ("P 41", (79, 79, 38, 90, 90, 90), {"h,k,l", "k,h,-l"}),
        ("I 41", (79, 79, 38, 90, 90, 90), {"h,k,l", "k,h,-l"}),
        ("P 41 21 2", (79, 79, 38, 90, 90, 90), {"h,k,l"}),
        ("C 1 2 1", (90, 60, 80, 90, 100, 90), {"h,k,l"}),
        ("P 21 21 21", (50, 60, 70, 90, 90, 90), {"h,k,l"}),
    ],
)
def test_operations_of_the_usual_groups(group, cell, names):
    found = ambiguity(gemmi.UnitCell(*cell), gemmi.SpaceGroup(group))
    assert found.names[0] == "h,k,l" and set(found.names) == names
    assert len(found.relabellings) == len(found)  # every subgroup here is normal


@pytest.mark.parametrize(
    ("group", "cell", "count"),
    [
        ("P 2 3", (60, 60, 60, 90, 90, 90), 2),  # 432 over 23
        ("P 1", (60, 60, 60, 90, 90, 90), 24),  # 432 over 1
        ("P 1 2 1", (60, 60, 60, 90, 90, 90), 12),  # 432 over 2
        ("P 1 m 1", (60, 60, 60, 90, 90, 90), 12),  # the same Laue class
        ("R 3:R", (60, 60, 60, 75, 75, 75), 2),  # 32 over 3
        ("C 1 2 1", (90, 60, 80, 90, 90, 90), 2),  # metrically orthorhombic
        # A face-centred cubic lattice, a = 100 Å, described as C-centred monoclinic
        ("C 1 2 1", (122.4745, 70.7107, 70.7107, 90, 54.7356, 90), 12),
    ],
)
def test_number_of_cosets_is_the_index(group, cell, count):
    found = ambiguity(gemmi.UnitCell(*cell), gemmi.SpaceGroup(group))
    assert len(found) == count
    assert np.allclose(np.linalg.det(found.operations), 1)  # hands are kept
    # gemmi's own list of twin laws is the same but for the identity
    laws = gemmi.find_twin_laws(gemmi.UnitCell(*cell), gemmi.SpaceGroup(group), 1.0, False)
    assert len(laws) == count - 1


def test_a_subgroup_that_is_not_normal_relabels_by_its_normaliser():
    """Of the rotation group of the cube, a twofold axis is normalised by 422: 8/2 = 4."""
    found = ambiguity(gemmi.UnitCell(60, 60, 60, 90, 90, 90), gemmi.SpaceGroup("P 1 2 1"))
    assert found.relabellings.shape == (4, 12)
    assert (np.sort(found.relabellings, axis=1) == np.arange(12)).all()


def test_obliquity_decides_what_counts_as_equal():
    """Two axes in the ratio 1 + δ have their diagonal δ rad off the normal of its plane."""
    group = gemmi.SpaceGroup("P 21 21 21")
    cell = gemmi.UnitCell(60, 60 * 1.01, 80, 90, 90, 90)  # 0.57°
    assert len(ambiguity(cell, group)) == 2
    assert len(ambiguity(cell, group, max_obliquity_deg=0.5)) == 1


def test_a_cell_that_the_group_does_not_allow_is_refused():
    with pytest.raises(InputError, match="does not have the symmetry of P 63"):
        ambiguity(gemmi.UnitCell(50, 60, 70, 90, 90, 90), gemmi.SpaceGroup("P 63"))


@pytest.mark.parametrize(
    ("group", "hall", "cell"),
    [
        ("P 3", " P 3", HEXAGONAL),
        ("C 1 2 1", " C 2y", (122.4745, 70.7107, 70.7107, 90, 54.7356, 90)),
    ],
)
def test_reindexed_crystals_put_the_same_spots_in_the_same_places(group, hall, cell):
    """q = A·h = A'·h', through the prediction, for every operation, in a centred lattice too."""
    simulation = Simulation(cell=cell, hall=hall, n_images=1, d_min=4.0, bandwidth=0.0)
    truth = draw(simulation, rng=np.random.default_rng(4))
    still = Still("one", "image.h5", 0, truth.beam, truth.detector, Crystal(truth.A[0], hall))
    space_group = gemmi.SpaceGroup(group)
    ways = ambiguity(gemmi.UnitCell(*cell), space_group)
    hkl = candidate_indices(gemmi.UnitCell(*cell), space_group, 4.0)
    before = predict(still, hkl, 4.0, lambda d: 1e-3)
    assert len(before) > 50
    for k in range(len(ways)):
        (after,) = reindexed_stills([still], ways, np.array([k]))
        new = transformed(before.hkl, ways.operations[k])
        assert not space_group.operations().systematic_absences(new).any()
        found = predict(after, new, 4.0, lambda d: 1e-3)
        np.testing.assert_allclose(found.q, before.q, atol=1e-9)
        np.testing.assert_allclose(found.xy_px, before.xy_px, atol=1e-6)
        np.testing.assert_allclose(
            after.crystal.cell.parameters, still.crystal.cell.parameters, rtol=1e-4
        )
        assert np.linalg.det(after.crystal.A) > 0


def test_unmerged_indices_follow_their_image():
    ways = ambiguity(gemmi.UnitCell(*HEXAGONAL), gemmi.SpaceGroup("P 63"))
    hkl = np.array([[1, 2, 3], [1, 2, 3], [-4, 1, 0]], np.int32)
    asu, isym = asu_map(hkl, ways.space_group)
    image = np.array([0, 1, 1])
    data = Unmerged(
        hkl, asu, isym, np.ones(3), np.ones(3), image + 1, image, None, None,
        gemmi.UnitCell(*HEXAGONAL), ways.space_group, "test",
    )  # fmt: skip
    got = reindexed_unmerged(data, ways, np.array([0, ways.names.index("k,h,-l")]))
    assert got.hkl.tolist() == [[1, 2, 3], [2, 1, -3], [1, -4, 0]]
    assert (got.hkl_asu == asu_map(got.hkl, ways.space_group)[0]).all()
