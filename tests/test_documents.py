"""The pages in ``docs/`` name what there is: public functions, statuses, sections."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

import bayes_refine
from bayes_refine.cli import ending
from bayes_refine.cli.app import app
from bayes_refine.util.status import Kind

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_every_public_name_is_in_the_api_once():
    shown = re.findall(r"^::: bayes_refine\.(\w+)$", page("api.md"), re.MULTILINE)
    assert sorted(shown) == sorted(bayes_refine.__all__)


@pytest.mark.parametrize("kind", list(Kind))
def test_every_status_is_explained(kind):
    assert re.search(rf"^\| `{kind}[` ]", page("troubleshooting.md"), re.MULTILINE)


def test_exit_statuses_are_explained():
    shown = set(re.findall(r"^\| (\d+) \|", page("troubleshooting.md"), re.MULTILINE))
    statuses = {0, ending.UNUSABLE, ending.NO_MEMORY, ending.STOPPED + 2, ending.STOPPED + 15}
    assert shown == {str(status) for status in statuses}


def test_sections_of_the_theory_that_the_code_refers_to():
    headings = re.findall(r"^## (.+)$", page("theory.md"), re.MULTILINE)
    named = []
    for folder in ("bayes_refine", "models"):
        for file in (ROOT / folder).rglob("*.py"):
            text = re.sub(r"\s+", " ", file.read_text(encoding="utf-8"))
            named += [(file.name, m) for m in re.findall(r"docs/theory\.md, ([^).;]+)", text)]
    assert len(named) > 10
    unknown = [(name, said) for name, said in named if said.strip() not in headings]
    assert not unknown


def commands_of(text: str) -> list[list[str]]:
    """The words of each ``bayes-refine ...`` in the blocks of a page."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    lines = re.findall(r"bayes-refine .*", re.sub(r"[\[\]|…]", " ", blocks))
    return [line.split("#")[0].split("&&")[0].split()[1:] for line in lines]


def test_options_in_the_documents_exist():
    commands = typer.main.get_command(app).commands
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    shown = [words for page in pages for words in commands_of(page.read_text(encoding="utf-8"))]
    shown = [words for words in shown if words and words[0] in commands]
    assert len(shown) > 30
    for name, *words in shown:
        known = {option for p in commands[name].params for option in p.opts}
        if commands[name].context_settings.get(
            "ignore_unknown_options"
        ):  # it hands them on to a fit
            known |= {option for p in commands["fit"].params for option in p.opts}
        unknown = {word.split("=")[0] for word in words if word.startswith("--")} - known
        assert not unknown, (name, words)
