"""The pages in ``docs/`` name what there is: public functions, statuses, sections."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import bayes_refine
from bayes_refine.cli import ending
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
