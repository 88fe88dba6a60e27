"""Priors from TOML: what is taken, and what is refused in one sentence."""

import math
from dataclasses import fields

import pytest

from bayes_refine.merging.observations import ScalingPriors
from bayes_refine.physics.priors import Priors, check, read_priors
from bayes_refine.util.errors import InputError


@pytest.mark.parametrize("kind", [Priors, ScalingPriors])
def test_every_prior_has_a_range_that_its_default_is_in(kind):
    check(kind())
    assert all(item.metadata["range"][0] < item.metadata["range"][1] for item in fields(kind))


def read(tmp_path, text, kind=Priors):
    path = tmp_path / "p.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_priors(path, kind())


def test_numbers_are_taken(tmp_path):
    got = read(tmp_path, "B_mean = -5\nR0_inv_angstrom = 2e-4\nstudent_t_nu = inf\n")
    assert got.B_mean == -5.0 and isinstance(got.B_mean, float)
    assert got.R0_inv_angstrom == 2e-4 and got.student_t_nu == math.inf
    assert read(tmp_path, "") == Priors()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("R0_inv_angstrom = 1e300", "R0_inv_angstrom must be from 1e-07 to 0.1 Å⁻¹, not 1e+300"),
        ("R0_inv_angstrom = inf", "not inf"),
        ("B_sd = nan", "must be a number"),
        ("B_sd = -1.0", "B_sd must be from 0.001 to 10000 Å², not -1"),
        ("B_sd = 0", "must be from"),
        ("B_sd = true", "must be a number, not True"),
        ("B_sd = '20'", "must be a number"),
        ("B_sd = [20.0]", "must be a number"),
        ("[B_sd]\nx = 1", "must be a number"),
        ("B_sd = 1979-05-27", "must be a number"),
        ("B_sd = 1\nB_sd = 2", "not a TOML file"),
        ("B_sd = 0x" + "f" * 9000, "not a huge number"),
        ("B_sd = [0x" + "f" * 9000 + "]", "must be a number"),
        ("B_sd = " + "9" * 5000, "not a TOML file"),
        ("x = " + "[" * 5000, "not a TOML file"),
        ("sd_of_B = 1", "unknown prior 'sd_of_B'"),
        ("[tool]\nx = 1", "unknown prior 'tool'"),
        (b"\xff\xfe\x00", "not a TOML file"),
        ("#" * (2 << 20), "are no file of priors"),
    ],
)
def test_what_is_no_prior(tmp_path, text, words):
    with pytest.raises(InputError, match=r"p\.toml: ") as refused:
        read(tmp_path, text)
    assert words in str(refused.value) and "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1500


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="not a file"):
        read_priors(tmp_path, Priors())
    with pytest.raises(InputError, match="cannot read the priors"):
        read_priors(tmp_path / "gone.toml", Priors())
