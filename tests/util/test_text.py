"""Names are data: whatever a file holds can be printed, encoded and put in a table."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from bayes_refine.util.errors import InputError
from bayes_refine.util.output import write_summary, write_table
from bayes_refine.util.text import ascii_title, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("still_0001", "still_0001"),
        ("Å μ 晶体", "Å μ 晶体"),
        ("a\x00b", "a\\x00b"),
        ("\ud800", "\\ud800"),
        ("two\nlines\r\nμ", "two lines μ"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("$\\frac$", "$\\frac$"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown
    assert str(InputError(text)) == shown
    shown.encode()


def test_titles_of_mtz_files_are_ascii():
    assert ascii_title("Å\x00" + "x" * 100) == "?\\x00" + "x" * 65


def test_tables_hold_no_formulas(tmp_path):
    names = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "a,b", 'a"b', "\x00", "\ud800", "\tx"]
    write_table(
        tmp_path / "t.csv",
        {"identifier": np.array(names, object), "G": np.linspace(-1, 1, len(names))},
    )
    text = (tmp_path / "t.csv").read_text(encoding="utf-8")
    rows = list(csv.reader(text.splitlines()))[1:]
    assert [row[0] for row in rows[:6]] == [*(f"'{name}" for name in names[:4]), "a,b", 'a"b']
    assert all(row[0][0] not in "=+-@\t\r\x00" for row in rows)
    assert float(rows[0][1]) == -1  # a number is no formula


def test_a_summary_holds_any_name(tmp_path):
    write_summary(tmp_path / "s.json", {"command": ["\udce4.expt", "é"]})
    text = (tmp_path / "s.json").read_text(encoding="utf-8")
    assert json.loads(text)["command"] == ["\udce4.expt", "é"]


def test_a_very_long_sentence_keeps_its_ends():
    text = "run.geom: " + "0" * 5000 + " is no number"
    said = str(InputError(text))
    assert len(said) < 900 and said.startswith("run.geom: 0") and said.endswith("0 is no number")
    assert str(InputError("short")) == "short"
