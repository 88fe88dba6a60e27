"""Every file of ``formats/``: orientation, frame, wavelength, I and σ are the numbers that stand in
it, written out here as they are printed there.
"""

from __future__ import annotations

import gemmi
import numpy as np
import pytest

from bayes_refine.geometry.detector import ray_to_pixel
from bayes_refine.io.crystfel_experiments import experiments_of_stream
from bayes_refine.io.crystfel_stream import read_stream
from bayes_refine.io.crystfel_unmerged import unmerged_of_stream
from bayes_refine.io.dials_reflections import read_refl, unmerged_of_dials
from bayes_refine.io.expt import read_experiments

LYSOZYME = {
    "file": "lysozyme_3crystals.stream",
    "space_group": "P 43 21 2",
    "images": 3,
    "reflections": (263, 102, 253),  # num_reflections of each crystal
    "energy_ev": 9700.0,
    "image_file": "PAL_2019_Apr01_r0000_062014_e88.h5",
    "cell_nm": (7.93850, 8.04039, 3.85562, 90.68698, 90.13504, 89.74671),
    "astar": (0.0279588, -0.1224762, -0.0092915),
    "cstar": (0.2234144, 0.0408826, 0.1252721),
    "shift_mm": (0.010, -0.032),
    "first": ((-37, 11, -7), -15.11, 20.15, (17.5, 1025.9)),
    "panels": 1,
}
HT2B = {
    "file": "crystfel_5ht2b_32crystals.stream",
    "space_group": "C 2 2 21",
    "images": 32,
    "reflections": (257,),
    "energy_ev": 9511.868397,
    "image_file": "LCLS_2013_Mar22_r0092_035103_1824f.h5",
    "cell_nm": (6.13532, 12.19726, 16.88163, 90.54524, 91.23016, 90.53769),
    "astar": (0.0706577, -0.1444151, 0.0270631),
    "cstar": (0.0296121, 0.0034501, -0.0512061),
    "shift_mm": (0.022, -0.009),
    "first": ((-28, 10, 5), 185.09, 155.78, (634.8, 1057.6)),
    "panels": 64,
}
HC = 12398.419843  # eV·Å


@pytest.mark.parametrize("says", [LYSOZYME, HT2B], ids=["lysozyme", "5ht2b"])
def test_a_stream_of_crystfel(shared_data, says):
    path = shared_data / "formats" / says["file"]
    group = gemmi.SpaceGroup(says["space_group"])
    found = experiments_of_stream(path, group)
    still = found.stills[0]
    assert len(found) == says["images"] and still.image_path.name == says["image_file"]
    assert still.frame == 0  # a file an image, no event
    assert still.beam.wavelength == pytest.approx(HC / says["energy_ev"], rel=1e-9)
    assert still.detector.n_panels == says["panels"]
    np.testing.assert_allclose(still.crystal.A[:, 0] * 10, says["astar"], atol=1e-12)
    np.testing.assert_allclose(still.crystal.A[:, 2] * 10, says["cstar"], atol=1e-12)
    a, b, c, *angles = still.crystal.cell.parameters
    # axes are printed to seven decimals, a cell of 17 nm is then known to 2e-5
    np.testing.assert_allclose((a / 10, b / 10, c / 10), says["cell_nm"][:3], rtol=2e-5)
    np.testing.assert_allclose(angles, says["cell_nm"][3:], atol=1e-3)

    u = unmerged_of_stream(path, group)
    hkl, J, sigma, px = says["first"]
    assert tuple(u.hkl[0]) == hkl and (u.J[0], u.sigma[0]) == (J, sigma)
    counts = np.bincount(u.image)
    assert tuple(counts[: len(says["reflections"])]) == says["reflections"]
    assert len(counts) == says["images"]

    crystal = next(c for c in read_stream(path)[1] if c.crystals).crystals[0]
    assert crystal.shift_mm == says["shift_mm"]
    s = still.beam.s0 + crystal.reflections.hkl[0] @ still.crystal.A.T
    panel, xy = ray_to_pixel(still.detector, s[None] / np.linalg.norm(s))
    first = np.array(still.detector.raw_image_offset)[panel[0]]
    np.testing.assert_allclose(xy[0] + first, px, atol=0.06)  # printed to 0.1 px


def test_a_pair_of_dials(shared_data):
    pair = [shared_data / "formats" / f"thermolysin_3crystals.{k}" for k in ("expt", "refl")]
    found = read_experiments(pair[0])
    assert [s.beam.wavelength for s in found.stills] == [
        *(1.27130570248, 1.27169365457, 1.27172177877)
    ]
    still = found.stills[0]
    assert still.image_path.name == "idx-20130301054738747.cbf" and still.frame == 0
    real = np.linalg.inv(still.crystal.A)
    np.testing.assert_allclose(
        real[0], [88.90616322020321, -10.773222067833638, 26.25723575017395], rtol=1e-9
    )
    assert (still.beam.polarization_fraction, still.detector.n_panels) == (0.999, 64)
    u = unmerged_of_dials([tuple(pair)])
    assert tuple(u.hkl[0]) == (-37, -4, 18)
    assert (u.J[0], u.sigma[0] ** 2) == pytest.approx((100.0531005859, 1399.3474121))
    # where DIALS's own ray of that row meets the detector; it turns the lattice point onto the
    # sphere first, so that the ray along s0 + q is 0.1 px off
    table = read_refl(pair[1])
    s1 = table.column("s1")[0]
    panel, xy = ray_to_pixel(still.detector, s1[None] / np.linalg.norm(s1))
    assert panel[0] == 4
    np.testing.assert_allclose(xy[0], [31.417698005598, 28.47388436195577], atol=1e-3)
    s = still.beam.s0 + u.hkl[0] @ still.crystal.A.T
    panel, xy = ray_to_pixel(still.detector, s[None] / np.linalg.norm(s))
    assert panel[0] == 4
    np.testing.assert_allclose(xy[0], [31.417698005598, 28.47388436195577], atol=0.15)


def test_no_file_is_forgotten(shared_data):
    known = {LYSOZYME["file"], HT2B["file"], "thermolysin_3crystals.expt"}
    known |= {"thermolysin_3crystals.refl"}
    assert {path.name for path in (shared_data / "formats").iterdir()} == known
