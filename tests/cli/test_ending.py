"""Exit statuses and sentences of what can end a command."""

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
