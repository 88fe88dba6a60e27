"""MTZ files read back by gemmi and by reciprocalspaceship."""

import tracemalloc
from pathlib import Path

import gemmi
import numpy as np
import pytest
import reciprocalspaceship as rs

from bayes_refine.geometry.crystal import Crystal, rotation_matrix
from bayes_refine.geometry.detector import Beam, Detector
from bayes_refine.geometry.experiments import Still
from bayes_refine.geometry.miller import unique_hkl
from bayes_refine.geometry.symmetry import asu_map
from bayes_refine.io import unmerged
from bayes_refine.io.mtz import batches_of, write_merged, write_observations, write_unmerged
from bayes_refine.io.unmerged import Unmerged, usable, usable_observations
from bayes_refine.io.unmerged_mtz import read_unmerged
from bayes_refine.util import large_arrays
from bayes_refine.util.errors import InputError

GROUP = gemmi.SpaceGroup("P 61 2 2")
CELL = gemmi.UnitCell(93.99, 93.99, 130.87, 90, 90, 120)


def make_still(k):
    B = np.array(CELL.frac.mat.tolist()).T
    one = np.ones(1)
    panel = Detector(
        *(np.zeros((1, 3)) for _ in range(3)), np.ones((1, 2)), np.ones((1, 2), int),
        np.ones((1, 2)), one, one, one, one,
    )  # fmt: skip
    return Still(
        identifier=f"still-{k}",
        image_path=Path("x.h5"),
        frame=k,
        beam=Beam(1.3 + 0.01 * k, np.array([0.0, 0.0, -1.0]), np.array([0.0, 1.0, 0.0])),
        detector=panel,
        crystal=Crystal(A=rotation_matrix([200.0 * k, 100.0, 50.0]) @ B, hall=GROUP.hall),
    )


@pytest.fixture
def run():
    """Random observations on images 1, 2 and 4 of four."""
    rng = np.random.default_rng(0)
    n = 400
    columns = {
        "BATCH": rng.choice([1, 2, 4], n),
        "I": rng.normal(100, 50, n),
        "SIGI": rng.uniform(1, 9, n),
        "PARTIALITY": rng.uniform(0, 1, n),
        "EPSILON_R": rng.normal(0, 1e-3, n),
        "SCALE": rng.uniform(0, 2, n),
        "IMODEL": rng.exponential(90, n),
        "XDET": rng.uniform(0, 2000, n),
        "YDET": rng.uniform(0, 2000, n),
        "FREE": rng.uniform(size=n) < 0.1,
    }
    hkl = rng.integers(-4, 5, (n, 3))  # few, so that observations repeat
    return hkl, columns, [make_still(k) for k in range(4)]


@pytest.fixture
def written(run, tmp_path):
    hkl, columns, stills = run
    path = tmp_path / "unmerged.mtz"
    write_unmerged(path, hkl, columns, CELL, GROUP, stills)
    return path


def test_unmerged_by_gemmi(run, written):
    hkl, columns, stills = run
    mtz = gemmi.read_mtz_file(str(written))
    types = {c.label: c.type for c in mtz.columns}
    assert types == dict(
        H="H", K="H", L="H", BATCH="B", I="J", SIGI="Q", PARTIALITY="R", EPSILON_R="R",
        SCALE="R", IMODEL="J", XDET="R", YDET="R", FREE="I", **{"M/ISYM": "Y"},
    )  # fmt: skip
    assert [b.number for b in mtz.batches] == [1, 2, 3, 4]
    for header, still in zip(mtz.batches, stills, strict=True):
        assert header.title == f"TITLE {still.identifier}"  # as gemmi 0.7 reads it
        assert header.wavelength == pytest.approx(still.beam.wavelength)
        assert header.cell.parameters == pytest.approx(still.crystal.cell.parameters, rel=1e-5)
        U = np.array([header.floats[k] for k in range(6, 15)]).reshape(3, 3).T
        np.testing.assert_allclose(U, still.crystal.U, atol=1e-6)
    asu = gemmi.ReciprocalAsu(GROUP)
    assert all(asu.is_in(h) for h in mtz.make_miller_array().tolist())
    keys = [tuple(row) for row in mtz.array[:, :5].tolist()]
    assert keys == sorted(keys) and mtz.sort_order == [1, 2, 3, 4, 5]
    assert mtz.switch_to_original_hkl()  # gemmi's own reading of our M/ISYM
    got = sorted(zip(mtz.make_miller_array().tolist(), mtz.column_with_label("I"), strict=True))
    want = sorted(zip(hkl.tolist(), columns["I"].astype(np.float32), strict=True))
    assert got == want


