"""A stopped fit goes on to the bytes of one that was not; the order of a list does not count."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from bayes_refine import cli
from bayes_refine.fitting import loop
from bayes_refine.simulation.files import simulate_run
from bayes_refine.simulation.truth import Simulation
from bayes_refine.util.errors import InputError
from bayes_refine.util.folder import WORK

pytestmark = pytest.mark.usefixtures("empty_pictures")

TIMES = {"seconds", "seconds_measure", "seconds_fit", "command"}
NO_TIMES = (
    "summary.json",
    "report.html",
    "log.txt",
    "settings.toml",
)  # compared without what the clock says


def status(*arguments) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(a) for a in arguments])
    return end.value.code or 0


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def same(a, b, but=()) -> None:
    """Two folders of results have the same files of the same bytes, but for times."""
    names = {f.name for f in a.iterdir()}
    assert names == {f.name for f in b.iterdir()}
    for name in names - set(NO_TIMES) - set(but):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    first, second = (json.loads((x / "summary.json").read_text("utf-8")) for x in (a, b))
    assert without_times(first) == without_times(second)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four stills on a small detector."""
    folder = tmp_path_factory.mktemp("data")
    simulate_run(Simulation(n_images=4, n_pixels=256, distance_mm=60, seed=3), folder)
    return folder


def line(data, *more):
    common = ("--d-min", "2.5", "--rounds", "2", "--draws", "4", "--gain", "1", "--read-noise", "0")
    return ("fit", data / "indexed.expt", "--reference", data / "reference.mtz", *common, *more)


@pytest.fixture(scope="module")
def whole(data):
    assert status(*line(data, "--out", data / "whole")) == 0
    return data / "whole"


def stopped_before(round_: int, monkeypatch, data, out) -> None:
    step, calls = loop.one_round, []

    def stops(*arguments):
        calls.append(1)
        if len(calls) == round_:
            raise InputError("the power went")
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "one_round", stops)
        assert status(*line(data, "--out", out)) == 2


@pytest.mark.parametrize("round_", [1, 2])
def test_a_stopped_fit_goes_on(data, whole, tmp_path, monkeypatch, capsys, round_):
    out = tmp_path / "out"
    stopped_before(round_, monkeypatch, data, out)
    offered = f"bayes-refine fit --resume --out {out}" in capsys.readouterr().err
    assert offered == (round_ > 1)  # with no round finished there is nothing to spare
    assert sorted(f.name for f in out.iterdir()) == [WORK, "log.txt"]
    with monkeypatch.context() as patch:
        patch.chdir(data)  # as somebody who begins in another folder
        assert status("fit", "--resume", "--out", out) == 0
    said = capsys.readouterr().err
    assert ("continuing after round" in said) == (round_ > 1)
    same(whole, out)
    assert status("fit", "--resume", "--out", out) == 2  # it is done
    assert "no stopped fit to continue" in capsys.readouterr().err


def test_other_input_is_refused(data, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    stopped_before(2, monkeypatch, data, out)
    assert status(*line(data, "--out", out, "--resume", "--seed", "4")) == 2
    assert "the command changed since the fit was stopped" in capsys.readouterr().err
    text = (data / "indexed.expt").read_text()
    try:
        (data / "indexed.expt").write_text(text + " ")
        assert status("fit", "--resume", "--out", out) == 2
        assert "an input file changed since the fit was stopped" in capsys.readouterr().err
    finally:
        (data / "indexed.expt").write_text(text)


def test_the_order_of_the_list_does_not_count(data, whole, tmp_path):
    """All bytes but those of the geometry, whose models keep the places they had in the file."""
    document = json.loads((data / "indexed.expt").read_text())
    random.Random(1).shuffle(document["experiment"])
    (data / "shuffled.expt").write_text(json.dumps(document))
    out = tmp_path / "out"
    again = [data / "shuffled.expt" if w == data / "indexed.expt" else w for w in line(data)]
    assert status(*again, "--out", out) == 0
    same(whole, out, but=("refined.expt",))
    first, second = (json.loads((x / "refined.expt").read_text()) for x in (whole, out))
    identifiers = [[e["identifier"] for e in x["experiment"]] for x in (first, second)]
    assert identifiers[0] == identifiers[1]


def test_images_that_cannot_be_read_change_nothing_else(data, whole, tmp_path):
    document = json.loads((data / "indexed.expt").read_text())
    for k, name in ((2, "gone.h5"), (0, "a_gone.h5")):  # at the place of one, and before all
        document["imageset"].append({**document["imageset"][0], "images": [name]})
        document["experiment"].insert(
            k,
            document["experiment"][k]
            | {"identifier": f"broken {k}", "imageset": len(document["imageset"]) - 1},
        )
    (data / "broken.expt").write_text(json.dumps(document))
    out = tmp_path / "out"
    again = [data / "broken.expt" if w == data / "indexed.expt" else w for w in line(data)]
    assert status(*again, "--out", out) == 0
    for file in whole.iterdir():
        if file.suffix == ".mtz" or file.name == "posterior.nc":
            assert file.read_bytes() == (out / file.name).read_bytes(), file.name
    rows, more = ((x / "images.csv").read_text().splitlines() for x in (whole, out))
    assert more[: len(rows)] == rows and len(more) == len(rows) + 2
    assert all("not read" in row for row in more[len(rows) :])


@pytest.mark.slow
def test_killed_at_twenty_moments(data, tmp_path):
    """kill −9 at twenty moments of a fit, resumed each time; in the end the bytes are the same."""
    command = [sys.executable, "-m", "bayes_refine.cli"]
    first = [*command, *map(str, line(data, "--out", tmp_path / "timed"))]
    started = time.monotonic()
    subprocess.run(first, check=True, capture_output=True)
    duration = time.monotonic() - started
    for k in range(20):
        out = tmp_path / f"out{k}"
        begun = [*command, *map(str, line(data, "--out", out))]
        with subprocess.Popen(begun, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
            time.sleep(duration * (k + 0.5) / 20)
            run.send_signal(signal.SIGKILL)
        again = subprocess.run([*begun, "--resume"], capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        same(tmp_path / "timed", out)  # pictures and all
        assert not (out / WORK).exists()
