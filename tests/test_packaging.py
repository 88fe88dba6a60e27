"""What builds packages says the same as ``pyproject.toml``."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPE = "packaging/recipe.yaml"
# on conda-forge; the one of matplotlib is without Qt
OTHER_NAMES = {"matplotlib": "matplotlib-base", "flatbuffers": "python-flatbuffers"}


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def project() -> dict:
    return tomllib.loads(text("pyproject.toml"))["project"]


def listed(section: str) -> list[str]:
    """The items of ``requirements: section:`` of the recipe."""
    block = text(RECIPE).split(f"\n  {section}:\n")[1]
    return re.findall(r"^    - (.+)$", re.split(r"\n {0,2}\S", block)[0], re.MULTILINE)


def test_the_recipe_needs_what_the_project_needs():
    needed = [re.split(r"(?=[<>=!~])", spec, maxsplit=1) for spec in project()["dependencies"]]
    expected = [f"{OTHER_NAMES.get(name, name)} {limit}" for name, limit in needed]
    python = f"python {project()['requires-python']}"
    assert listed("run") == [python, *expected]
    assert listed("host")[0] == python


def test_the_recipe_is_of_this_version_and_has_the_command():
    recipe = text(RECIPE)
    assert f'version: "{project()["version"]}"' in recipe
    (command,) = project()["scripts"].items()
    assert " = ".join(command) in recipe


@pytest.mark.parametrize("name", ["Dockerfile", "apptainer.def"])
def test_containers_install_the_checkout_and_run_its_command(name):
    recipe = text(f"packaging/{name}")
    assert "pip install --no-cache-dir /src" in recipe
    assert (
        "python:3.12-slim" in recipe
        and "Programming Language :: Python :: 3.12" in project()["classifiers"]
    )
    (command,) = project()["scripts"]
    assert re.search(rf'(ENTRYPOINT \["|exec ){command}', recipe)


def test_types_are_shipped():
    assert (ROOT / "bayes_refine" / "py.typed").is_file()
    wheel = tomllib.loads(text("pyproject.toml"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["bayes_refine"]
