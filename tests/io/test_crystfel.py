"""CrystFEL's files: read against numbers of real ones, and written so that they read back."""

from __future__ import annotations

import gzip
from dataclasses import replace

import gemmi
import numpy as np
import pytest

from bayes_refine.geometry.detector import Beam, ray_to_pixel
from bayes_refine.io import crystfel_geometry as geom
from bayes_refine.io import crystfel_stream as streams
from bayes_refine.io import crystfel_write as writing
from bayes_refine.io.crystfel_geometry_text import parse_geometry
from bayes_refine.io.crystfel_unmerged import cell_of_header, unmerged_of_stream
from bayes_refine.util.errors import InputError

TWO_PANELS = """
; a comment
photon_energy = 9.7 keV
clen = 149.0 mm
adu_per_eV = 0.001 ; gain
res = 10000
dim0 = %
dim1 = ss
dim2 = fs
data = /entry/data/data
mask_edge_pixels = 1
mask = /mask
mask_good = 0x1

rigid_group_q = left,right
left/min_fs = 0
left/max_fs = 99
left/min_ss = 0
left/max_ss = 49
left/corner_x = -100.0
left/corner_y = -25.5
left/fs = +1.0x
left/ss = +y
right/min_fs = 0
right/max_fs = 79
right/min_ss = 50
right/max_ss = 89
right/corner_x = 10.0
right/corner_y = 20.0
right/fs = -0.6x +0.8y
right/ss = -0.8x -0.6y +0.0z
right/coffset = -0.001
bad_beam/min_x = -5
bad_beam/max_x = 5
bad_beam/min_y = -5
bad_beam/max_y = 5
badrow/min_fs = 10
badrow/max_fs = 12
badrow/min_ss = 60
badrow/max_ss = 60
badrow/panel = right
"""


def two_panels():
    return parse_geometry(TWO_PANELS, "two.geom")


def test_a_geometry_in_the_laboratory():
    g = two_panels()
    assert g.wavelength.value == pytest.approx(9700.0) and g.is_energy
    assert [p.shape for p in g.panels] == [(50, 100), (40, 80)]
    assert g.panels[0].axes == ["%", "ss", "fs"]
    assert g.panels[1].masks == ((0, geom.Mask(path="/mask", good=1)),)
    detector = g.detector(g.camera_length_m.value, 9700.0, (0.1, -0.2))
    # 10 px of 0.1 mm, shifted; z is the camera length and the panel's own offset
    np.testing.assert_allclose(detector.origin_mm[1], [1.0 + 0.1, 2.0 - 0.2, 148.0])
    np.testing.assert_allclose(detector.fast[1], [-0.6, 0.8, 0])
    np.testing.assert_allclose(detector.gain, 9.7)
    assert detector.untrusted[1][-1] == (10, 10, 13, 11)
    assert (0, 0, 100, 1) in detector.untrusted[0]
    assert geom.lab_region_mask(g, g.panels[0]).sum() == 5 * 9  # centres at x −4.5…−0.5 and y −4…4


def test_what_is_known_only_to_the_image_file():
    g = parse_geometry(
        TWO_PANELS.replace("149.0 mm", "/LCLS/enc").replace("9.7 keV", "/LCLS/energy eV")
    )
    assert g.camera_length_m == geom.Quantity(path="/LCLS/enc", factor=1e-3)  # mm without a unit
    assert g.wavelength.path == "/LCLS/energy" and not g.wavelength.known


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("left/corner_x = -100.0", "", "panel left lacks its place"),
        ("res = 10000", "res = big", "line 6: res"),
        ("left/ss = +y", "left/ss = north", "a direction is written as"),
        ("left/ss = +y", "left/ss = +x", "two directions"),
        ("left/max_fs = 99", "left/max_fs = -3", "its pixels"),
        ("clen = 149.0 mm", "clen = 149.0 km", "lengths are in m or mm"),
        ("photon_energy = 9.7 keV", "electron_voltage = 300 kV", "electron"),
        ("badrow/max_ss = 60\n", "", "bad region badrow: no max_ss"),
        ("rigid_group_q = left,right", "what is this", "no 'name = value'"),
    ],
)
def test_a_geometry_that_is_none(old, new, said):
    with pytest.raises(InputError, match=said):
        parse_geometry(TWO_PANELS.replace(old, new), "two.geom")


