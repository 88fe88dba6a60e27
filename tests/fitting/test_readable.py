"""Images that cannot be read are known before the fit, and told after it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bayes_refine.fitting.readable import readable
from bayes_refine.fitting.tables import _with_unread
from bayes_refine.io.expt import read_experiments
from bayes_refine.io.images import ImageReader
from bayes_refine.simulation.files import simulate_run
from bayes_refine.simulation.truth import Simulation
from bayes_refine.util.errors import InputError
from bayes_refine.util.status import Kind, Status


@pytest.fixture(scope="module")
def stills(tmp_path_factory):
    expt = simulate_run(Simulation(n_images=2, n_pixels=128), tmp_path_factory.mktemp("run"))
    good = read_experiments(expt).stills
    gone = replace(good[0], image_path=Path("gone.h5"), identifier="gone")
    return good[0], gone, good[1]


def test_they_are_set_aside(stills):
    with ImageReader() as reader:
        good, unread = readable(stills, reader)
        assert [s.identifier for s in good] == [stills[0].identifier, stills[2].identifier]
        ((still, status),) = unread
        assert still is stills[1] and status.kind == Kind.NOT_READ and "gone.h5" in status
        with pytest.raises(InputError, match=r"no image can be used; .*gone\.h5"):
            readable(stills[1:2], reader)


def test_they_come_last_in_the_table(stills):
    columns = {
        "identifier": np.array(["a", "b"], object),
        "status": np.array([Status(Kind.CONVERGED)] * 2, object),
        "n_reflections": np.array([3, 4]),
        "reindex": np.array(["h,k,l"] * 2, object),
        "G": np.array([1.0, 2.0]),
    }
    run = SimpleNamespace(unread=((stills[1], Status(Kind.NOT_READ, "no such file")),))
    found = _with_unread(columns, run)
    assert [list(column[:2]) for column in found.values()] == [list(c) for c in columns.values()]
    assert [column[2] for name, column in found.items() if name != "G"] == [
        "gone",
        "not read (no such file)",
        0,
        "",
    ]
    assert np.isnan(found["G"][2]) and found["n_reflections"].dtype.kind == "i"
    assert found["status"][2].kind == Kind.NOT_READ
