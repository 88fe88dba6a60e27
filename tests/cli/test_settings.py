"""``settings.toml`` says every option, and ``--config`` takes it back."""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from bayes_refine import cli
from bayes_refine.cli import merge
from bayes_refine.cli.resume import stopped_in
from bayes_refine.cli.settings import write_settings
from bayes_refine.fitting.checkpoint import STATE
from bayes_refine.util.errors import InputError
from bayes_refine.util.folder import CHECKPOINT, WORK


def status(*arguments) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(a) for a in arguments])
    return end.value.code or 0


def test_settings_are_toml(tmp_path):
    params = {
        "unmerged": [Path('a "b"\n.mtz')],
        "d_min": None,
        "student_t": float("inf"),
        "seed": 3,
        "anomalous": True,
        "prior": merge.Prior.double_wilson,
        "config": Path("x.toml"),
    }
    context = SimpleNamespace(command=SimpleNamespace(name="merge"), params=params)
    write_settings(context, tmp_path / "settings.toml")
    text = (tmp_path / "settings.toml").read_text()
    assert "# d_min = not given" in text
    assert tomllib.loads(text) == {
        "unmerged": ['a "b"\n.mtz'],
        "student_t": float("inf"),
        "seed": 3,
        "anomalous": True,
        "prior": "double-wilson",
    }


def test_a_file_of_options_is_read_and_the_command_line_counts(tmp_path, monkeypatch, capsys):
    seen = {}

    def record(files, *_args):
        seen["files"] = files
        raise InputError("far enough")

    monkeypatch.setattr(merge, "open_unmerged", record)
    out = tmp_path / "o"
    (tmp_path / "c.toml").write_text(f'unmerged = ["a.mtz", "b.mtz"]\nout = "{out}"\nd_min = -1\n')
    assert status("merge", "--config", tmp_path / "c.toml") == 2
    assert "must" in capsys.readouterr().err  # d_min goes through the same checks
    assert status("merge", "--config", tmp_path / "c.toml", "--d-min", 2) == 2
    assert "far enough" in capsys.readouterr().err
    assert [str(f) for f in seen["files"]] == ["a.mtz", "b.mtz"]
    assert "bayes-refine merge --config" in (out / "log.txt").read_text()
    assert "far enough" in (out / "log.txt").read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [("dmin = 2\n", "no option 'dmin'"), ("d_min = \n", "TOML"), ("[seed]\na = 1\n", "a table")],
)
def test_options_that_are_none(tmp_path, capsys, text, words):
    (tmp_path / "c.toml").write_text(text)
    line = ("merge", tmp_path / "a.mtz", "--out", tmp_path / "o", "--config", tmp_path / "c.toml")
    assert status(*line) == 2
    error = capsys.readouterr().err
    assert words in error and "c.toml" in error


def test_only_a_fit_with_a_finished_round_can_be_gone_on_with(tmp_path):
    command = ["bayes-refine", "fit", "a.expt", "--out", str(tmp_path)]
    folder = tmp_path / WORK / CHECKPOINT
    folder.mkdir(parents=True)
    (folder / "record.json").write_text("{}")
    assert stopped_in(command) is None
    (folder / STATE.format(1)).write_bytes(b"")
    assert stopped_in(command) == tmp_path
