"""Rigid groups of CrystFEL geometries: which panels move together."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bayes_refine.io.crystfel_geometry_text import parse_geometry
from bayes_refine.io.crystfel_groups import groups_of
from bayes_refine.io.crystfel_write import geometry_text
from bayes_refine.util.errors import InputError

QUADRANTS, ASICS = 4, 16
NAMES = [f"q{q}a{a}" for q in range(QUADRANTS) for a in range(ASICS)]


def pairs_and_quadrants() -> dict[str, str]:
    """Groups as of a CSPAD's geometry: pairs of ASICs, and quadrants."""
    quadrants = {f"rigid_group_q{q}": ",".join(NAMES[16 * q : 16 * q + 16]) for q in range(4)}
    pairs = {f"rigid_group_a{k}": ", ".join(NAMES[2 * k : 2 * k + 2]) for k in range(32)}
    return quadrants | pairs


def hierarchy() -> dict[str, str]:
    lines = {"group_all": ",".join(f"q{q}" for q in range(QUADRANTS))}
    for q in range(QUADRANTS):
        pairs = [NAMES[16 * q + 2 * k : 16 * q + 2 * k + 2] for k in range(8)]
        lines |= {f"group_q{q}a{k}s": ",".join(pair) for k, pair in enumerate(pairs)}
        lines[f"group_q{q}"] = ",".join(f"q{q}a{k}s" for k in range(8))
    return lines


def test_the_smallest_groups_that_hold_each_panel_once_move():
    lines = pairs_and_quadrants() | {
        "rigid_group_collection_quadrants": "q0,q1,q2,q3",
        "rigid_group_collection_asics": ",".join(f"a{k}" for k in range(32)),
    }
    assert groups_of(NAMES, lines) == tuple(k // 2 for k in range(64))
    del lines["rigid_group_collection_asics"]
    assert groups_of(NAMES, lines) == tuple(k // 16 for k in range(64))
    lines["rigid_group_collection_quadrants"] = "q0,q1,q2"  # leaves panels out
    assert groups_of(NAMES, lines) == ()


def test_a_hierarchy():
    assert groups_of(NAMES, hierarchy()) == tuple(k // 2 for k in range(64))


def test_of_many_panels_groups_move_and_without_groups_none():
    names = [f"{n}{k}" for k, n in itertools.product("abcd", NAMES)]  # 256
    lines = {f"rigid_group_g{k}": ",".join(names[2 * k : 2 * k + 2]) for k in range(128)} | {
        f"rigid_group_h{k}": ",".join(names[8 * k : 8 * k + 8]) for k in range(32)
    }
    both = {
        f"rigid_group_collection_{n}": ",".join(f"{n}{k}" for k in range(m))
        for n, m in (("g", 128), ("h", 32))
    }
    assert groups_of(names, lines | both) == tuple(k // 8 for k in range(256))
    assert groups_of(names, {}) == (0,) * 256


def test_few_panels_move_on_their_own():
    assert groups_of(["a", "b"], {"rigid_group_q": "a,b", "rigid_group_collection_c": "q"}) == ()


def geometry(lines: dict[str, str]) -> str:
    """A .geom of 64 panels of 10 × 10 pixels."""
    text = ["photon_energy = 9000 eV", "clen = 0.1 m", "res = 10000"]
    for k, name in enumerate(NAMES):
        text += [
            f"{name}/{end}_{axis}s = {9 * (end == 'max')}"
            for end in ("min", "max")
            for axis in "fs"
        ]
        text += [f"{name}/corner_x = {12 * (k % 8)}", f"{name}/corner_y = {12 * (k // 8)}"]
        text += [f"{name}/dim0 = {k}", f"{name}/dim1 = ss", f"{name}/dim2 = fs"]
    return "\n".join(text + [f"{key} = {value}" for key, value in lines.items()])


def test_the_detector_has_them_and_they_are_written():
    read = parse_geometry(geometry(hierarchy()), "a.geom")
    np.testing.assert_array_equal(read.detector(0.1, 9000.0).group, np.arange(64) // 2)
    again = parse_geometry(geometry_text(read), "b.geom")
    assert again.groups == read.groups


@pytest.mark.parametrize(
    "line",
    [
        {"rigid_group_q": "q0a0,nobody"},
        {"rigid_group_collection_all": "nobody"},
        {"group_all": "nobody"},
        {"group_all": "all"},
    ],
)
def test_a_member_that_nobody_knows(line):
    with pytest.raises(InputError, match=f"a.geom: {next(iter(line))}: .* is no panel"):
        parse_geometry(geometry(line), "a.geom")
