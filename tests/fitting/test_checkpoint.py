"""Checkpoints: what is loaded is what was saved, to the last bit, or it is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bayes_refine.fitting.checkpoint import Checkpoint, Progress
from bayes_refine.fitting.measure_batch import Plan
from bayes_refine.fitting.one_round import Movement
from bayes_refine.measuring.ice_rings import Ring
from bayes_refine.util.errors import InputError
from bayes_refine.util.status import Kind, Status

RINGS = {(Path("a.h5"), 0): (Ring(0.1 + 0.2, 1 / 3),), (Path("a.h5"), 1): ()}
RUN = SimpleNamespace(crosswise=None, ice=SimpleNamespace(found=RINGS))


@pytest.fixture
def progress():
    rng = np.random.default_rng(0)
    status = np.array(["", Status(Kind.TOO_FEW, "3"), ""], dtype=object)
    state = {"log_G": rng.normal(size=(3, 1)), "log_R0": np.asarray(rng.normal())}
    plan = Plan(96, 0.1 + 0.2, 1 / 3)
    return Progress(1, state, status, plan, (Movement(0.1, 1 / 3, 0.2, 7, 1.5, 2.5),))


def test_what_is_loaded_is_what_was_saved(tmp_path, progress):
    checkpoint = Checkpoint(
        tmp_path / "c", {"the command": ["fit"], "an input file": {"a": [1, 2]}}
    )
    assert checkpoint.load(RUN) is None
    checkpoint.begin()
    assert checkpoint.load(RUN) is None  # no round is finished
    checkpoint.save(progress, RUN)
    checkpoint.begin()  # as a resumed fit does
    other = SimpleNamespace(crosswise=None, ice=SimpleNamespace(found={}))
    found, _ = checkpoint.load(other)
    assert other.ice.found == RINGS
    assert found.rounds == 1 and found.plan == progress.plan and found.movement == progress.movement
    assert [(s and s.kind, str(s)) for s in found.status] == [
        ("", ""),
        (Kind.TOO_FEW, "too few reflections (3)"),
        ("", ""),
    ]
    assert set(found.state) == set(progress.state)
    for name, value in progress.state.items():
        assert found.state[name].shape == value.shape
        assert found.state[name].tobytes() == value.tobytes()
    checkpoint.save(Progress(2, *list(vars(progress).values())[1:]), RUN)
    assert sorted(f.name for f in (tmp_path / "c").iterdir()) == ["record.json", "state-2.npz"]


def test_another_fit_is_refused(tmp_path, progress):
    Checkpoint(tmp_path / "out" / "w" / "c", {"the command": ["fit", "a"]}).save(progress, RUN)
    other = Checkpoint(tmp_path / "out" / "w" / "c", {"the command": ["fit", "b"]})
    with pytest.raises(InputError, match=r"out: the command changed since .* leave out --resume"):
        other.load(RUN)


def test_a_damaged_one_is_refused(tmp_path, progress):
    checkpoint = Checkpoint(tmp_path, {})
    checkpoint.save(progress, RUN)
    state = tmp_path / "state-1.npz"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(InputError, match="is damaged"):
        checkpoint.load(RUN)
    (tmp_path / "record.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        checkpoint.load(RUN)
