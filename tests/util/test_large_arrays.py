"""Large arrays are in files, behave as others do, and lose nothing when memory is given back."""

from __future__ import annotations

import mmap
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from bayes_refine.util import large_arrays
from bayes_refine.util.errors import InputError


def in_file(array: np.ndarray) -> bool:
    return isinstance(array.base, mmap.mmap)


def test_only_large_arrays_are_in_files():
    assert not in_file(large_arrays.room(10))
    assert in_file(large_arrays.room((large_arrays.LARGE // 8, 2), np.int32))
    small = np.arange(5)
    assert large_arrays.stored(small) is small


def test_what_is_released_is_still_there():
    values = np.random.default_rng(1).normal(size=(large_arrays.LARGE // 16, 3))
    found = large_arrays.stored(values)
    assert in_file(found)
    assert large_arrays.stored(found) is found  # no second file
    large_arrays.release(found[5:9], None, values)
    np.testing.assert_array_equal(found, values)
    found[7] = 1.0
    large_arrays.release(found)
    assert found[7].tolist() == [1.0, 1.0, 1.0]


def test_slices_are_all_rows_once(monkeypatch):
    monkeypatch.setattr(large_arrays, "SLICE", 7)
    values = np.random.default_rng(2).normal(size=(30, 2))
    rows = np.random.default_rng(3).integers(30, size=23)
    parts = list(large_arrays.slices(len(rows), values))
    assert [part.stop - part.start for part in parts] == [7, 7, 7, 2]
    np.testing.assert_array_equal(large_arrays.taken(values, rows), values[rows])
    assert list(large_arrays.slices(0)) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_given_back():
    def resident() -> float:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE / 2**20

    found = large_arrays.room(1 << 24)  # 128 MiB
    before = resident()
    found[:] = 1.0
    assert resident() > before + 100
    large_arrays.release(found)
    assert resident() < before + 30


def test_a_full_disk_is_one_sentence(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(large_arrays, "_reserve", full)
    with pytest.raises(InputError, match=r"No space left on device.*; set TMPDIR"):
        large_arrays.room(1 << 22)


def test_columns_are_joined_part_by_part(monkeypatch):
    """Columns of 200 parts, 13 MB in all, with no more than a part or two in Python's memory."""
    monkeypatch.setattr(large_arrays, "LARGE", 1 << 16)
    rng = np.random.default_rng(4)
    parts = [(rng.normal(size=(k, 2)), np.full(k, k, np.int16)) for k in rng.integers(1, 5, 9)]
    pairs, numbers = large_arrays.joined(parts)
    assert not in_file(pairs) and numbers.dtype == np.int16
    np.testing.assert_array_equal(pairs, np.concatenate([part[0] for part in parts]))
    np.testing.assert_array_equal(numbers, np.concatenate([part[1] for part in parts]))
    tracemalloc.start()
    (long,) = large_arrays.joined([np.full((4000, 2), k, float)] for k in range(200))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert in_file(long) and long.shape == (800_000, 2) and peak < 500_000
    assert (long[::4000, 1] == np.arange(200)).all()
    long[0] = 7.0
    large_arrays.release(long)
    assert long[0].tolist() == [7.0, 7.0]


def test_what_a_function_makes_of_slices_is_what_it_makes_of_all():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((23, 3, 3)), rng.standard_normal((23, 3))

    def both(a, b):
        assert len(a) <= 5
        return (a @ b[:, :, None])[..., 0], a.sum((1, 2)) > 0, b[:, :0]

    found = large_arrays.in_slices(both, a, b, size=5)
    np.testing.assert_array_equal(found[0], (a @ b[:, :, None])[..., 0])
    np.testing.assert_array_equal(found[1], a.sum((1, 2)) > 0)
    assert found[2].shape == (23, 0)


def test_a_full_disk_is_one_sentence_for_joined_columns(monkeypatch):
    """Small columns need no disk."""

    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(large_arrays.tempfile, "TemporaryFile", full)
    np.testing.assert_array_equal(large_arrays.joined([[np.ones(3)], [np.ones(2)]])[0], np.ones(5))
    monkeypatch.setattr(large_arrays, "LARGE", 1 << 10)
    with pytest.raises(InputError, match=r"No space left on device.*; set TMPDIR"):
        large_arrays.joined([[np.zeros(1000)]])


FAULTS = """
import platform, resource, numpy as np
from bayes_refine.util.large_arrays import keep_freed_memory

def pages_given():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones(4_000_000)  # 32 MB: 7,800 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = pages_given()
keep_freed_memory()
np.ones(4_000_000)
print(platform.libc_ver()[0], first, pages_given())
"""


def test_freed_memory_is_kept():
    """Each array's pages are asked of the system once, in a process of its own."""
    said = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    )
    library, first, then = said.stdout.split(" ")
    if library != "glibc":
        pytest.skip("only glibc can be told to keep freed memory")
    assert int(then) < 0.1 * int(first)
