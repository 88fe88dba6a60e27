"""Damaged references and priors: a clean sentence or finite numbers, never anything else.

Bytes, lines and numbers of good files are damaged by seed (``damage``): one in a hundred by
default, the rest marked slow.
"""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gemmi
import numpy as np
import pytest

from bayes_refine.io.gemmi_files import cell_of, space_group_of
from bayes_refine.io.reference import Given, read_reference
from bayes_refine.physics.priors import Priors, read_priors
from bayes_refine.physics.reference import check_usable
from bayes_refine.util.errors import InputError

from ..damage import damaged_bytes, damaged_numbers, damaged_text
from ..outcomes import Case, check_inspected, check_sentence, here

CELL, GROUP = gemmi.UnitCell(30, 30, 40, 90, 90, 90), gemmi.SpaceGroup("P 41 21 2")
HKL = gemmi.make_miller_array(CELL, GROUP, 4.0)
MADE = Given(CELL, GROUP)
GROUPS = ("", "P 1", "P 21 21 21", "R 3 :H", "P 99", "F m -3 m", "C 1 2 1")
CELLS = ((0, 0, 0, 0, 0, 0), (1, 1, 1, 90, 90, 90), (30, 30, 40, 90, 90, 180), (-3, 3, 3, 9, 9, 9),
         (3e4, 3e4, 3e4, 90, 90, 90), (30, 30, 40, 10, 10, 170), (np.nan,) * 6)  # fmt: skip


def intensities() -> np.ndarray:
    return np.random.default_rng(0).exponential(100.0, len(HKL))


def mtz(rng: np.random.Generator, path: Path, damage: str) -> Path:
    """Types, labels, numbers, header or bytes of an MTZ of six columns."""
    I = intensities()  # noqa: E741
    table = np.column_stack([HKL, np.sqrt(I), np.full(len(I), 2.0), I])
    types, labels = ["F", "Q", "J"], ["F", "SIGF", "IMEAN"]
    made = gemmi.Mtz(with_base=True)
    group, cell = GROUP, CELL
    if damage == "header":
        group = gemmi.find_spacegroup_by_name(str(rng.choice(GROUPS)))
        cell = gemmi.UnitCell(*CELLS[rng.integers(len(CELLS))])
    made.spacegroup = group or GROUP
    made.set_cell_for_all(cell)
    made.add_dataset("d")
    if damage == "columns":
        types = [str(x) for x in rng.choice(list("FJKGPQIBDEMLRWA"), 3)]
        names = ["F", "FWT", "BATCH", "I(+)", "I(-)", "M/ISYM", "", "F\u00e9", "SIGF", "x" * 30]
        labels = [str(x) for x in rng.choice(names, 3)]
    for label, kind in zip(labels, types, strict=True):
        made.add_column(label, kind)
    if damage == "numbers":
        table = damaged_numbers(rng, table)
    made.set_data(np.asarray(table, np.float32))
    made.write_to_file(str(path))
    if group is None:
        unknown = path.read_bytes().replace(b"P 41 21 2", b"P 99     ").replace(b" 92 ", b"  0 ")
        path.write_bytes(unknown)
    if damage == "bytes":
        path.write_bytes(damaged_bytes(rng, path.read_bytes()))
    return path


def cif_text() -> str:
    head = "".join(
        f"_cell.{name} {value}\n"
        for name, value in zip(
            ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"),
            CELL.parameters, strict=True,
        )
    )  # fmt: skip
    names = (
        "index_h",
        "index_k",
        "index_l",
        "status",
        "F_meas_au",
        "intensity_meas",
        "pdbx_I_plus",
    )
    loop = "loop_\n" + "".join(f"_refln.{name}\n" for name in names)
    rows = "".join(
        f"{' '.join(map(str, h))} o {x**0.5:.2f} {x:.1f} {x:.1f}\n"
        for h, x in zip(HKL.tolist(), intensities(), strict=True)
    )
    return f"data_r\n{head}_symmetry.space_group_name_H-M 'P 41 21 2'\n{loop}{rows}"


def cif(rng: np.random.Generator, path: Path, damage: str) -> Path:
    text = cif_text()
    if damage == "bytes":
        path.write_bytes(damaged_bytes(rng, text.encode()))
    else:
        path.write_text(damaged_text(rng, text), encoding="utf-8")
    return path


def structure() -> gemmi.Structure:
    rng = np.random.default_rng(1)
    chain = gemmi.Chain("A")
    for i in range(12):
        residue = gemmi.Residue()
        residue.name, residue.seqid = "ALA", gemmi.SeqId(str(i + 1))
        for name, element in (("N", "N"), ("CA", "C"), ("C", "C"), ("O", "O")):
            atom = gemmi.Atom()
            atom.name, atom.element = name, gemmi.Element(element)
            atom.pos = gemmi.Position(*rng.uniform(2, 20, 3))
            atom.b_iso, atom.occ = 20.0, 1.0
            residue.add_atom(atom)
        chain.add_residue(residue)
    model = gemmi.Model(1)
    model.add_chain(chain)
    made = gemmi.Structure()
    made.add_model(model)
    made.cell, made.spacegroup_hm = CELL, GROUP.hm
    turn = gemmi.Transform()
    turn.vec.fromlist([5.0, 6.0, 7.0])
    made.ncs.append(gemmi.NcsOp(turn, "2", False))
    made.setup_entities()
    return made


