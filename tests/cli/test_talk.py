"""How much a command says, and where: the terminal, ``log.txt``, the shell's completion."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import typer

from bayes_refine import cli
from bayes_refine.cli import merge, simulate
from bayes_refine.cli.app import app, progress
from bayes_refine.cli.resume import COMMAND, expanded, made_of
from bayes_refine.util.errors import InputError


def status(*arguments) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(a) for a in arguments])
    return end.value.code or 0


@pytest.fixture
def talkative(monkeypatch, tmp_path):
    """``merge`` that shows what it found, makes a step, warns, and cannot go on."""
    data = SimpleNamespace(describe=lambda: "7 observations")
    monkeypatch.setattr(merge, "open_unmerged", lambda *_: data)

    def scales(*_args, **_kw):
        with progress() as listener:
            listener.say("scales of 2 images")
            listener.update(1 / 3, "step 3 of 9")
        log = (tmp_path / "log.txt").read_text()
        assert "step 3 of 9\n" in log  # whoever follows it sees each line
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("a mean of nothing", RuntimeWarning, stacklevel=1)
        raise InputError("far enough")

    monkeypatch.setattr(merge, "merge_run", scales)


@pytest.mark.parametrize(
    ("option", "observations", "step"),
    [((), True, False), (("-q",), False, False), (("--verbose",), True, True)],
)
def test_what_the_terminal_and_the_log_show(talkative, tmp_path, capfd, option, observations, step):
    assert status("merge", "a.mtz", "--out", tmp_path, *option) == 2
    shown = capfd.readouterr()
    log = (tmp_path / "log.txt").read_text()
    assert ("7 observations" in shown.err) == observations
    assert ("s, " in shown.err and " GiB] step 3 of 9" in shown.err) == step
    for line in ("warning: a mean of nothing", "bayes-refine: far enough"):
        assert line in shown.err and line in log
    assert all(line in log for line in ("7 observations", "scales of 2 images", "step 3 of 9"))
    assert f"python {sys.version_info.major}." in log.splitlines()[1]
    assert not shown.out


def test_the_next_command_talks_again(talkative, tmp_path, capfd):
    status("merge", "a.mtz", "--out", tmp_path, "--quiet")
    capfd.readouterr()
    status("merge", "a.mtz", "--out", tmp_path)
    assert "7 observations" in capfd.readouterr().err


def test_every_long_command_can_be_quiet_or_verbose():
    commands = typer.main.get_command(app).commands
    options = {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in commands.items()
    }
    both = {
        name for name, found in options.items() if found >= {"--quiet", "-q", "--verbose", "-v"}
    }
    assert both == set(commands) - {"inspect", "export"}  # which take no time


@pytest.mark.parametrize(
    ("option", "line", "step"),
    [((), True, False), (("--quiet",), False, False), (("-v",), True, True)],
)
def test_what_a_simulation_shows(monkeypatch, tmp_path, capfd, option, line, step):
    def simulated(_simulation, _out, listener):
        listener.say("images of 3 stills")
        listener.update(1 / 3, "image 1 of 3")
        raise InputError("far enough")

    monkeypatch.setattr(simulate, "simulate_run", simulated)
    assert status("simulate", "--out", tmp_path, *option) == 2
    shown = capfd.readouterr().err
    assert ("images of 3 stills" in shown) == line
    assert (" GiB] image 1 of 3" in shown) == step
    assert "bayes-refine: far enough" in shown


def test_a_stopped_fit_goes_on_however_much_it_says():
    words = ["bayes-refine", "fit", "a.expt", "-q", "--out", "o"]
    assert made_of(words, [])[COMMAND] == ["bayes-refine", "fit", "a.expt", "--out", "o"]
    with pytest.raises(InputError, match="no stopped fit"):  # not taken for a whole command
        expanded(["bayes-refine", "fit", "--resume", "--quiet", "--out", "o"])


def test_completion_of_the_shell():
    """As bash calls it, by typer's script (``--show-completion``)."""
    words = {"COMP_WORDS": "bayes-refine me", "COMP_CWORD": "1"}
    asked = {**os.environ, "_BAYES_REFINE_COMPLETE": "complete_bash", **words}
    code = "import sys; sys.argv = ['bayes-refine']; from bayes_refine import cli; cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=asked, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["merge"], done.stderr
