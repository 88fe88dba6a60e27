"""Damaged files of this program: options, learned components, models, checkpoints, measurements."""

from __future__ import annotations

import json
from dataclasses import fields
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import typer

from bayes_refine.cli.app import app
from bayes_refine.fitting.checkpoint import Checkpoint, Progress, read_record
from bayes_refine.fitting.measure_batch import MeasuredBatch, Plan, Said
from bayes_refine.fitting.one_round import Movement
from bayes_refine.fitting.padding import Layout
from bayes_refine.loading import load_model
from bayes_refine.measuring.ice_rings import Ring
from bayes_refine.util.errors import InputError
from bayes_refine.util.status import Kind, Status
from bayes_refine.util.store import Store, hold_in_memory

from ..damage import damaged_bytes, damaged_text
from ..outcomes import Case, check_inspected, check_sentence, here
from ..sound import sound

pytest.importorskip("equinox")
from bayes_refine.learned.component import (
    Component,
    Evidence,
    Family,
    Origin,
    Setup,
    read_component,
    write_component,
)
from bayes_refine.learned.curve import Curve
from bayes_refine.learned.factor import Factor, Frame
from bayes_refine.learned.profile import Profile, nodes_for


def damage(rng: np.random.Generator, path: Path) -> None:
    """Damage the bytes of a file, or, if it is text, its lines and words."""
    data = path.read_bytes()
    if rng.integers(2) and b"\0" not in data:
        path.write_text(damaged_text(rng, data.decode("utf-8")), encoding="utf-8")
    else:
        path.write_bytes(damaged_bytes(rng, data))


# -- options --------------------------------------------------------------------------------


WRONG_USE = typer.BadParameter.__base__  # UsageError, which typer has no name for


@lru_cache
def commands() -> dict[str, Any]:
    return typer.main.get_command(app).commands


def config(name: str, rng: np.random.Generator, folder: Path) -> str:
    """A damaged ``--config`` of a command, with values of any type for any option."""
    command, path = commands()[name], folder / "settings.toml"
    values = (
        *("0", "-1", "3", "1e400", "nan", "inf", '""', '"x"', '"\\u0000"', "true", "[]", "[1]"),
        *('["a", "b"]', "[[1]]", "{a = 1}", "1979-05-27", "9223372036854775807", '"=cmd"'),
    )
    options = [p.name for p in command.params if p.name not in ("config", "help")]
    lines = [
        f"{options[rng.integers(len(options))]} = {values[rng.integers(len(values))]}"
        for _ in range(int(rng.integers(1, 4)))
    ]
    path.write_text("d_min = 4.0\nseed = 3\n" + "\n".join(dict.fromkeys(lines)) + "\n")
    if rng.random() < 0.4:
        damage(rng, path)
    check_inspected(path)
    words = [str(sound() / "indexed.expt"), "--out", str(folder / "out"), "--config", str(path)]
    try:
        with command.make_context(name, words) as context:
            found = dict(context.params)
    except InputError as error:
        check_sentence(error, path.name, "--")
        return "refused"
    except WRONG_USE as error:  # of a value: the sentence names the option
        text = error.format_message()
        assert len(text) < 1000 and "\n" not in text, text
        return "refused"
    for parameter in command.params:
        if isinstance(value := found.get(parameter.name), float) and parameter.name != "student_t":
            assert np.isfinite(value), (parameter.name, value)
    return "read"


# -- components and models ------------------------------------------------------------------

ORIGIN = Origin(Setup(1, (64, 64), 0.172, 110.0, 1.0), 16, 4000, 2.0, Evidence((1.0, 2.0), 40), {})
FRAME = Frame(1.0, -2.0, 40.0, 0.25)


@lru_cache
def component(family: Family) -> Component:
    key = jax.random.key(0)
    module: Curve | Factor | Profile = Factor.start(key, FRAME)
    if family is Family.partiality:
        module = Curve.start(key)
    elif family is Family.profile:
        module = Profile.start(key, nodes_for(1.2), 1.2, FRAME)
    draws = (module,) * 2 if family is Family.partiality else ()
    return Component(family, module, (module,) * 3, ORIGIN, draws)


def damaged_component(family: Family, rng: np.random.Generator, folder: Path) -> str:
    path = folder / "component.eqx"
    write_component(path, component(family))
    if (kind := rng.integers(8)) == 0:
        pass  # sound: any damage is noticed
    elif kind == 1:
        path.write_bytes(damaged_bytes(rng, path.read_bytes()))
    else:
        head, _, rest = path.read_bytes().partition(b"\n")
        if kind < 5:
            head = damaged_bytes(rng, head)
        else:
            header = json.loads(head)
            key = str(rng.choice(list(header)))
            wrong = [None, -1, 0, 10**9, 1e300, "x", [], {}, [[10**6, 10**6]], [1e300] * 4, True]
            header[key] = wrong[rng.integers(len(wrong))]
            head = json.dumps(header).encode()
        path.write_bytes(head + b"\n" + rest)
    check_inspected(path)
    try:
        found = read_component(path)
    except InputError as error:
        check_sentence(error, path.name)
        return "refused"
    assert found.origin == ORIGIN
    for leaf in jax.tree.leaves((found.module, found.members, found.draws)):
        assert np.isfinite(leaf).all()
    return "read"


