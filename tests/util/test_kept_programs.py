"""Programs on disk: traced once, found again, and never another program than the one asked for."""

from functools import partial
from types import FunctionType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_refine.util import kept_programs
from bayes_refine.util.kept_programs import folder_of_programs, keep_programs, kept

traced: list[str] = []
SHIFT = 1.0


class Two(NamedTuple):
    total: jax.Array
    each: jax.Array


def shifted(x, by):
    """Function of arrays whose tracing is noted."""
    traced.append("shifted")
    return Two(jnp.sum(x["a"]) + SHIFT, x["a"] + by)


def power(exponent):
    def of(x):
        traced.append(f"power {exponent}")
        return x**exponent

    return of


def scaled(x, *, how):
    traced.append(how)
    return {"twice": 2 * x, "thrice": 3 * x}[how]


def first(how, x, *rest):
    traced.append(how.__name__)
    return how(x, *rest)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder of programs, to which functions of this file may go."""
    before = folder_of_programs()
    monkeypatch.setattr(kept_programs, "_is_known", lambda module: module is not None)
    traced.clear()
    keep_programs(tmp_path)
    yield tmp_path
    keep_programs(before)


def files(folder):
    return [file for file in folder.rglob("*") if file.is_file()]


def test_a_program_is_traced_once_for_all_processes(folder):
    x, by = {"a": np.arange(3.0)}, np.ones(3)
    for _ in range(3):  # each of these is as a new process
        found = kept(shifted)(x, by)
    assert traced == ["shifted"] and len(files(folder)) == 1
    assert isinstance(found, Two) and float(found.total) == 4.0
    np.testing.assert_array_equal(found.each, [1.0, 2.0, 3.0])


def test_other_shapes_and_types_are_other_programs():
    for x in (np.arange(3.0), np.arange(4.0), np.arange(3.0, dtype=np.float32), 2.0):
        np.testing.assert_array_equal(kept(shifted)({"a": x}, 1)[1], x + 1)
    assert len(traced) == 4


def test_a_number_and_the_array_that_jax_makes_of_it_share_a_program():
    for number in (2.0, 2, True):
        traced.clear()
        for by in (number, jax.device_put(number)):
            found = kept(shifted)({"a": np.arange(3.0)}, by)
            np.testing.assert_array_equal(found.each, np.arange(3.0) + number)
        assert len(traced) == 1


def test_a_compiler_without_the_options_is_given_none(monkeypatch):
    monkeypatch.setattr(kept_programs, "_QUICK", {"xla_no_such_option": True})
    assert kept_programs._options.__wrapped__() == {}


def test_what_a_function_closes_over_makes_the_program():
    values = [float(kept(power(n))(np.float64(3.0))) for n in (2, 3, 2)]
    assert values == [9.0, 27.0, 9.0] and traced == ["power 2", "power 3"]
    values = [float(kept(partial(power(2)))(np.float64(x))) for x in (3, 4)]
    assert values == [9.0, 16.0]
    traced.clear()
    slopes = [float(kept(jax.grad(power(n)))(2.0)) for n in (2, 3, 2)]
    assert slopes == [4.0, 12.0, 4.0] and traced == ["power 2", "power 3"]


def test_static_arguments_by_name_and_by_place():
    x = np.float64(5.0)
    values = [float(kept(scaled, static=("how",))(x, how=h)) for h in ("twice", "thrice", "twice")]
    assert values == [10.0, 15.0, 10.0] and traced == ["twice", "thrice"]
    sums = [float(kept(first, static=("how",))(f, x, x)) for f in (jnp.add, jnp.subtract)]
    assert sums == [10.0, 0.0]


def test_another_function_of_the_same_text_is_not_taken_for_it(folder):
    """Its names mean something else; it is compiled, and not kept."""
    other = FunctionType(shifted.__code__, globals() | {"SHIFT": 100.0})
    x = {"a": np.zeros(2)}
    values = [float(kept(function)(x, 0.0).total) for function in (shifted, other, shifted)]
    assert values == [1.0, 100.0, 1.0] and len(files(folder)) == 1


def test_what_cannot_be_told_is_not_kept(folder, monkeypatch):
    monkeypatch.undo()  # a file that is neither the package's nor a model's
    keep_programs(folder)
    assert float(kept(power(2))(np.float64(3.0))) == 9.0
    assert not files(folder)


@pytest.mark.parametrize("damage", [b"", b"no program", None])
def test_a_damaged_file_is_traced_again(folder, damage):
    keep = kept(power(2))(np.float64(3.0))
    (file,) = files(folder)
    file.write_bytes(file.read_bytes()[:-50] if damage is None else damage)
    assert float(kept(power(2))(np.float64(3.0))) == float(keep) == 9.0
    assert len(traced) == 2
    kept(power(2))(np.float64(3.0))
    assert len(traced) == 2  # it is whole again


def test_a_folder_that_cannot_be_written_costs_nothing_else(folder):
    keep_programs(folder / "file" / "inside")
    (folder / "file").write_text("")
    assert float(kept(power(2))(np.float64(3.0))) == 9.0


def test_inside_another_trace_it_is_a_plain_function():
    square = kept(power(2))
    assert float(jax.grad(lambda x: square(x) + 1)(3.0)) == 6.0
    assert float(jax.jit(square)(3.0)) == 9.0


def test_programs_of_old_sources_are_removed(folder, monkeypatch):
    for version in "abcde":
        monkeypatch.setattr(kept_programs, "_sources", lambda version=version: version)
        kept(power(2))(np.float64(3.0))
    left = {path.name for path in folder.iterdir()}
    assert left == {"c", "d", "e"}