def crystal(**changes):
    r = streams.IntegratedReflections(
        hkl=np.array([[1, -2, 3], [4, 5, -6]], np.int32),
        intensity=np.array([10.5, -3.25]),
        sigma=np.array([2.0, 3.0]),
        peak=np.array([5.0, 1.0]),
        background=np.array([0.5, 0.25]),
        array_px=np.array([[10.5, 20.5], [30.0, 60.0]]),
        panel=np.array(["left", "right"], object),
    )
    A = np.diag([1 / 79.0, 1 / 79.0, 1 / 38.0])
    return replace(
        streams.StreamCrystal(A, "tetragonal", "P", "c", (0.01, -0.02), 3e-4, 0.4, r), **changes
    )


def chunk(n_crystals=1, **changes):
    return replace(
        streams.Chunk("run/images.h5", "//7", 1, 9700.0, 0.149, 1e-3, (crystal(),) * n_crystals, 0),
        **changes,
    )


def written(path, chunks, geometry=TWO_PANELS):
    cell = writing.cell_text(gemmi.UnitCell(79, 79, 38, 90, 90, 90), gemmi.SpaceGroup(96))
    text = "\n".join(writing.stream_lines(geometry, cell, chunks)) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["a.stream", "a.stream.gz"])
def test_a_stream_reads_back(tmp_path, name):
    path = written(tmp_path / name, [chunk(), chunk(0), chunk(2, event="", serial=5)])
    assert streams.is_stream(path)
    header, chunks = streams.read_stream(path)
    found = list(chunks)
    assert header.geometry.strip() == TWO_PANELS.strip()
    assert cell_of_header(header.cell).a == pytest.approx(79.0)
    assert [len(c.crystals) for c in found] == [1, 0, 2]
    assert [c.frame for c in found] == [7, 7, 0] and found[2].serial == 5
    one, true = found[0].crystals[0], crystal()
    np.testing.assert_allclose(one.A, true.A, atol=1e-8)
    np.testing.assert_array_equal(one.reflections.hkl, true.reflections.hkl)
    np.testing.assert_array_equal(one.reflections.array_px, true.reflections.array_px)
    np.testing.assert_allclose(one.reflections.sigma, true.reflections.sigma)
    assert one.shift_mm == (0.01, -0.02) and one.profile_radius == pytest.approx(3e-4)
    assert list(one.reflections.panel) == ["left", "right"]


def test_a_stream_as_unmerged(tmp_path):
    path = written(tmp_path / "a.stream", [chunk(2), chunk(0), chunk(1)])
    u = unmerged_of_stream(path, gemmi.SpaceGroup(96))
    assert list(u.image) == [0, 0, 1, 1, 2, 2]
    assert u.name(1) == "run/images.h5 //7 crystal 1" and u.name(3) == "run/images.h5 //7"
    wavelength = geom.HC_EV_ANGSTROM / 9700
    q = np.array([1 / 79, -2 / 79, 3 / 38])
    s = q + np.array([0, 0, 1 / wavelength])
    assert u.excitation_error[0] == pytest.approx(np.linalg.norm(s) - 1 / wavelength, abs=1e-8)
    # second reflection: panel right, 30 and 60 − 50 px from its corner, shifted by the crystal's
    right = np.array([1.0 + 0.01, 2.0 - 0.02])
    expected = right + 3.0 * np.array([-0.6, 0.8]) + 1.0 * np.array([-0.8, -0.6])
    np.testing.assert_allclose(u.xy_px[1], expected)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6])
