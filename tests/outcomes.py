"""Cases of damaged input: run them, here or in a process of their own, and say what may come out.

A test module has ``KINDS``: for each kind of input a function of a generator and an empty folder,
which damages a sound input, reads it, checks what was read, and returns the outcome:

- ``read``: the numbers are finite and the shapes are right;
- ``left out``: as ``read``, without the images or rows that cannot be used;
- ``refused``: one sentence that names the file.

Anything else is an exception.  ``python outcomes.py FILE SEED N FOLDER [FIRST]`` runs N cases of
each kind of a test module and prints a line of JSON for each.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import logging
import os
import shutil
import subprocess
import sys
import traceback
import types
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parent
SECONDS = 20  # for one case
OUTCOMES = ("read", "left out", "refused")
Case = Callable[[np.random.Generator, Path], str]


# -- what may come out ----------------------------------------------------------------------


def check_sentence(error: Exception, *names: str) -> None:
    """Check that an error is one sentence that names one of the files."""
    text = str(error)
    assert any(name in text for name in names), text
    assert "\n" not in text and len(text) < 1000, text
    text.encode()


def check_inspected(path: Path, *others: str) -> None:
    """Check that ``inspect`` tells lines about a file, or refuses it in a sentence."""
    from bayes_refine.io.inspect import inspect
    from bayes_refine.util.errors import InputError

    try:
        for line in inspect(path):
            assert "\n" not in line and len(line) < 2000, line
            line.encode()
    except InputError as error:
        check_sentence(error, path.name, *others)


def check_outcomes(found: Mapping[str, Mapping[str, int]]) -> None:
    """Check that every case of every kind ended as it may."""
    wrong = {kind: told for kind, told in found.items() if set(told) - set(OUTCOMES)}
    assert not wrong, "\n".join(
        f"{kind}: {what}" for kind, told in wrong.items() for what in told if what not in OUTCOMES
    )


# -- how cases are run ----------------------------------------------------------------------


def case(kind: str, make: Case, number: int, seed: int, folder: Path) -> str:
    """The outcome of one case; the folder is removed unless an exception is raised."""
    here = folder / f"{kind} {seed} {number}".replace("/", " ")
    here.mkdir(parents=True)
    found = make(np.random.default_rng([seed, number, *kind.encode()]), here)
    shutil.rmtree(here)
    return found


def here(kinds: Mapping[str, Case], seed: int, n: int, folder: Path) -> dict[str, Counter[str]]:
    """Kind → outcome → number of cases, of ``n`` cases of each kind, in this process."""
    from .damage import time_limit

    found: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    for kind, make in kinds.items():
        for number in range(n):
            with time_limit(SECONDS):
                try:
                    found[kind][case(kind, make, number, seed, folder)] += 1
                except Exception as error:
                    raise AssertionError(f"{kind}, seed {seed}, case {number}") from error
    return found


def in_another_process(
    file: str | Path, seed: int, n: int, folder: Path
) -> dict[str, Counter[str]]:
    """As :func:`here`, of ``KINDS`` in a file of tests, in a process of its own.

    A crash or a hang of a library in C is then an outcome of one case, and so is an exception.
    """
    found: dict[str, Counter[str]] = {}
    first, unfinished = 0, True
    while unfinished:
        words = [sys.executable, __file__, str(file), *map(str, (seed, n, folder, first))]
        done = subprocess.run(
            words, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}
        )
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert lines, done.stderr
        unfinished = lines[-1][1] is None
        if unfinished:
            lines[-1][1] = f"crash or hang: {done.stderr[-1500:]}"
            first = lines[-1][2] + 1
        for kind, outcome, number in lines:
            if outcome is not None:
                unlike = outcome if outcome in OUTCOMES else f"case {number}, {outcome}"
                found.setdefault(kind, Counter())[unlike] += 1
    return found


def _kinds(file: Path) -> dict[str, Case]:
    """``KINDS`` of a file of tests, imported as pytest imports it."""
    package = types.ModuleType(TESTS.name)
    package.__path__ = [str(TESTS)]
    sys.modules[TESTS.name] = package
    name = ".".join([TESTS.name, *file.resolve().relative_to(TESTS).with_suffix("").parts])
    return importlib.import_module(name).KINDS


def main(file: Path, seed: int, n: int, folder: Path, first: int = 0) -> None:
    """Run the cases from ``first`` on; a line before each case says which one may crash."""
    import jax

    jax.config.update("jax_enable_x64", True)
    kinds = _kinds(file)
    logging.disable()
    warnings.simplefilter("error")
    for number in range(first, n * len(kinds)):
        kind = list(kinds)[number % len(kinds)]
        print(json.dumps([kind, None, number]), flush=True)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            outcome = case(kind, kinds[kind], number, seed, folder)
        except BaseException:
            outcome = traceback.format_exc()
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps([kind, outcome, number]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))
