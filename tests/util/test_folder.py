"""Folders of results: complete or absent, one run at a time, nothing left of killed ones."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import gemmi
import numpy as np
import pytest

from bayes_refine.fitting.padding import Layout
from bayes_refine.io.mtz import write_merged
from bayes_refine.io.posterior import Variable, write_posterior
from bayes_refine.simulation.files import simulate_run
from bayes_refine.simulation.truth import Simulation
from bayes_refine.util.errors import InputError
from bayes_refine.util.folder import CHECKPOINT, WORK, all_or_none, taken
from bayes_refine.util.store import Store


def names(folder):
    return sorted(f.name for f in folder.iterdir())


def test_all_files_come_together(tmp_path):
    (tmp_path / "old.png").write_text("of an earlier run")
    (tmp_path / "mine.txt").write_text("of the user")
    with all_or_none(tmp_path, ["old.png"]) as work:
        (work / "summary.json").write_text("{}")
        (work / "a.mtz").write_text("1")
        assert names(tmp_path) == [WORK, "mine.txt", "old.png"]
    assert names(tmp_path) == ["a.mtz", "mine.txt", "summary.json"]


def test_none_come_where_one_fails(tmp_path):
    with all_or_none(tmp_path) as work:
        (work / "summary.json").write_text("old")
    with pytest.raises(InputError, match="cannot be written"), all_or_none(tmp_path) as work:
        (work / "summary.json").write_text("new")
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == ["summary.json"]
    assert (tmp_path / "summary.json").read_text() == "old"


HOLD = """
import sys, time
from bayes_refine.util.folder import taken
with taken(sys.argv[1]) as work:
    (work / "results").mkdir()
    (work / "results" / "half.mtz").write_text("half")
    print("taken", flush=True)
    time.sleep(60)
"""


@contextmanager
def another_run(folder):
    line = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "taken\n"
        yield other
        other.kill()


def test_two_runs_do_not_mix(tmp_path):
    with another_run(tmp_path):
        with pytest.raises(InputError, match="another run is writing to this folder"):
            with taken(tmp_path):
                pass
        assert (tmp_path / WORK / "results" / "half.mtz").exists()  # it goes on undisturbed


def test_the_next_run_clears_what_a_killed_one_left(tmp_path):
    with another_run(tmp_path) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert (tmp_path / WORK / "results").exists()
        (tmp_path / WORK / CHECKPOINT).mkdir()
        with taken(tmp_path, go_on=True) as work:
            assert names(work) == [CHECKPOINT, "lock"]
        assert names(tmp_path / WORK) == [CHECKPOINT, "lock"]  # kept until a run ends well
        with taken(tmp_path) as work:
            assert names(work) == ["lock"]
        assert names(tmp_path) == []


def test_nested_and_one_after_the_other(tmp_path):
    with taken(tmp_path) as outer, taken(tmp_path) as inner:
        assert inner == outer
    for _ in range(3):
        with taken(tmp_path):
            assert names(tmp_path) == [WORK]
        assert names(tmp_path) == []


# -- full disks -----------------------------------------------------------------------------


@contextmanager
def room_for(n_bytes: int):
    """Files cannot grow beyond this, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_folder_of_temporary_files_says_what_to_set(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    store: Store[Layout] = Store(2)
    store.put(0, Layout(np.arange(3), np.arange(3), (3, 1)))
    with room_for(20_000), pytest.raises(InputError, match="set TMPDIR to a folder with more room"):
        store.put(1, Layout(np.arange(5000), np.arange(5000), (1, 1)))
    assert store[0].slot.tolist() == [0, 1, 2] and store.find(1) is None


@pytest.mark.parametrize("size", [100, 3000, 8000])
def test_an_mtz_that_does_not_fit_is_told(tmp_path, size):
    """gemmi ignores what closing the file says: 400 rows of 5 columns are 8 kB."""
    hkl = np.array([[n // 40 + 1, n // 5 % 8, n % 5] for n in range(400)])
    columns = {"I": ("J", np.arange(400.0)), "SIGI": ("Q", np.ones(400))}
    cell, group = gemmi.UnitCell(50, 50, 50, 90, 90, 90), gemmi.SpaceGroup("P 21 21 21")
    with room_for(size), pytest.raises(InputError, match=r"x\.mtz"):
        write_merged(tmp_path / "x.mtz", hkl, columns, cell, group, 1.0)


@pytest.mark.parametrize("size", [100, 5000, 40_000, 180_000])
def test_a_posterior_that_does_not_fit_is_told(tmp_path, size):
    draws = {"x": Variable(np.random.default_rng(0).normal(size=(1, 100, 200)), ("image",))}
    term = np.zeros((1, 100, 50))
    rows = {"image": np.arange(50)}
    with room_for(size), pytest.raises(InputError, match="cannot be written"):
        write_posterior(tmp_path / "p.nc", draws, [{"J": (term, term)}], {"J": np.zeros(50)}, rows)


def test_a_simulation_that_does_not_fit_is_told(tmp_path):
    with room_for(100_000), pytest.raises(InputError, match="cannot be written"):
        simulate_run(Simulation(n_images=2, n_pixels=256), tmp_path)
    assert names(tmp_path) == []


# -- signals --------------------------------------------------------------------------------

SLOW = """
import sys, time
from bayes_refine import cli
from bayes_refine.cli import simulate
def slow(*args, **kwargs):
    print("ready", flush=True)
    time.sleep(60)
simulate.simulate_run = slow
cli.main(["demo", "--out", sys.argv[1]])
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_in_one_line(tmp_path, number, status):
    line = [sys.executable, "-c", SLOW, str(tmp_path / "out")]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None and run.stdout.readline() == "ready\n"
        assert (tmp_path / "out" / "fit" / WORK).exists()
        started = time.monotonic()
        os.kill(run.pid, number)
        _, error = run.communicate(timeout=30)
    assert run.returncode == status and time.monotonic() - started < 20
    told = [text for text in error.splitlines() if text.startswith("bayes-refine")]
    assert told == [f"bayes-refine: stopped by {number.name}"] and "Traceback" not in error
    assert names(tmp_path / "out" / "fit") == []