def test_a_stream_cut_before_the_end_of_its_first_image_says_so(tmp_path, share):
    path = written(tmp_path / "a.stream", [chunk()])
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match=r"a\.stream"):
        unmerged_of_stream(path, gemmi.SpaceGroup(96))


GROUP = gemmi.SpaceGroup(96)


def damaged(tmp_path, replaced, by, of=3):
    """A stream of three images whose second has something replaced."""
    whole = written(tmp_path / "a.stream", [chunk(serial=k) for k in range(of)])
    parts = whole.read_text().split("----- Begin chunk -----")
    assert replaced in parts[2]
    parts[2] = parts[2].replace(replaced, by, 1)
    whole.write_text("----- Begin chunk -----".join(parts))
    return whole


@pytest.mark.parametrize(
    ("replaced", "by", "why"),
    [
        ("10.50", "ten", "a word for a number"),
        ("10.50", "10.50 3", "do not have ten columns"),
        ("astar", "bstar", "lacks astar"),
        ("----- End chunk -----", "", "does not end"),
        ("photon_energy_eV = ", "photon_energy_eV : ", "no photon"),
    ],
)
def test_an_image_that_cannot_be_read_costs_itself_only(tmp_path, replaced, by, why):
    path = damaged(tmp_path, replaced, by)
    found = unmerged_of_stream(path, GROUP)
    sound = unmerged_of_stream(written(tmp_path / "b.stream", [chunk(), chunk()]), GROUP)
    np.testing.assert_array_equal(found.J, sound.J)
    np.testing.assert_array_equal(found.image, sound.image)
    assert len(found.unread) == 1 and why in found.unread[0] and "a.stream" in found.unread[0]
    assert "one image cannot be read, the first: " in found.describe()


def test_a_stream_cut_short_keeps_its_whole_images(tmp_path):
    path = written(tmp_path / "a.stream", [chunk(serial=k) for k in range(3)])
    path.write_bytes(path.read_bytes()[:-40])
    found = unmerged_of_stream(path, GROUP)
    assert found.image.max() + 1 == 2
    assert found.unread == (f"{path}: " + found.unread[0].split(": ", 1)[1],)
    assert "is it complete?" in found.unread[0]


def test_of_a_stream_that_grows_complete_chunks_are_read(tmp_path):
    path = written(tmp_path / "a.stream", [chunk(), chunk()])
    whole = path.read_bytes()
    (ends,) = [[k for k in range(len(whole)) if whole.startswith(b"----- End chunk -----", k)]]
    begin = whole.index(b"----- Begin chunk -----")
    for cut in range(begin, len(whole), 37):
        path.write_bytes(whole[:cut])
        found = list(streams.read_stream(path, growing=True)[1])
        assert len(found) == sum(end + 21 <= cut for end in ends), cut


