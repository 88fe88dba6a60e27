"""Names that a shell, a spreadsheet, a page or TeX would act on, through a whole fit."""

from __future__ import annotations

import csv
import json
import math
import tomllib
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import gemmi
import h5netcdf
import numpy as np
import pytest

from bayes_refine import cli
from bayes_refine.io.crystfel_stream import read_stream
from bayes_refine.io.dials_reflections import read_refl
from bayes_refine.io.expt import read_experiments
from bayes_refine.results.exports import Export
from bayes_refine.simulation.files import simulate_run
from bayes_refine.simulation.truth import Simulation

IDENTIFIERS = (
    *("$\\frac$", "nul\0nul", "half \ud800", "=cmd|' /C calc'!A0", "two\nlines", "x" * 5000),
    *(
        "🔬 晶体",
        "\"quoted\" 'too'",
        "../../x",
        "<script>alert(1)</script>&amp;",
        "@SUM(1,2)",
        "-1",
    ),
)
IMAGES = "=1+2 $x_1^$ <b>'img'.h5"
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


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    n = len(IDENTIFIERS)
    run = Simulation(n_images=n, n_pixels=256, distance_mm=60, seed=3)
    document = json.loads(simulate_run(run, folder).read_text())
    (folder / "master.h5").rename(folder / IMAGES)
    for entry, name in zip(document["experiment"], IDENTIFIERS, strict=True):
        entry["identifier"] = name
    for images in document["imageset"]:
        images["images"] = [IMAGES for _ in images["images"]]
    (folder / "indexed.expt").write_text(json.dumps(document))
    line = ["fit", folder / "indexed.expt", "--reference", folder / "reference.mtz"]
    line += ["--d-min", "2.5", "--draws", "4", "--gain", "1", "--read-noise", "0"]
    line += ["--out", folder / "out", *(word for format in Export for word in ("--write", format))]
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in line])
    assert not end.value.code
    return folder / "out"


def strict(text: str):
    """JSON without NaN or infinity."""

    def refuse(constant):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.slow
def test_every_output_of_a_fit_with_hostile_names_opens(out):
    names = [s.identifier for s in read_experiments(out / "refined.expt").stills]
    assert len(set(names)) == len(IDENTIFIERS) and all(map(str.isprintable, names))
    assert {"$\\frac$", "../../x", "🔬 晶体"} < set(names)
    files = sorted(out.rglob("*"))
    assert not [f for f in files if f.suffix == ".part"]
    kinds = {file.suffix for file in files if file.is_file()}
    assert {".mtz", ".csv", ".nc", ".html", ".json", ".toml", ".refl", ".stream"} <= kinds
    for file in (file for file in files if file.is_file()):
        _OPENS.get(file.suffix, _is_text)(file)
    for suffix in (".csv", ".json"):  # strictly, whatever program reads the file
        assert not [f for f in files if f.suffix == suffix and b"\0" in f.read_bytes()]
    assert list(read_refl(out / "refined.refl").identifiers.values()) == names
    _, chunks = read_stream(out / "refined.stream")
    assert sum(len(chunk.crystals) for chunk in chunks) == len(names)
    with (out / "images.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    assert [row["identifier"].removeprefix("'") for row in rows] == names
    assert sum(row["status"] == "converged" for row in rows) >= len(names) - 1


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
    assert "<script>alert" not in text and escape("<script>alert(1)") in text


def _json(path: Path) -> None:
    strict(path.read_text(encoding="utf-8"))


def _toml(path: Path) -> None:
    tomllib.loads(path.read_text(encoding="utf-8"))


def _is_text(path: Path) -> None:
    if path.suffix not in (".png", ".refl"):
        assert "\0" not in path.read_text(encoding="utf-8")


_OPENS = {
    **{".mtz": _mtz, ".csv": _csv, ".nc": _netcdf, ".html": _html, ".json": _json},
    **{".toml": _toml, ".expt": _json},
}
