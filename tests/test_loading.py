"""load_model: by name in the package, by name beside it, by path; and its complaints."""

from __future__ import annotations

import os

import pytest

from bayes_refine import loading
from bayes_refine.loading import load_model
from bayes_refine.util.errors import InputError

MODEL = "from dataclasses import dataclass\n\n@dataclass\nclass D:\n    x: 'int' = {n}\n"
MODEL += "\ndef model():\n    return D().x\n"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    package, beside = tmp_path / "bayes_refine" / "models", tmp_path / "models"
    package.mkdir(parents=True)
    beside.mkdir()
    monkeypatch.setattr(loading, "_FOLDERS", (package, beside))
    return package, beside


def test_name_is_looked_for_in_the_package_then_beside_it(folders):
    package, beside = folders
    (beside / "alpha.py").write_text(MODEL.format(n=2))
    assert load_model("alpha")() == 2
    (package / "alpha.py").write_text(MODEL.format(n=1))
    assert load_model("alpha")() == 1
    (beside / "beta.py").write_text(MODEL.format(n=3))
    assert load_model("beta")() == 3
    assert loading.model_names() == ["alpha", "beta"]


def test_path_is_loaded_directly(folders, tmp_path):
    path = tmp_path / "my_model.py"
    path.write_text(MODEL.format(n=7))
    assert load_model(path)() == load_model(str(path))() == 7


def test_a_file_is_run_again_only_when_it_was_written_again(tmp_path):
    """What is compiled for a model is found again by the model itself."""
    path = tmp_path / "my_model.py"
    path.write_text(MODEL.format(n=7))
    once = load_model(path)
    assert load_model(path) is once
    path.write_text(MODEL.format(n=8))
    os.utime(path, ns=(0, 0))  # whatever the clock's resolution
    assert load_model(path)() == 8


def test_unknown_name_lists_the_names_that_exist(folders):
    (folders[1] / "alpha.py").write_text(MODEL.format(n=1))
    with pytest.raises(InputError, match=r"no model named 'gamma'; there are: alpha"):
        load_model("gamma")
    with pytest.raises(InputError, match=r"no model file missing\.py"):
        load_model("missing.py")


@pytest.mark.parametrize("text", ["x = 1\n", "model = 3\n"])
def test_file_without_a_callable_model(tmp_path, text):
    path = tmp_path / "nothing.py"
    path.write_text(text)
    with pytest.raises(InputError, match="no callable named 'model'"):
        load_model(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import math\nraise RuntimeError('inside')\n", "line 2: .* RuntimeError: inside"),
        (
            "def model(obs):\n    return (\n",
            "line 2: .* SyntaxError: '\\(' was never closed",
        ),
        ("\nimport no_such_module\n", "line 2: .* ModuleNotFoundError: No module named"),
    ],
)
def test_a_model_that_does_not_run_is_named_and_leaves_nothing_behind(tmp_path, text, said):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"broken\.py, {said}"):
        load_model(path)
    assert "bayes_refine_model_broken" not in loading.sys.modules