MODEL = """\
from dataclasses import dataclass
import numpyro

METADATA = False

@dataclass
class Piece:
    x: "int" = 3

def model(obs, priors):
    scale = numpyro.sample("scale", numpyro.distributions.Normal(0.0, 1.0))
    return Piece(scale).x
"""


def model(rng: np.random.Generator, folder: Path) -> str:
    """A user's model with damaged text; what it does when it runs is checked when it runs."""
    path = folder / f"model{rng.integers(2**31)}.py"
    path.write_text(MODEL)
    damage(rng, path)
    check_inspected(path)
    try:
        assert callable(load_model(path))
    except InputError as error:
        check_sentence(error, path.name)
        return "refused"
    return "read"


# -- a working folder -----------------------------------------------------------------------

MADE_OF = {"the command": ["fit", "a.expt"], "an input file": {"a.expt": [3, 7]}, "a version": {}}
RUN = SimpleNamespace(
    crosswise=None,
    ice=SimpleNamespace(found={(Path("a.h5"), 0): (Ring(0.3, 1 / 3),), (Path("a.h5"), 1): ()}),
)
STATE = {"log_G": np.arange(3.0)[:, None] / 7, "log_R0": np.asarray(-7.25)}
PROGRESS = Progress(
    2,
    STATE,
    np.array(["", Status(Kind.TOO_FEW, "3"), ""], dtype=object),
    Plan(96, 0.3, 1 / 3),
    (Movement(0.1, 1 / 3, 0.2, 7, 1.5, 2.5), Movement(0.01, 1 / 30, 0.02, 5, 1.5, 2.5)),
)


def checkpoint(rng: np.random.Generator, folder: Path) -> str:
    """A damaged record or state of ``--resume``: what is loaded is what was saved."""
    saved = Checkpoint(folder / "checkpoint", MADE_OF)
    saved.save(PROGRESS, RUN)
    record, state = saved.folder / "record.json", saved.folder / "state-2.npz"
    which = (record, state)[rng.integers(2)]
    if which is record and rng.integers(2):
        document = json.loads(record.read_text())
        key = str(rng.choice(list(document)))
        wrong = [None, -1, 10**9, "x", [], {}, [[]], [1], 0.5, True]
        document[key] = wrong[rng.integers(len(wrong))]
        if rng.integers(4) == 0:
            document = wrong[rng.integers(len(wrong))]
        record.write_text(json.dumps(document))
    elif rng.integers(6):  # else sound: any damage is noticed
        damage(rng, which)
    check_inspected(which)
    try:
        told = read_record(saved.folder)
        assert told["made_of"]["the command"] == MADE_OF["the command"]
        found = saved.read()
    except InputError as error:
        check_sentence(error, which.name, "checkpoint")
        return "refused"
    assert found.rings == RUN.ice.found
    for name in {field.name for field in fields(Progress)} - {"state", "status"}:
        assert getattr(found.progress, name) == getattr(PROGRESS, name), name
    assert list(found.progress.status) == list(PROGRESS.status)
    assert {k: v.tobytes() for k, v in found.progress.state.items()} == {
        k: v.tobytes() for k, v in STATE.items()
    }
    return "read"


SAID = Said(
    np.array([[0.1 + 0.2], [1 / 3]]), None, np.array([3, 0]), ("", "lost (x)"),
    (("a/b.h5", 4, ((0.1, 0.2), (0.3, 0.4))), ("c.h5", 0, ())),
)  # fmt: skip
BATCH = MeasuredBatch(Layout(np.array([0, 0, 1]), np.array([0, 1, 0]), (2, 32)), SAID, SAID)  # type: ignore[arg-type]


def measurements(rng: np.random.Generator, folder: Path) -> str:
    """A damaged file of what was measured: what is found is what was put, or it is measured again.

    Returns:
        "left out" for a batch that is measured again.
    """
    hold_in_memory(0)
    store: Store[MeasuredBatch] = Store(3, folder / "store", {"state": "1"})
    store.put(1, BATCH)
    path = next(store.folder.rglob("*.h5"))
    path.write_bytes(damaged_bytes(rng, path.read_bytes()))
    check_inspected(path)
    found = store.find(1)
    if found is None:
        with pytest.raises(InputError, match=r"gone or damaged .* --resume"):
            store[1]
        return "left out"
    assert found.said.log_G.tobytes() == SAID.log_G.tobytes()
    assert (found.said.status, found.said.rings) == (SAID.status, SAID.rings)
    assert found.batch.shape == (2, 32)
    return "read"


KINDS: dict[str, Case] = {
    **{f"--config of {name}": partial(config, name) for name in ("fit", "merge")},
    **{f"component, {family}": partial(damaged_component, family) for family in Family},
    "model": model,
    "checkpoint": checkpoint,
    "measurements": measurements,
}


def test_damaged_files(tmp_path):
    found = here(KINDS, 0, 12, tmp_path)
    for kind, told in found.items():
        assert told["refused"] + told["left out"] > 0, kind


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files(tmp_path, kind):
    found = here({kind: KINDS[kind]}, 1, 200, tmp_path)[kind]
    assert found["refused"] + found["left out"] > 0 < found["read"]
