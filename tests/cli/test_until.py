"""Conditions of ``--until``: read, judged by a shell table, and foretold."""

from __future__ import annotations

import pytest

from bayes_refine.cli.until import Condition, conditions_of
from bayes_refine.util.errors import InputError

TABLE = [
    {"shell": 0, "d_max": 20.0, "d_min": 3.0, "cc_half": 0.9, "completeness": 1.0},
    {"shell": 1, "d_max": 3.0, "d_min": 2.0, "cc_half": 0.3, "completeness": 0.5},
    {"shell": "all", "d_max": 20.0, "d_min": 2.0, "cc_half": 0.8, "completeness": None},
]


def test_conditions_are_read():
    assert conditions_of("cc_half>0.5@2.0") == (Condition("cc_half", True, 0.5, 2.0),)
    two = conditions_of(" completeness > .95 , r_split<0.2@ 2.5")
    assert two == (
        Condition("completeness", True, 0.95, None),
        Condition("r_split", False, 0.2, 2.5),
    )


@pytest.mark.parametrize(
    "text", ["", "cc_half", "cc_half>", "cc>0.5", "cc_half>0.5@", "cc_half>0.5;r_split<1", "a>1"]
)
def test_what_cannot_be_read_is_one_sentence(text):
    with pytest.raises(InputError, match=r"^--until .*cannot read .*write conditions such as"):
        conditions_of(text)
    with pytest.raises(InputError, match="a resolution is positive"):
        conditions_of("cc_half>0.5@-1")


def test_a_table_is_judged_by_the_shell_that_has_the_resolution():
    assert not conditions_of("cc_half>0.5@2.0")[0].holds(TABLE)
    assert conditions_of("cc_half>0.5@3.5")[0].holds(TABLE)
    assert conditions_of("cc_half>0.5")[0].holds(TABLE)
    assert not conditions_of("completeness>0.1")[0].holds(TABLE)  # nobody knows
    with pytest.raises(InputError, match=r"no shell has 1\.5 Å; they go from 20\.00 to 2\.00 Å"):
        conditions_of("cc_half>0.5@1.5")[0].holds(TABLE)


def test_when_is_read_off_a_forecast():
    """A number that grows as ln n: 0.3 at 100 images, 0.5 at 200, 0.7 at 400."""
    rows = [
        {"shell": 1, "images": 200, "cc_half": [0.4, 0.5, 0.6]},
        {"shell": 1, "images": 400, "cc_half": [0.6, 0.7, 0.8]},
    ]
    want = conditions_of("cc_half>0.6@2.0")[0]
    assert want.images(TABLE, 100, rows) == "about 283 images (200 to more than 400)"
    assert conditions_of("cc_half>0.75@2.0")[0].images(TABLE, 100, rows) == "336 images or more"
    assert conditions_of("cc_half>0.9@2.0")[0].images(TABLE, 100, rows) == "more than 400 images"
    assert conditions_of("r_split<0.9@2.0")[0].images(TABLE, 100, rows).startswith("no forecast")
