"""A run that arrives in pieces, watched from end to end by the command line."""

from __future__ import annotations

import json
import shutil
import threading
import time

import pytest

from bayes_refine import cli
from bayes_refine.cli import watch
from bayes_refine.simulation.files import simulate_run
from bayes_refine.simulation.truth import Simulation
from bayes_refine.util.folder import WORK

pytestmark = pytest.mark.usefixtures("small_batches", "empty_pictures")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    simulate_run(Simulation(n_images=10, n_pixels=256, distance_mm=60, seed=3), folder)
    return folder


def piece(data, path, images, **changed) -> None:
    """Some experiments as a list of their own, with image paths that hold anywhere."""
    document = json.loads((data / "indexed.expt").read_text())
    document["experiment"] = [document["experiment"][k] for k in images]
    for imageset in document["imageset"]:
        name = imageset.get("template") or imageset["images"][0]
        full = str(data / name)
        key = "template" if "template" in imageset else "images"
        imageset[key] = changed.get("image", full if key == "template" else [full])
    path.write_text(json.dumps(document))


def status(*arguments) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(a) for a in arguments])
    return end.value.code or 0


FIT = ("--d-min", "2.5", "--draws", "4", "--gain", "1", "--read-noise", "0", "--rounds", "1")


def test_a_run_that_arrives_in_pieces(data, tmp_path, capsys):
    come, out = tmp_path / "come", tmp_path / "out"
    come.mkdir()
    piece(data, come / "a.expt", range(6))
    options = ("--reference", data / "reference.mtz", *FIT)

    def more() -> None:
        while not (out / "report.html").exists():  # the first fit is done
            time.sleep(0.1)
        (come / "broken.expt").write_text("{")
        (come / "notes.txt").write_text("nothing of ours")
        piece(data, come / "b.expt", range(6, 8))
        piece(data, come / "c.expt", range(8, 10))

    comer = threading.Thread(target=more)
    comer.start()
    wanted = "cc_half>0.999@2.6,completeness>0.2"
    limits = ("--first", "6", "--idle", "4", "--until", wanted)
    assert status("watch", come, "--out", out, *limits, *options) == 0
    comer.join()
    said = capsys.readouterr()
    printed = " ".join(said.out.split())
    assert "6 images, 6 of them new: fitted in" in printed
    assert "10 images, " in printed and "has all that came" in printed
    assert "cc_half>0.999@2.6: it is 0." in printed and "completeness>0.2:" not in printed
    assert said.err.count("broken.expt") == 1 and "Traceback" not in said.err
    summary = json.loads((out / "summary.json").read_text())
    assert summary["counts"]["images_used"] == 10
    assert len((out / "images.csv").read_text().splitlines()) == 11
    assert (out / "report.html").stat().st_mtime >= (out / "summary.json").stat().st_mtime

    # begun again it goes on from there, and ends where the conditions hold
    again = ("--until", "cc_half>0.1", "--idle", "1")
    assert status("watch", come, "--out", out, *again, *options) == 0
    assert "enough: cc_half>0.1 (" in capsys.readouterr().out
    assert status("watch", come, "--out", out, *again, *options, "--seed", "9") == 2
    assert "has a fit without --seed 9" in capsys.readouterr().err


def test_what_is_wrong_is_said_before_any_image_comes(data, tmp_path, capsys):
    out = tmp_path / "out"
    assert status("watch", tmp_path, "--out", out, "--until", "cc>1") == 2
    assert "--until 'cc>1': cannot read 'cc>1'" in capsys.readouterr().err
    assert status("watch", tmp_path, "--out", out, "--no-such-option") == 2
    assert "--no-such-option" in capsys.readouterr().err
    assert status("watch", "--out", out, "--d-min", "2", tmp_path) == 2
    assert "give the folder or pattern first" in capsys.readouterr().err
    assert status("watch", tmp_path, "--out", out, "--idle", "0.1", "--d-min", "2") == 2
    assert "no indexed image came in 0.1 s" in capsys.readouterr().err
    assert not (out / WORK).exists()


def test_files_that_are_new_or_have_grown(data, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "SETTLED", 0.0)
    folder = watch._Folder(str(tmp_path))
    assert folder.new() == []
    piece(data, tmp_path / "a.expt", range(3))
    (file,) = folder.new()
    assert file.path.name == "a.expt" and file.stills == 3
    folder.taken_up([file])
    assert folder.new() == []
    chunk = "----- Begin chunk -----\n--- Begin crystal\n--- End crystal\n----- End chunk -----\n"
    stream = tmp_path / "s.stream"
    stream.write_text("CrystFEL stream format 2.3\n" + 2 * chunk)
    (grown,) = folder.new()
    assert grown.stills == 2
    folder.taken_up([grown])
    with stream.open("a") as file:
        file.write(chunk)
    assert [f.stills for f in folder.new()] == [1]
    folder.try_later(folder.new())
    assert folder.new() == []
    shutil.rmtree(tmp_path)
    assert folder.new() == []
    assert watch._Folder(str(tmp_path / "*.expt")).new() == []
