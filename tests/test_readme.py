"""The README's tutorial, run as it stands: each ``sh`` and ``python`` block, in order."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import gemmi
import numpy as np
import pytest

import bayes_refine

README = Path(__file__).resolve().parents[1] / "README.md"
TUTORIAL = "\n## Tutorial"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)  # its kind, its body


def script(text: str) -> str:
    """The blocks as one Python program, as in one sitting; its line numbers are the README's."""
    lines = [""] * text.count("\n")
    for block in BLOCK.finditer(text, text.index(TUTORIAL)):
        kind, body = block.groups()
        if kind not in ("sh", "python"):  # what a command prints
            continue
        code = body.splitlines()
        if kind == "sh":
            run = f"__import__('subprocess').run(['sh', '-ec', {body!r}], check=True)"
            code = [run] + [""] * (len(code) - 1)
        first = text.count("\n", 0, block.start(2))
        lines[first : first + len(code)] = code
    return "\n".join(lines)


def follow(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the tutorial of a README in a folder, with the package that these tests import."""
    bin_ = folder / "bin"
    bin_.mkdir()
    command = bin_ / "bayes-refine"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m bayes_refine.cli "$@"\n')
    command.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(bin_), os.environ["PATH"]]),
        "PYTHONPATH": str(Path(bayes_refine.__file__).parents[1]),
        "MPLBACKEND": "Agg",
        "JAX_COMPILATION_CACHE_DIR": os.environ["XDG_CACHE_HOME"] + "/bayes_refine/jax",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    (folder / "README.py").write_text(script(text), encoding="utf-8")
    return subprocess.run(
        [sys.executable, "README.py"], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def text() -> str:
    return README.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def followed(text, tmp_path_factory):
    """The folder after the tutorial, and what was printed."""
    folder = tmp_path_factory.mktemp("tutorial")
    done = follow(text, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


@pytest.mark.parametrize(
    ("kind", "body"), [("sh", "false\ntrue"), ("sh", "no-such-command"), ("python", "1 / 0")]
)
def test_a_block_that_fails_is_named_by_its_line(tmp_path, kind, body):
    text = f"# Title\n{TUTORIAL}\n\n```python\nx = 1\n```\n\n```{kind}\n{body}\n```\n"
    done = follow(text, tmp_path)
    assert done.returncode != 0 and "line 10," in done.stderr


@pytest.mark.tutorial
def test_files_that_the_tutorial_names(text, followed):
    folder, _ = followed
    tutorial = text[text.index(TUTORIAL) :]
    named = set(re.findall(r"\b(?:run|fitted|merged)/[\w.]+\w|\b\w+\.png", tutorial))
    assert {"fitted/images.csv", "fitted/report.html", "scales.png"} <= named
    assert {f"{k}.mtz" for k in ("merged", "posterior", "half1", "half2")} <= {
        file.name for file in (folder / "fitted").iterdir()
    }
    missing = [name for name in named if not (folder / name).is_file()]
    assert not missing


@pytest.mark.tutorial
def test_columns_that_the_tutorial_names(text, followed):
    folder, _ = followed
    tutorial = text[text.index(TUTORIAL) :]
    named = set(re.findall(r"`((?:SIG)?[IF](?:MEAN|POST)|FREE|N)`", tutorial))
    assert len(named) >= 8
    for name in ("fitted", "merged"):
        columns = {}
        for file in ("merged.mtz", "posterior.mtz"):
            mtz = gemmi.read_mtz_file(str(folder / name / file))
            columns |= {c.label: c.array for c in mtz.columns}
        assert named <= set(columns)
        assert 0.02 < np.mean(columns["IMEAN"] < 0) < 0.2
        assert columns["IPOST"].min() > 0 and columns["FPOST"].min() > 0
        assert set(columns["FREE"]) == {0, 1}


@pytest.mark.tutorial
def test_numbers_that_the_tutorial_shows(text, followed):
    _, printed = followed
    blocks = BLOCK.findall(text, text.index(TUTORIAL))
    (shown,) = [body.splitlines() for kind, body in blocks if not kind]

    def of(line: str) -> list[float]:
        return [float(x) for x in re.findall(r"\b\d+\.?\d*(?![\w/])", line)]

    lines = printed.splitlines()
    first = next(i for i, line in enumerate(lines) if " of 8 images" in line)
    for expected, line in zip(shown, lines[first : first + len(shown)], strict=True):
        assert re.sub(r"[\d.]+", "", line) == re.sub(r"[\d.]+", "", expected)
        # on another machine sums round differently
        assert of(line) == pytest.approx(of(expected), rel=0.03)


@pytest.mark.tutorial
def test_the_fit_is_near_the_truth(followed):
    folder, printed = followed
    shared = json.loads((folder / "fitted" / "summary.json").read_text())["globals"]
    distance = shared["distance_mm"]  # 110 as simulated, indexed 0.1 too far
    assert abs(distance["value"] - 110) < 4 * distance["sd"] < 0.04
    with (folder / "fitted" / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["converged"] * 8
    assert all(float(row["cc_model"]) > 0.99 for row in rows)
    # 2126 reflections of each kind in intervals of 90 %: the fraction's own sd is 0.7 %
    for term in ("intensity", "centroid_radial", "spread"):
        held = re.search(rf"^{term} ([\d.]+)$", printed, re.MULTILINE)
        assert held is not None and float(held[1]) == pytest.approx(0.9, abs=0.03)