def test_unmerged_by_reciprocalspaceship(run, written):
    hkl, columns, _ = run
    data = rs.read_mtz(str(written))
    assert not data.merged and data.spacegroup.number == 178
    assert [str(data[c].dtype) for c in ("BATCH", "I", "SIGI", "PARTIALITY", "FREE")] == [
        "Batch", "Intensity", "Stddev", "MTZReal", "MTZInt",
    ]  # fmt: skip
    data = data.reset_index().sort_values("I")  # rs has restored the observed indices
    order = np.argsort(columns["I"])
    assert np.array_equal(data[["H", "K", "L"]].to_numpy(int), hkl[order])
    for label, values in columns.items():
        np.testing.assert_allclose(data[label].to_numpy(float), values[order], rtol=1e-6)


def test_unmerged_round_trip(run, written):
    hkl, columns, _ = run
    got = read_unmerged(written)
    order, back = np.argsort(columns["I"]), np.argsort(got.J)
    assert np.array_equal(got.hkl[back], hkl[order])
    assert np.array_equal(got.batch[back], columns["BATCH"][order])
    assert np.array_equal(got.image, np.array([-1, 0, 1, -1, 2])[got.batch])
    np.testing.assert_allclose(got.excitation_error[back], columns["EPSILON_R"][order], rtol=1e-6)
    np.testing.assert_allclose(got.xy_px[back, 1], columns["YDET"][order], rtol=1e-6)


@pytest.mark.parametrize("lost", [0, 400])
def test_blocks_make_the_file_that_gemmi_writes_of_the_whole(run, written, tmp_path, lost):
    """To the byte, also of a column without a number; only a block is in memory."""
    hkl, columns, stills = run
    columns = columns | {"SCALE": np.where(np.arange(len(hkl)) < lost, np.nan, columns["SCALE"])}
    asu = asu_map(hkl, GROUP)[0]
    codes = unique_hkl(asu)[1]

    def blocks():
        for some in np.array_split(np.arange(codes.max() + 1), 7):
            rows = np.isin(codes, some)
            yield hkl[rows], {label: values[rows] for label, values in columns.items()}

    path = tmp_path / "blocks.mtz"
    write_observations(path, blocks(), len(hkl), CELL, GROUP, batches_of(stills))
    mtz = gemmi.read_mtz_file(str(path))
    assert mtz.nreflections == len(hkl)
    until_batches = [x.split(b"MTZBATS")[0] for x in (path.read_bytes(), mtz.write_to_bytes())]
    assert until_batches[0] == until_batches[1]  # gemmi changes titles of batches that it read
    assert lost or path.read_bytes() == written.read_bytes()
    assert not list(tmp_path.glob("*.part"))


def test_unmerged_refuses_nonsense(run, tmp_path):
    hkl, columns, stills = run
    for change in ({"BATCH": columns["BATCH"] + 1}, {"I": columns["I"][:3]}, {"SIZE": hkl[:, 0]}):
        with pytest.raises(ValueError, match=r"BATCH|column I|SIZE"):
            write_unmerged(tmp_path / "x.mtz", hkl, columns | change, CELL, GROUP, stills)
    with pytest.raises(InputError, match=r"x\.mtz: cannot be written"):
        write_unmerged(tmp_path / "no" / "x.mtz", hkl, columns, CELL, GROUP, stills)


def test_merged_by_both(tmp_path):
    hkl = np.array([[5, 2, 1], [3, 1, -0], [3, 0, 7]])
    columns = {
        "IMEAN": ("J", np.array([1.5, -2.0, np.nan])),
        "SIGIMEAN": ("Q", np.array([1.0, 2.0, 3.0])),
        "FPOST": ("F", np.array([1.0, 1.0, 4.0])),
        "N": ("I", np.array([7, 1, 0])),
        "I(+)": ("K", np.array([1.0, 2.0, 3.0])),
        "SIGI(+)": ("M", np.array([1.0, 2.0, 3.0])),
    }
    path = tmp_path / "merged.mtz"
    write_merged(path, hkl, columns, CELL, GROUP, 1.27)
    mtz = gemmi.read_mtz_file(str(path))
    assert [(c.label, c.type) for c in mtz.columns][3:] == [(k, t) for k, (t, _) in columns.items()]
    assert mtz.datasets[1].wavelength == pytest.approx(1.27) and not mtz.batches
    data = rs.read_mtz(str(path))
    assert data.merged and data.index.tolist() == [(3, 0, 7), (3, 1, 0), (5, 2, 1)]
    np.testing.assert_array_equal(data["IMEAN"].to_numpy(float), [np.nan, -2.0, 1.5])
    assert data["N"].to_numpy().tolist() == [0, 1, 7]


