"""Integrated stills of any program, told by content; several files as one run."""

from __future__ import annotations

import shutil

import gemmi
import numpy as np
import pytest

from bayes_refine.io.expt import read_experiments
from bayes_refine.io.mtz import new_batch, write_observations
from bayes_refine.io.open_unmerged import open_unmerged
from bayes_refine.io.recognise import Kind, expanded, kind_of
from bayes_refine.simulation.unmerged import (
    UnmergedSimulation,
    simulate_in_parts,
    simulate_unmerged,
)
from bayes_refine.util.errors import InputError

from ..sound import XDS as HEADER

XDS = (
    HEADER
    + """\
     1     2     3  1.500E+02  1.000E+01   100.5   200.5     0.4  0.5 100  50   1.0
     2     1     3  1.400E+02  1.100E+01   110.5   210.5     3.6  0.5 100  50   1.0
     0     0     4 -1.000E+00 -1.000E+01   110.5   210.5     3.6  0.5 100  50   1.0
!END_OF_DATA
"""
)


def test_kinds_are_told_by_content(tmp_path, shared_data):
    formats = shared_data / "formats"
    for name, kind in {
        "thermolysin_3crystals.expt": Kind.EXPERIMENTS,
        "thermolysin_3crystals.refl": Kind.REFLECTIONS,
        "lysozyme_3crystals.stream": Kind.STREAM,
    }.items():
        shutil.copy(formats / name, tmp_path / "file.dat")
        assert kind_of(tmp_path / "file.dat") is kind
    assert kind_of(shared_data / "thermolysin_unmerged" / "reference.mtz") is Kind.MTZ
    assert kind_of(shared_data / "lysosim" / "lysosim_master.h5") is Kind.HDF5
    for text, kind in (
        (XDS, Kind.XDS),
        ("; geometry\nclen = 0.1\np0/min_fs = 0 ; here\n", Kind.GEOMETRY),
        ("data_r1abcsf\n_cell.length_a 10\n", Kind.CIF),
        ("CRYST1   79.000   79.000   38.000\n", Kind.PDB),
        ("file.dat\n", Kind.LIST),
        ("", Kind.UNKNOWN),
        ("\0\0\0\1", Kind.UNKNOWN),
    ):
        (tmp_path / "text").write_text(text)
        assert kind_of(tmp_path / "text") is kind, text


def test_patterns_and_lists(tmp_path):
    for name in ("b.hkl", "a.hkl"):
        (tmp_path / name).write_text(XDS)
    (tmp_path / "files.lst").write_text("b.hkl\na.hkl\n")
    assert [f.name for f in expanded([str(tmp_path / "*.hkl")])] == ["a.hkl", "b.hkl"]
    assert [f.name for f in expanded([tmp_path / "files.lst"])] == ["b.hkl", "a.hkl"]
    for wrong in ("*.none", "none"):
        with pytest.raises(InputError, match="none"):
            list(expanded([str(tmp_path / wrong)]))


def test_two_files_of_xds_are_one_run(tmp_path):
    for name in ("a.hkl", "b.hkl"):
        (tmp_path / name).write_text(XDS)
    u = open_unmerged([str(tmp_path / "*.hkl")])
    assert list(u.image) == [0, 1, 2, 3] and u.space_group.hm == "P 43 21 2"
    np.testing.assert_allclose(u.J, [150, 140] * 2)
    assert u.excitation_error is None and u.wavelength == pytest.approx(0.97918)
    np.testing.assert_array_equal(u.hkl_asu[0], u.hkl_asu[1])  # 1 2 3 and 2 1 3 are mates


def test_dials_by_either_name(shared_data):
    pair = shared_data / "formats" / "thermolysin_3crystals"
    for suffixes in ((".expt",), (".refl",), (".refl", ".expt")):
        u = open_unmerged([pair.with_suffix(s) for s in suffixes])
        assert len(u) == 502 and u.image.max() == 2


def test_images_keep_their_names(shared_data):
    formats = shared_data / "formats"
    files = [formats / "thermolysin_3crystals.refl", formats / "lysozyme_3crystals.stream"]
    one = open_unmerged(files[:1])
    assert one.name(2) == read_experiments(files[0].with_suffix(".expt")).stills[1].identifier
    both = open_unmerged(files, gemmi.SpaceGroup("P 61 2 2"))
    assert both.name(4).endswith("PAL_2019_Apr01_r0000_062014_e88.h5")
    assert len(set(both.names.values())) == 6


def test_streams_need_a_space_group(shared_data):
    path = shared_data / "formats" / "lysozyme_3crystals.stream"
    with pytest.raises(InputError, match="--space-group"):
        open_unmerged([path])
    u = open_unmerged([path], gemmi.SpaceGroup("P 43 21 2"))
    assert len(u) == 618 and u.image.max() == 2
    # first line of the file's first table
    np.testing.assert_array_equal(u.hkl[0], [-37, 11, -7])
    assert (u.J[0], u.sigma[0]) == (-15.11, 20.15)


def test_files_that_hold_no_integrated_stills(tmp_path, shared_data):
    for path in (shared_data / "lysosim" / "lysosim_master.h5", tmp_path / "x.geom"):
        (tmp_path / "x.geom").write_text("clen = 1\n")
        with pytest.raises(InputError, match="no integrated stills"):
            open_unmerged([path])
    shutil.copy(shared_data / "formats" / "thermolysin_3crystals.expt", tmp_path / "a.expt")
    with pytest.raises(InputError, match=r"needs a\.refl beside it"):
        open_unmerged([tmp_path / "a.expt"])


def test_observations_have_intensities_by_the_name_before(tmp_path):
    """Scripts of others read ``data.intensity``."""
    path = tmp_path / "XDS_ASCII.HKL"
    path.write_text(XDS)
    data = open_unmerged([path])
    np.testing.assert_array_equal(data.intensity, data.J)
    assert len(data.J) == 2


def test_a_column_that_one_of_two_files_lacks_is_left_out(tmp_path):
    stills = UnmergedSimulation(n_images=5, each=30)
    whole = simulate_unmerged(stills).data
    files, parts = [], [part.data for part in simulate_in_parts(stills, 3)]
    for k, data in enumerate(parts):
        columns = {"BATCH": data.batch, "I": data.J, "SIGI": data.sigma}
        columns |= {"EPSILON_R": data.excitation_error} if k else {}
        headers = [new_batch(int(b), "", data.cell, 1.0) for b in np.unique(data.batch)]
        files.append(tmp_path / f"{k}.mtz")
        write_observations(
            files[-1], [(data.hkl, columns)], len(data), data.cell, data.space_group, headers
        )
    both, last = open_unmerged(files), open_unmerged(files[1:])
    assert both.excitation_error is None and last.excitation_error is not None
    np.testing.assert_array_equal(np.bincount(both.image), [30] * 5)
    np.testing.assert_array_equal(both.batch, both.image + 1)
    assert both.image.dtype == np.int32 and list(np.unique(parts[1].batch)) == [4, 5]
    # each file has the reflections of its images in another order
    first = np.sort(both.J[both.image == 0])
    np.testing.assert_allclose(first, np.sort(parts[0].J[parts[0].image == 0]), rtol=1e-6)
    everything = next(simulate_in_parts(stills, 5)).data
    np.testing.assert_array_equal(everything.J, whole.J)
