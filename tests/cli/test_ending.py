"""Exit statuses and sentences of what can end a command."""

import os
import signal
import time
import weakref

import jax
import pytest

from bayes_refine import cli
from bayes_refine.cli import ending, simulate


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 9.3 GiB"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."),
    ],
)
def test_too_little_memory_is_a_sentence(tmp_path, monkeypatch, capsys, error):
    def hungry(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(simulate, "simulate_run", hungry)
    with pytest.raises(SystemExit) as end:
        cli.main(["simulate", "--out", str(tmp_path)])
    assert end.value.code == 3
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("bayes-refine: not enough memory") and told.endswith("or more memory")


def test_what_is_a_fault_of_ours_is_no_sentence():
    assert ending.sentence_of(jax.errors.JaxRuntimeError("INTERNAL: oh")) is None
    assert ending.sentence_of(ValueError("oh")) is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_a_callback_stops_the_program_all_the_same(number):
    """Python lets no exception out of the callback of a weak reference: h5py has one an object."""
    thing = ending.Stopped(0)
    seen = []

    def gone(_):
        seen.append("gone")
        os.kill(os.getpid(), number)
        time.sleep(0.2)  # the handler runs here

    watcher = weakref.ref(thing, gone)
    with pytest.raises(ending.Stopped) as stopped, ending.stoppable():
        del thing
        time.sleep(5)
    assert seen == ["gone"] and watcher() is None and stopped.value.number == number
