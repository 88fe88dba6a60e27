"""Images added to a finished fit, by the command line: where all together would have been."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bayes_refine import cli
from bayes_refine.fitting import addition
from bayes_refine.fitting.checkpoint import Checkpoint
from bayes_refine.simulation.files import simulate_run
from bayes_refine.simulation.truth import Simulation
from bayes_refine.util.folder import WORK

pytestmark = pytest.mark.usefixtures("small_batches", "empty_pictures")


def status(*arguments) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(a) for a in arguments])
    return end.value.code or 0


def part(folder, name, images) -> None:
    """Some experiments of the list, as a list of their own."""
    document = json.loads((folder / "indexed.expt").read_text())
    document["experiment"] = [document["experiment"][k] for k in images]
    (folder / name).write_text(json.dumps(document))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    simulate_run(Simulation(n_images=14, n_pixels=256, distance_mm=60, seed=3), folder)
    part(folder, "first.expt", range(10))
    part(folder, "more.expt", range(10, 14))
    return folder


COMMON = ("--d-min", "2.5", "--draws", "4", "--gain", "1", "--read-noise", "0")


def line(data, *files):
    named = [data / f"{name}.expt" for name in files]
    return ("fit", *named, "--reference", data / "reference.mtz", *COMMON)


@pytest.fixture(scope="module")
def first(data):
    assert status(*line(data, "first"), "--keep", "--out", data / "out") == 0
    return data / "out"


def rows_of(out) -> dict[str, dict[str, str]]:
    with (out / "images.csv").open() as file:
        return {row["identifier"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_images_added_end_where_all_together_do(data, first, capsys, monkeypatch):
    before = rows_of(first)
    assert status("fit", "--add", data / "more.expt", "--out", first) == 0
    said = capsys.readouterr().err
    assert "adding 4 images to 10" in said
    assert status(*line(data, "first", "more"), "--out", data / "whole") == 0
    added, whole = rows_of(first), rows_of(data / "whole")
    assert list(added)[:10] == list(before) and set(added) == set(whole) and len(added) == 14
    for name, row in whole.items():
        assert added[name]["status"] == row["status"] == "converged"
        for what in ("G", "B", "R1", "rot_x_mrad", "rot_y_mrad"):
            sd = float(row[f"{what}_sd"])
            assert abs(float(added[name][what]) - float(row[what])) < 0.35 * sd, (name, what)
            assert float(added[name][f"{what}_sd"]) == pytest.approx(sd, rel=0.1)
    one, two = (json.loads((x / "summary.json").read_text()) for x in (first, data / "whole"))
    assert one["counts"]["images"] == one["counts"]["images_used"] == 14
    merged = [x["counts"]["reflections_merged"] for x in (one, two)]
    assert merged[0] == pytest.approx(merged[1], rel=2e-3)
    for name, number in two["globals"].items():
        assert abs(one["globals"][name]["value"] - number["value"]) < 0.5 * number["sd"], name
    last = [x["agreement"][-1]["cc_half"] for x in (one, two)]
    assert last[0] == pytest.approx(last[1], abs=0.005)

    # what is kept is of the whole now: once more there is nothing to add
    assert status("fit", "--add", data / "more.expt", "--out", first) == 2
    assert "nothing to add" in capsys.readouterr().err
    # everything moved too far: all are fitted again, and end in the same place
    part(data, "one.expt", [3])
    document = json.loads((data / "one.expt").read_text())
    document["experiment"][0]["identifier"] = "once more"
    for crystal in document["crystal"]:
        crystal["real_space_a"] = (np.array(crystal["real_space_a"]) * (1 + 1e-6)).tolist()
    (data / "one.expt").write_text(json.dumps(document))
    monkeypatch.setattr(addition, "RENEWED", 0.0)
    assert status("fit", "--add", data / "one.expt", "--out", first) == 0
    assert "renewing 12 images" in capsys.readouterr().err
    for name, row in rows_of(first).items():
        if name in whole:
            moved = abs(float(row["G"]) - float(whole[name]["G"]))
            assert moved < 0.5 * float(whole[name]["G_sd"]), name
    measured = list((first / WORK / "measured").rglob("*.h5"))
    assert len(measured) == 4  # of 15 images; what is no longer of the fit is gone


def test_what_cannot_be_added_is_said(data, tmp_path, capsys):
    assert status("fit", "--add", data / "more.expt", "--out", tmp_path) == 2
    assert "images can be added to a fit that had --keep" in capsys.readouterr().err
    assert status("fit", "--add", data / "more.expt") == 2
    assert "--add: give --out" in capsys.readouterr().err
    known = {"the command": ["bayes-refine", "fit", "first.expt"]}
    Checkpoint(tmp_path / WORK / "kept", known).begin()
    assert status("fit", "--add", data / "more.expt", "--out", tmp_path, "--seed", "3") == 2
    assert "--seed with --add: the options are those of the fit" in capsys.readouterr().err
    known["the command"] += ["--images", "0:4"]
    Checkpoint(tmp_path / "few" / WORK / "kept", known).begin()
    assert status("fit", "--add", data / "more.expt", "--out", tmp_path / "few") == 2
    assert "--images 0:4, which leaves out the images of any other file" in capsys.readouterr().err


@pytest.mark.slow
def test_images_added_without_a_reference(tmp_path):
    """The intensities that the images say themselves: as of all together, on one scale."""
    simulate_run(Simulation(n_images=20, n_pixels=256, distance_mm=60, R0=2e-3, seed=3), tmp_path)
    part(tmp_path, "first.expt", range(14))
    part(tmp_path, "more.expt", range(14, 20))
    alone = ("--d-min", "3", "--draws", "4", "--gain", "1", "--read-noise", "0")
    first, more = (tmp_path / f"{name}.expt" for name in ("first", "more"))
    out = tmp_path / "out"
    assert status("fit", first, *alone, "--keep", "--out", out) == 0
    assert status("fit", "--add", more, "--out", out) == 0
    assert status("fit", first, more, *alone, "--out", tmp_path / "whole") == 0
    one, two = (json.loads((x / "summary.json").read_text()) for x in (out, tmp_path / "whole"))
    assert one["counts"]["status"] == two["counts"]["status"]
    last = [x["agreement"][-1]["cc_half"] for x in (one, two)]
    assert last[0] == pytest.approx(last[1], abs=0.02)
    added, whole = rows_of(out), rows_of(tmp_path / "whole")
    shift = [np.log(float(added[n]["G"]) / float(whole[n]["G"])) for n in whole]
    sd = [float(whole[n]["G_sd"]) / float(whole[n]["G"]) for n in whole]
    off = np.abs(shift - np.median(shift)) / np.array(sd)
    assert np.median(off) < 0.5 and off.max() < 2, (shift, sd)  # of one scale


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_images_added_by_workers(data, tmp_path):
    """To nine digits what one process says."""
    found = []
    for name, workers in (("alone", ()), ("two", ("--workers", "2"))):
        out = tmp_path / name
        assert status(*line(data, "first"), "--keep", "--out", out) == 0
        assert status("fit", "--add", data / "more.expt", "--out", out, *workers) == 0
        rows = rows_of(out).values()
        found.append([float(row[what]) for row in rows for what in ("G", "B", "rot_x_mrad")])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-9)
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    steps = summary["workers"]["steps"]
    assert steps["measure_batch"]["bytes_received"] > 0 and steps["integral"]["calls"] > 0


@pytest.mark.slow
def test_an_addition_that_is_killed_is_given_again(data, tmp_path):
    """kill −9 at moments of an addition: nothing has changed; again it ends in the same bytes."""
    command = [sys.executable, "-m", "bayes_refine.cli"]
    out = tmp_path / "out"
    subprocess.run([*command, *map(str, line(data, "first")), "--keep", "--out", out], check=True)
    shutil.copytree(out, tmp_path / "begun")

    def begin_again() -> None:  # the folder is known by its name
        shutil.rmtree(out)
        shutil.copytree(tmp_path / "begun", out)

    more = [*command, "fit", "--add", str(data / "more.expt"), "--out", str(out)]
    begin_again()
    started = time.monotonic()
    subprocess.run(more, check=True)
    duration = time.monotonic() - started
    whole = (out / "images.csv").read_bytes(), (out / "merged.mtz").read_bytes()
    for share in (0.3, 0.6, 0.9):
        begin_again()
        with subprocess.Popen(more) as run:
            time.sleep(duration * share)
            run.send_signal(signal.SIGKILL)
        subprocess.run(more, check=True)
        assert ((out / "images.csv").read_bytes(), (out / "merged.mtz").read_bytes()) == whole
