"""Dependencies run one way (CONTRIBUTING): read from the sources, nothing is imported."""

import ast
from pathlib import Path

import pytest

import bayes_refine

ROOT = Path(bayes_refine.__file__).parent
ORDER = (
    *("util", "geometry", "physics", "io", "measuring", "infer"),
    *("simulation", "indexing", "merging", "fitting", "learned", "per_pixel"),
    *("report", "results", "cli"),
)
ABOVE = {"demo", "crystal", "predict"}  # modules of the package itself that look at fits
FILES = sorted(ROOT.rglob("*.py"))


def imports(file: Path):
    """Absolute parts of (module, name) of every ``from ... import`` of a file of the package."""
    package = ("bayes_refine", *file.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            parts = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                parts = (*package[: len(package) - node.level + 1], *parts)
            yield from ((*parts, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)


def test_the_order_knows_every_sub_package():
    found = {file.parent.name for file in FILES if file.parent.parent == ROOT}
    assert found - {"models"} == set(ORDER)  # the models travel in the wheel


@pytest.mark.parametrize("package", ORDER)
def test_a_sub_package_imports_only_those_before_it(package):
    later = set(ORDER[ORDER.index(package) + 1 :])
    for file in (ROOT / package).rglob("*.py"):
        ours = {parts[1] for parts in imports(file) if parts[0] == "bayes_refine" and parts[1:]}
        assert not ours & later, file


def test_modules_of_the_package_stand_below_the_others():
    for file in ROOT.glob("*.py"):
        if file.stem not in {"__init__", *ABOVE}:
            ours = {parts[1] for parts in imports(file) if parts[0] == "bayes_refine" and parts[1:]}
            assert not ours & set(ORDER[1:]), file


def test_no_module_imports_what_is_private_to_another():
    for file in FILES:
        for parts in imports(file):
            if parts[0] == "bayes_refine":
                assert not parts[-1].startswith("_") or parts[-1].startswith("__"), (file, parts)


def test_functions_have_at_most_eight_parameters():
    """Of the library and the models; the command line's are its options."""
    long = {}
    for file in FILES:
        if file.relative_to(ROOT).parts[0] == "cli":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                names = [a.arg for a in given if a.arg not in ("self", "cls")]
                if len(names) > 8:
                    long[f"{file.name}: {node.name}"] = names
    assert not long


def test_random_numbers_come_from_a_generator_given_by_name():
    """``rng`` is keyword-only, so that no call depends on where among the arguments it stands."""
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                by_place = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
                assert "rng" not in by_place, f"{file.name}: {node.name}"


def test_files_have_at_most_four_hundred_lines():
    long = {f.name: n for f in FILES if (n := len(f.read_text("utf-8").splitlines())) > 400}
    assert not long


def test_numpyro_stays_in_inference_and_models():
    for file in FILES:
        if file.relative_to(ROOT).parts[0] not in ("infer", "models", "per_pixel"):
            assert not any(parts[0] == "numpyro" for parts in imports(file)), file
