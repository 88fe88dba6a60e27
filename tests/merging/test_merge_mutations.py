"""Damaged unmerged files: a clean sentence, or finite numbers from the rows that are left.

Files are damaged by seed (``damage``), read, and taken as far as what a fit is conditioned on; a
few small ones are merged whole.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import gemmi
import numpy as np
import pytest

from bayes_refine import load_model
from bayes_refine.io.unmerged import Unmerged
from bayes_refine.io.unmerged_mtz import Columns, read_unmerged
from bayes_refine.merging.merge import all_images, image_table, merge_run, mergeable
from bayes_refine.simulation.unmerged import UnmergedSimulation, simulate_unmerged
from bayes_refine.util.errors import InputError

from ..damage import damaged_bytes, damaged_numbers
from ..outcomes import check_inspected, check_sentence, here
from ..sane import check_unmerged

SMALL = UnmergedSimulation(n_images=8, each=60, n_unique=150, d_min=3.5)
LABELS = {"I": "J", "SIGI": "Q", "BATCH": "B", "EPSILON_R": "R", "XDET": "R", "YDET": "R"}


@lru_cache
def sound() -> Unmerged:
    return simulate_unmerged(SMALL).data


@pytest.fixture(scope="module")
def data() -> Unmerged:
    return sound()


def write(path: Path, table: np.ndarray, labels=LABELS, group="P 41 21 2", cell=None) -> Path:
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = gemmi.SpaceGroup(group)
    mtz.set_cell_for_all(cell or gemmi.UnitCell(40, 40, 60, 90, 90, 90))
    mtz.add_dataset("d").wavelength = 1.3
    for label, kind in labels.items():
        mtz.add_column(label, kind)
    with np.errstate(over="ignore"):
        mtz.set_data(np.asarray(table, np.float32))
    mtz.write_to_file(str(path))
    return path


def table_of(data: Unmerged) -> np.ndarray:
    place = np.tile([100.0, 200.0], (len(data), 1))
    columns = (data.J, data.sigma, data.batch, data.excitation_error, place)
    return np.column_stack([data.hkl, *columns])


def damaged(rng: np.random.Generator, path: Path, data: Unmerged, kind: int) -> Path:
    table = table_of(data)
    if kind == 0:  # numbers
        return write(path, damaged_numbers(rng, table))
    if kind == 1:  # bytes
        write(path, table)
        path.write_bytes(damaged_bytes(rng, path.read_bytes()))
        return path
    if kind == 2:  # a few rows
        rows = rng.integers(len(table), size=int(rng.choice([0, 1, 2, 5, 60])))
        return write(path, damaged_numbers(rng, table[rows]) if len(rows) else table[rows])
    if kind == 3:  # names, symmetry, cell
        named = dict(LABELS)
        for label in rng.choice(list(LABELS), int(rng.integers(3)), replace=False):
            named[str(rng.choice(["M/ISYM", "IMEAN", "ewald_offset", "i"])) + label[:1]] = (
                named.pop(str(label))
            )
        group = str(rng.choice(["P 1", "F m -3 m", "P 31 2 1", "I 41"]))
        cell = gemmi.UnitCell(*rng.choice([1.0, 2.0, 40.0, 400.0, 4e4], 3), 90, 90, 90)
        return write(path, table, named, group, cell)
    one = table[:, [0, 1, 2, 3, 4, 5]]  # many images, or one; each reflection once
    one[:, 5] = rng.choice([1, 7, np.nan]) if rng.integers(2) else np.arange(len(one))
    if rng.integers(2):
        one = one[np.unique(one[:, :3], axis=0, return_index=True)[1]]
    return write(path, one, {k: LABELS[k] for k in ("I", "SIGI", "BATCH")})


def outcome(rng: np.random.Generator, folder: Path) -> str:
    """What became of a damaged file."""
    path = damaged(rng, folder / "in.mtz", sound(), int(rng.integers(5)))
    check_inspected(path)
    try:
        names = (None, "I", "SIGI", "X") if rng.random() < 0.2 else (None,)
        labels = Columns(*[names[k] for k in rng.integers(len(names), size=3)])
        whole = read_unmerged(path, labels=labels)
        found = check_unmerged(whole, float(rng.choice([0.0, 0.0, 4.0, 60.0])))
    except InputError as error:
        check_sentence(error, path.name)
        return "refused"
    n_rows = gemmi.read_mtz_file(str(path)).nreflections
    assert len(found) + sum(found.left_out.values()) == n_rows
    return "left out" if found.left_out else "read"


KINDS = {"unmerged MTZ": outcome}


def test_a_damaged_file_is_read_or_refused(tmp_path):
    assert {"refused", "left out"} <= set(here(KINDS, 0, 50, tmp_path)["unmerged MTZ"])


@pytest.mark.slow
@pytest.mark.parametrize("block", range(1, 11))
def test_many_damaged_files(tmp_path, block):
    assert {"refused", "left out"} <= set(here(KINDS, block, 100, tmp_path)["unmerged MTZ"])


def test_a_row_that_is_no_observation_costs_that_row_only(tmp_path, data):
    """Each reason is counted; what is left is what was read without these rows."""
    table = table_of(data)
    bad = [
        (3, np.nan, "without an intensity"),
        (3, 1e30, "with I or sigma beyond"),
        (4, np.nan, "without a sigma"),
        (4, 0.0, "with a sigma that is not positive"),
        (4, -1.0, "with a sigma that is not positive"),
        (5, np.nan, "without a batch number"),
        (6, np.nan, "without an Ewald offset"),
        (6, 1e30, "with an Ewald offset longer than 1/d"),
        (0, np.nan, "without whole indices H K L"),
        (0, 150.0, "with d below half the wavelength"),
    ]
    for row, (column, value, _) in enumerate(bad):
        table[row, column] = value
    found = read_unmerged(write(tmp_path / "a.mtz", table))
    assert len(found) == len(data) - len(bad) and sum(found.left_out.values()) == len(bad)
    for _, _, reason in bad:
        assert any(name.startswith(reason) for name in found.left_out), reason
    np.testing.assert_allclose(found.J, data.J[len(bad) :], rtol=1e-6)
    assert f"{len(bad)} rows left out: " in found.describe()


def test_columns_that_are_something_else(tmp_path, data):
    table = table_of(data)
    table[:, 6] *= 1e6
    with pytest.raises(InputError, match=r"longer than 1/d: the column is not in Å⁻¹"):
        read_unmerged(write(tmp_path / "a.mtz", table))
    table = table_of(data)
    table[:, 6] = np.nan
    assert read_unmerged(write(tmp_path / "b.mtz", table)).excitation_error is None
    with pytest.raises(InputError, match=r"no column IPR.*--intensity-column"):
        read_unmerged(tmp_path / "b.mtz", labels=Columns(intensity="IPR"))


def test_names_group_and_cell_that_a_user_gives(tmp_path, data):
    labels = {"IPR": "J", "SIGIPR": "Q", "SHOT": "I"}
    path = write(tmp_path / "a.mtz", table_of(data)[:, :6], labels, "P 1")
    with pytest.raises(InputError, match="no column I"):
        read_unmerged(path)
    cell = gemmi.UnitCell(40.1, 40.1, 60.2, 90, 90, 90)
    found = read_unmerged(path, data.space_group, cell, Columns("IPR", None, "SHOT"))
    np.testing.assert_allclose(found.sigma, data.sigma, rtol=1e-6)  # SIGIPR, by its name
    np.testing.assert_array_equal(found.hkl_asu, data.hkl_asu)
    assert found.cell.parameters == cell.parameters and found.excitation_error is None


def test_what_cannot_be_merged(data):
    one = replace(data, image=0 * data.image, batch=0 * data.batch + 7)
    with pytest.raises(InputError, match=r"all 480 usable rows are of one image, batch 7"):
        mergeable(one, 0.0)
    far = replace(data, cell=gemmi.UnitCell(4000, 4000, 6000, 90, 90, 90), wavelength=0.0)
    far = replace(far, hkl=data.hkl * 500, hkl_asu=data.hkl_asu * 500)
    with pytest.raises(InputError, match=r"reflections are possible to .*: give --d-min"):
        mergeable(far, 0.0)
    first = np.zeros(len(data), bool)
    first[np.unique(data.hkl_asu, axis=0, return_index=True)[1]] = True
    with pytest.raises(InputError, match="no reflection occurs twice"):
        mergeable(data.select(first, "again"), 0.0)
    for scale in (0.0, -1.0):
        with pytest.raises(InputError, match="simulated: the mean intensity is positive in no"):
            merge_run(replace(data, J=scale * np.abs(data.J)), load_model("latent"))


def test_one_wild_number_leaves_the_others_as_they_were(data):
    """10³⁰ in one I, in one ε_r, or none: scales and all other intensities agree within errors."""
    model = load_model("latent")
    wild_I, wild_offset = np.array(data.J), np.array(data.excitation_error)
    wild_I[7], wild_offset[7] = 1e30, 1e30
    without = np.arange(len(data)) != 7
    expected = merge_run(data.select(without, "on purpose"), model)
    for change in ({"J": wild_I}, {"excitation_error": wild_offset}):
        run = merge_run(replace(data, **change), model)
        assert sum(run.data.left_out.values()) == 1
        np.testing.assert_array_equal(run.scaled.log_G, expected.scaled.log_G)
        np.testing.assert_array_equal(
            run.intensities.posterior.intensity, expected.intensities.posterior.intensity
        )


def test_an_image_without_a_usable_row_has_a_row_in_the_table(data):
    """Rows of image 3 are no observations: 7 images are fitted, 8 have a row."""
    sigma = np.where(data.image == 3, -1.0, data.sigma)
    run = merge_run(replace(data, sigma=sigma), load_model("latent"))
    table = all_images(run, image_table(run))
    assert table["identifier"].tolist() == [str(k) for k in range(1, 9)]
    assert table["status"][3] == "too few reflections (no usable row)"
    assert table["n_reflections"].tolist() == [60, 60, 60, 0, 60, 60, 60, 60]
    assert np.isnan(table["G"][3]) and np.isfinite(np.delete(table["G"].astype(float), 3)).all()
