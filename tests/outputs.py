"""What every file that a fit or a merge leaves must be: one that opens, with finite numbers."""

from __future__ import annotations

import csv
import json
import math
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import gemmi
import h5netcdf
import numpy as np

VOID = {"meta", "input", "br", "img", "link", "hr"}


class Page(HTMLParser):
    """Tags of a page that are open, tags closed in the wrong place, and scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.stray: list[str] = []
        self.bold = 0
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.open += [] if tag in VOID else [tag]
        self.bold += tag == "b"

    def handle_endtag(self, tag):
        if tag not in VOID and (not self.open or self.open.pop() != tag):
            self.stray.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)


def check_outputs(folder: Path) -> None:
    """Check every file of a folder by its kind.

    MTZ without infinities; CSV without a cell that a spreadsheet would run; netCDF with finite
    numbers; a page whose tags are closed in order; JSON without NaN; TOML; text in UTF-8.
    """
    for file in (file for file in folder.rglob("*") if file.is_file()):
        _OPENS.get(file.suffix, _is_text)(file)


def _strict(text: str):
    """JSON without NaN or infinity."""

    def refuse(constant):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def _mtz(path: Path) -> None:
    found = gemmi.read_mtz_file(str(path))
    assert not np.isinf(found.array).any() and found.title.isprintable()


def _csv(path: Path) -> None:
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.reader(file, strict=True):
            for cell in row:
                assert not cell.startswith(("=", "+", "@", "\t", "\r")), cell
                assert not cell.startswith("-") or math.isfinite(float(cell)), cell


def _netcdf(path: Path) -> None:
    import arviz

    found = arviz.from_netcdf(path)
    for group in found.groups():
        for name, values in found[group].data_vars.items():
            assert np.isfinite(values.values.astype(float)).all(), (group, name)
    with h5netcdf.File(path) as file:
        assert file.attrs


def _html(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = Page(text)
    assert not found.stray and not found.open and "could not be drawn" not in text
    assert not any("alert(1)" in script for script in found.scripts)


def _json(path: Path) -> None:
    _strict(path.read_text(encoding="utf-8"))


def _toml(path: Path) -> None:
    tomllib.loads(path.read_text(encoding="utf-8"))


def _is_text(path: Path) -> None:
    if path.suffix not in (".png", ".refl"):
        assert "\0" not in path.read_text(encoding="utf-8")


_OPENS = {
    **{".mtz": _mtz, ".csv": _csv, ".nc": _netcdf, ".html": _html, ".json": _json},
    **{".toml": _toml, ".expt": _json},
}