def test_of_a_damaged_compressed_stream_the_images_before_are_read(tmp_path):
    path = written(tmp_path / "a.stream.gz", [chunk(serial=k) for k in range(40)])
    content = bytearray(path.read_bytes())
    middle = int(0.9 * len(content))
    content[middle : middle + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    found = list(streams.read_stream(path)[1])
    assert len(found) > 1 and not found[0].unread
    assert "a.stream.gz: damaged after line" in found[-1].unread


def test_a_detector_written_as_a_geometry_predicts_the_same_places():
    """In a frame with the beam along −z, as DIALS has it: a turn about y."""
    turn = np.diag([-1.0, 1.0, -1.0])
    own = two_panels().detector(0.149, 9700.0)
    there = replace(
        own, origin_mm=own.origin_mm @ turn.T, fast=own.fast @ turn.T, slow=own.slow @ turn.T
    )
    beam = Beam(1.278, np.array([0.0, 0, -1]), np.array([0.0, 1, 0]))
    np.testing.assert_allclose(writing.crystfel_frame(beam), turn, atol=1e-12)
    again = parse_geometry(writing.geometry_text(writing.geometry_of(there, beam)))
    detector = again.detector(again.camera_length_m.value, again.wavelength.value)
    rays = np.random.default_rng(0).normal([-0.02, 0, 1], [0.02, 0.02, 0], (200, 3))
    rays /= np.linalg.norm(rays, axis=1)[:, None]
    panel, xy = ray_to_pixel(own, rays)
    assert (panel >= 0).sum() > 20
    panel_again, xy_again = ray_to_pixel(detector, rays)
    np.testing.assert_array_equal(panel_again, panel)
    np.testing.assert_allclose(xy_again, xy, atol=1e-3)


@pytest.mark.parametrize(
    ("group", "lattice", "laue"),
    [
        ("P 43 21 2", ("tetragonal", "P", "c"), "4/mmm"),
        ("C 1 2 1", ("monoclinic", "C", "b"), "2/m_uab"),
        ("P 31 2 1", ("hexagonal", "P", "c"), "-3m1_H"),
        ("P 31 1 2", ("hexagonal", "P", "c"), "-31m_H"),
        ("R 3 2:H", ("hexagonal", "H", "c"), "-3m1_H"),
        ("R 3:R", ("rhombohedral", "R", ""), "-3_R"),
        ("I 2 3", ("cubic", "I", ""), "m-3"),
    ],
)
def test_names_of_lattices(group, lattice, laue):
    group = gemmi.SpaceGroup(group)
    assert writing.lattice_of(group) == lattice and writing.laue_symbol(group) == laue


def test_a_reflection_list(tmp_path):
    columns = {"I": np.array([1.5, np.nan]), "SIGI": np.array([0.5, 1]), "N": np.array([3, 0])}
    hkl = np.array([[1, 2, 3], [4, 5, 6]])
    writing.write_hkl(tmp_path / "a.hkl", hkl, columns, gemmi.SpaceGroup(96))
    lines = (tmp_path / "a.hkl").read_text().splitlines()
    assert lines[1] == "Symmetry: 4/mmm" and lines[-1] == "End of reflections"
    assert lines[3].split() == ["1", "2", "3", "1.50", "-", "0.50", "3"] and len(lines) == 5


def test_a_stream_of_cheetah_and_xgandalf(shared_data):
    """32 crystals of C-centred 5-HT2B on 64 panels: predictions are the table's to its 0.1 px."""
    path = shared_data / "formats" / "crystfel_5ht2b_32crystals.stream"
    header, chunks = streams.read_stream(path)
    chunks = list(chunks)
    g = parse_geometry(header.geometry)
    assert len(g.panels) == 64 and len(chunks) == 70
    assert chunks[0].photon_energy_ev == pytest.approx(9510, abs=100)
    off = []
    for image in chunks:
        for one in image.crystals:
            offset = np.mean([p.offset_m for p in g.panels])
            detector = g.detector(
                image.camera_length_m - offset, image.photon_energy_ev, one.shift_mm
            )
            s = one.reflections.hkl @ one.A.T
            s[:, 2] += image.photon_energy_ev / geom.HC_EV_ANGSTROM
            panel, xy = ray_to_pixel(detector, s / np.linalg.norm(s, axis=1)[:, None])
            hit = panel >= 0
            first = np.array([[p.fs_range[0], p.ss_range[0]] for p in g.panels])
            off.append(xy[hit] + first[panel[hit]] - one.reflections.array_px[hit])
    off = np.concatenate(off)
    assert len(off) > 7000
    # rounded to 0.1 px, uniform: 0.029; a few lie on another panel across a gap
    assert np.median(np.abs(off)) < 0.03
    u = unmerged_of_stream(path, gemmi.SpaceGroup("C 2 2 21"))
    assert u.image.max() == 31 and len(u) == 7966
    assert np.abs(u.excitation_error).max() < 0.0025