def test_real_unmerged_file(shared_data):
    path = shared_data / "thermolysin_unmerged" / "unmerged_plus.mtz"
    got = read_unmerged(path)
    assert len(got) == 75_619 and got.image.max() + 1 == 395
    data = rs.read_mtz(str(path))  # observed indices
    assert np.array_equal(np.array(data.index.to_list()), got.hkl)
    assert np.array_equal(data["I"].to_numpy(float), got.J)
    assert np.array_equal(data["ewald_offset"].to_numpy(float), got.excitation_error)
    np.testing.assert_array_equal(data["xobs"].to_numpy(float), got.xy_px[:, 0])


def test_bad_files_are_named(tmp_path, shared_data):
    with pytest.raises(InputError, match=r"gone\.mtz: no such file"):
        read_unmerged(tmp_path / "gone.mtz")
    (tmp_path / "text.mtz").write_text("hello " * 50)
    with pytest.raises(InputError, match=r"text\.mtz: not an MTZ"):
        read_unmerged(tmp_path / "text.mtz")
    with pytest.raises(InputError, match=r"reference\.mtz: this is a merged MTZ"):
        read_unmerged(shared_data / "thermolysin_unmerged" / "reference.mtz")
    empty = gemmi.Mtz(with_base=True)
    empty.spacegroup = GROUP
    empty.set_cell_for_all(CELL)
    empty.set_data(np.zeros((0, 3), np.float32))
    empty.write_to_file(str(tmp_path / "empty.mtz"))
    with pytest.raises(InputError, match=r"empty\.mtz: no reflections"):
        read_unmerged(tmp_path / "empty.mtz")
    one = {"BATCH": np.ones(1), "I": np.ones(1), "SIGI": np.zeros(1)}
    hkl = np.array([[1, 2, 3]])
    write_unmerged(tmp_path / "zero.mtz", hkl, one, CELL, GROUP, [make_still(0)])
    with pytest.raises(InputError, match=r"zero\.mtz: no reflection with .* positive sigma"):
        read_unmerged(tmp_path / "zero.mtz")
    none = {label: values[:0] for label, values in one.items()}
    with pytest.raises(InputError, match=r"none\.mtz: no reflection to write"):
        write_unmerged(tmp_path / "none.mtz", hkl[:0], none, CELL, GROUP, [])


def test_usable_observations_are_not_copied(monkeypatch):
    """The check of n rows takes far less memory than the columns of n rows have, 84 B a row."""
    monkeypatch.setattr(large_arrays, "SLICE", 5000)
    monkeypatch.setattr(unmerged, "ENOUGH", 5000)
    n, rng = 100_000, np.random.default_rng(0)
    data = Unmerged.observed(
        hkl=rng.integers(1, 12, (n, 3)).astype(np.int32),
        batch=np.arange(n) // 100 + 1,
        space_group=GROUP,
        J=rng.normal(100, 10, n),
        sigma=np.ones(n),
        excitation_error=rng.normal(0, 1e-4, n),
        xy_px=rng.uniform(0, 100, (n, 2)),
        cell=CELL,
        source="rows",
    )
    tracemalloc.start()
    try:
        assert usable(data) is data
        assert tracemalloc.get_traced_memory()[1] < 20 * n
    finally:
        tracemalloc.stop()
    data.J[3] = np.nan
    left = usable(data)
    assert len(left) == n - 1 and left.left_out == {"without an intensity": 1}
    np.testing.assert_array_equal(left.image, data.image[np.arange(n) != 3])


def test_rows_are_left_out_for_the_same_reasons_slice_by_slice(monkeypatch):
    rng, n = np.random.default_rng(1), 200
    J, sigma, offset = rng.normal(100, 10, n), np.ones(n), rng.normal(0, 1e-4, n)
    batch = np.arange(n) // 10 + 1.0
    for values, bad in (
        (J, np.nan), (sigma, np.nan), (sigma, -1.0), (batch, 1.5), (offset, np.nan), (offset, 9.0),
        (J, 1e20), (sigma, 1e-20),
    ):  # fmt: skip
        values[rng.permutation(n)[:5]] = bad
    hkl = rng.integers(1, 12, (n, 3)).astype(float)
    hkl[[3, 100]] = 0.5
    hkl[[40, 41, 42]] = 300.0
    columns = {"hkl": hkl, "J": J, "sigma": sigma, "batch": batch, "excitation_error": offset}
    whole = usable_observations(columns, CELL, GROUP, "rows", 1.0)
    assert len(whole.left_out) == 10
    monkeypatch.setattr(large_arrays, "SLICE", 7)
    parts = usable_observations(columns, CELL, GROUP, "rows", 1.0)
    assert list(parts.left_out.items()) == list(whole.left_out.items())
    np.testing.assert_array_equal(parts.J, whole.J)
    np.testing.assert_array_equal(parts.empty, whole.empty)
    with pytest.raises(InputError, match=r"(\d+) of \1 rows have d below half"):
        usable_observations({**columns, "hkl": hkl * 0 + 300}, CELL, GROUP, "rows", 1.0)