def pdb(rng: np.random.Generator, path: Path, damage: str) -> Path:
    text = structure().make_pdb_string()
    if damage == "bytes":
        path.write_bytes(damaged_bytes(rng, text.encode()))
    else:
        path.write_text(damaged_text(rng, text), encoding="utf-8")
    return path


def model_cif(rng: np.random.Generator, path: Path, damage: str) -> Path:
    text = structure().make_mmcif_document().as_string()
    if damage == "bytes":
        path.write_bytes(damaged_bytes(rng, text.encode()))
    else:
        path.write_text(damaged_text(rng, text), encoding="utf-8")
    return path


def atoms(rng: np.random.Generator, path: Path, damage: str) -> Path:
    """Numbers of atoms that should not be there, in mmCIF, which can hold them."""
    made = structure()
    table = np.array([[*a.atom.pos, a.atom.b_iso, a.atom.occ] for a in made[0].all()])
    for found, row in zip(made[0].all(), damaged_numbers(rng, table), strict=True):
        found.atom.pos = gemmi.Position(*row[:3])
        found.atom.b_iso, found.atom.occ = float(row[3]), float(row[4])
    made.make_mmcif_document().write_file(str(path))
    return path


def packed(rng: np.random.Generator, path: Path, damage: str) -> Path:
    data = gzip.compress(cif_text().encode())
    path = path.with_suffix(".cif.gz")
    path.write_bytes(damaged_bytes(rng, data) if damage == "bytes" else damaged_bytes(rng, b"MTZ "))
    return path


Maker = Callable[[np.random.Generator, Path, str], Path]
SOURCES: tuple[tuple[Maker, str], ...] = (
    *((mtz, damage) for damage in ("bytes", "numbers", "columns", "header")),
    *((maker, damage) for maker in (cif, pdb, model_cif) for damage in ("bytes", "text")),
    (atoms, "numbers"),
    (packed, "bytes"),
    (packed, "short"),
)


def outcome(make: Maker, damage: str, rng: np.random.Generator, folder: Path) -> str:
    """What became of a damaged reference."""
    path = make(rng, folder / "in.dat", damage)
    check_inspected(path)
    column = (None, None, None, "F", "I")[rng.integers(5)]
    try:
        found = read_reference(path, column, 4.0, MADE if rng.integers(2) else None)
        assert len(found.hkl) == len(found.intensity) > 0
        assert np.isfinite(found.intensity).all() and np.isfinite(found.d).all()
        assert (found.d >= 4.0 - 1e-4).all() and (found.d < 1e5).all()
        assert "\n" not in found.describe() and "nan" not in found.describe().split(": ", 1)[1]
        check_usable(found)
    except InputError as error:
        check_sentence(error, path.name)
        return "refused"
    return "read"


REFERENCES = {
    f"reference {make.__name__}, {damage}": partial(outcome, make, damage)
    for make, damage in SOURCES
}


def test_a_damaged_reference_is_read_or_refused(tmp_path):
    found = sum(here(REFERENCES, 0, 5, tmp_path).values(), Counter())
    assert set(found) == {"read", "refused"}


@pytest.mark.slow
@pytest.mark.parametrize("block", range(1, 13))
def test_many_damaged_references(tmp_path, block):
    found = sum(here(REFERENCES, block, 13, tmp_path).values(), Counter())
    assert set(found) == {"read", "refused"}  # neither everything nor nothing


# -- priors and options ------------------------------------------------------------------------

GOOD = "R0_inv_angstrom = 5e-4\nB_mean = 3.0\nB_sd = 20\nstudent_t_nu = inf\nbandwidth = 1e-3\n"


def prior_outcome(rng: np.random.Generator, folder: Path) -> str:
    """What became of a damaged file of priors."""
    path = folder / "p.toml"
    if rng.integers(3) == 0:
        path.write_bytes(damaged_bytes(rng, GOOD.encode()))
    else:
        path.write_text(damaged_text(rng, GOOD), encoding="utf-8")
    check_inspected(path)
    try:
        found = read_priors(path, Priors())
    except InputError as error:
        check_sentence(error, path.name)
        return "refused"
    assert 0 < found.R0_inv_angstrom <= 0.1 and abs(found.B_mean) <= 1e3
    return "read"


PRIORS: dict[str, Case] = {"priors": prior_outcome}
KINDS = REFERENCES | PRIORS


def test_damaged_priors(tmp_path):
    assert set(here(PRIORS, 0, 60, tmp_path)["priors"]) == {"read", "refused"}


@pytest.mark.slow
def test_many_damaged_priors(tmp_path):
    assert set(here(PRIORS, 1, 2000, tmp_path)["priors"]) == {"read", "refused"}


def test_damaged_cells_and_space_groups():
    """Either the cell or group that was meant, or a sentence."""
    for seed in range(300):
        rng = np.random.default_rng(seed)
        for good, read_text, option in (
            ("79,79,38,90,90,90", cell_of, "--cell"),
            ("P 43 21 2", space_group_of, "--space-group"),
        ):
            text = damaged_text(rng, good.replace(",", " , "))
            try:
                assert read_text(text) is not None
            except InputError as error:
                assert str(error).startswith(option)
