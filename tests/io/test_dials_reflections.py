"""DIALS reflection tables, read against DIALS's own numbers and written back."""

from __future__ import annotations

import numpy as np
import pytest

from bayes_refine.io.dials_reflections import is_refl, read_refl, refl_bytes, unmerged_of_dials
from bayes_refine.io.expt import read_experiments
from bayes_refine.util.errors import InputError


@pytest.fixture(scope="module")
def pair(shared_data):
    folder = shared_data / "formats"
    return folder / "thermolysin_3crystals.expt", folder / "thermolysin_3crystals.refl"


def test_rays_are_those_of_dials(pair):
    stills, table = read_experiments(pair[0]).stills, read_refl(pair[1])
    assert is_refl(pair[1]) and len(table) == 502
    A = np.array([s.crystal.A for s in stills])[table.column("id")]
    s0 = np.array([s.beam.s0 for s in stills])[table.column("id")]
    s = s0 + np.einsum("nij,nj->ni", A, table.column("miller_index"))
    s1 = table.column("s1")
    s, s1 = (v / np.linalg.norm(v, axis=1)[:, None] for v in (s, s1))
    assert np.abs(s - s1).max() < 1e-4


def test_three_integrated_stills(pair):
    u, table = unmerged_of_dials([pair]), read_refl(pair[1])
    assert list(np.bincount(u.image)) == [186, 201, 115]
    np.testing.assert_array_equal(u.J, table.column("intensity.sum.value"))
    np.testing.assert_allclose(u.sigma**2, table.column("intensity.sum.variance"))
    assert u.space_group.hm == "P 61 2 2"
    # DIALS's own angle: Δψ ≈ ε_r/(|q| cos θ), the sign is opposite or the same throughout
    q = 1 / table.column("d")
    wavelength = read_experiments(pair[0]).stills[0].beam.wavelength
    cos_theta = np.sqrt(1 - (wavelength * q / 2) ** 2)
    angle = u.excitation_error / (q * cos_theta)
    delta = table.column("delpsical.rad")
    assert abs(np.corrcoef(angle, delta)[0, 1]) > 0.999
    np.testing.assert_allclose(np.abs(angle), np.abs(delta), atol=2e-5)


def test_what_is_written_reads_back(tmp_path):
    columns = {"miller_index": np.array([[1, 2, -3]]), "id": np.array([0]), "d": np.array([2.5])}
    (tmp_path / "a.refl").write_bytes(refl_bytes(columns, {0: "one"}))
    table = read_refl(tmp_path / "a.refl")
    assert table.identifiers == {0: "one"}
    for name, values in columns.items():
        np.testing.assert_array_equal(table.column(name), values)


@pytest.mark.parametrize("what", [b"", b"\x93\xa3", b"not msgpack at all", b"\x93\x01\x02\x03"])
def test_what_is_no_table(tmp_path, what):
    (tmp_path / "a.refl").write_bytes(what)
    with pytest.raises(InputError, match="not a DIALS reflection table"):
        read_refl(tmp_path / "a.refl")


def test_a_cut_table(tmp_path, pair):
    raw = pair[1].read_bytes()
    for n in (100, len(raw) // 2, len(raw) - 1):
        (tmp_path / "a.refl").write_bytes(raw[:n])
        with pytest.raises(InputError):
            read_refl(tmp_path / "a.refl")
