"""Names that a shell, a spreadsheet, a page or TeX would act on, through a whole fit."""

from __future__ import annotations

import csv
import json
from html import escape
from pathlib import Path

import pytest

from bayes_refine import cli
from bayes_refine.io.crystfel_stream import read_stream
from bayes_refine.io.dials_reflections import read_refl
from bayes_refine.io.expt import read_experiments
from bayes_refine.results.exports import Export
from bayes_refine.simulation.files import simulate_run
from bayes_refine.simulation.truth import Simulation

from ..outputs import check_outputs

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


@pytest.mark.slow
def test_every_output_of_a_fit_with_hostile_names_opens(out):
    names = [s.identifier for s in read_experiments(out / "refined.expt").stills]
    assert len(set(names)) == len(IDENTIFIERS) and all(map(str.isprintable, names))
    assert {"$\\frac$", "../../x", "🔬 晶体"} < set(names)
    files = sorted(out.rglob("*"))
    assert not [f for f in files if f.suffix == ".part"]
    kinds = {file.suffix for file in files if file.is_file()}
    assert {".mtz", ".csv", ".nc", ".html", ".json", ".toml", ".refl", ".stream"} <= kinds
    check_outputs(out)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and escape("<script>alert(1)") in page
    for suffix in (".csv", ".json"):  # strictly, whatever program reads the file
        assert not [f for f in files if f.suffix == suffix and b"\0" in f.read_bytes()]
    assert list(read_refl(out / "refined.refl").identifiers.values()) == names
    _, chunks = read_stream(out / "refined.stream")
    assert sum(len(chunk.crystals) for chunk in chunks) == len(names)
    with (out / "images.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    assert [row["identifier"].removeprefix("'") for row in rows] == names
    assert sum(row["status"] == "converged" for row in rows) >= len(names) - 1
