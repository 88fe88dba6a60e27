"""Stores on disk: what is read is what was put, by any process, or it is refused."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import fields, replace
from zlib import crc32

import h5py
import numpy as np
import pytest

from bayes_refine.fitting.measure_batch import MeasuredBatch, Said
from bayes_refine.fitting.padding import Layout
from bayes_refine.util import array_file
from bayes_refine.util import store as stores
from bayes_refine.util.errors import InputError
from bayes_refine.util.output import digest
from bayes_refine.util.store import Store, hold_in_memory, places

SAID = Said(
    np.array([[0.1 + 0.2], [1 / 3]]), None, np.array([3, 0]), ("", "lost (x)"),
    (("a/b.h5", 4, ((0.1, 0.2), (0.3, 0.4))), ("c.h5", 0, ())),
)  # fmt: skip
LAYOUT = Layout(np.array([0, 0, 1]), np.array([0, 1, 0]), (2, 32))


def both(folder):
    store: Store[MeasuredBatch] = Store(3, folder, {"state": "1"})
    store.put(1, MeasuredBatch(LAYOUT, SAID, SAID))  # type: ignore[arg-type]
    return store


def test_what_is_read_is_what_was_put(tmp_path):
    found = pickle.loads(pickle.dumps(both(tmp_path / "s")))[1]
    for item in (found.observations, both(tmp_path / "s").of("said")[1]):
        assert item.log_G.tobytes() == SAID.log_G.tobytes()
        assert (item.log_G0, item.status, item.rings) == (None, SAID.status, SAID.rings)
        assert [str(s) for s in item.statuses()] == ["", "lost (x)"]
        assert len(item.rings_found()) == 2
    assert found.batch.shape == (2, 32)


def test_any_program_can_read_it(tmp_path):
    both(tmp_path / "s")
    with h5py.File(tmp_path / "s" / "000" / "000001.h5") as file:
        assert file.attrs["state"] == b"1" and file.attrs["version"] == 2
        assert file["said/log_G"][1, 0] == 1 / 3
        assert json.loads(file["said"].attrs["crc32"])["data"]["counts"] == crc32(SAID.counts)
        assert json.loads(file["batch"].attrs["values"]) == {"shape": {"tuple": [2, 32]}}


def test_arrays_of_all_kinds_are_the_same_when_they_are_read_again(tmp_path):
    arrays = {
        "flags": np.array([True, False]),
        "number": np.float64(1 / 3),
        "none": np.zeros((0, 3)),
        "single": np.arange(6, dtype="f4").reshape(1, 2, 3),
    }
    array_file.write(tmp_path / "a.h5", {**arrays, "part": {"text": "x"}}, {})
    for _ in range(2):
        found = array_file.read(tmp_path / "a.h5")
        assert found.pop("part") == {"text": "x"} and found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(found[name], array)


def test_only_what_was_made_of_the_same_is_found(tmp_path):
    both(tmp_path / "s")
    same, other = (Store(3, tmp_path / "s", {"state": x}) for x in "12")
    assert same.find(1) is not None and same.find(0) is None and other.find(1) is None
    with pytest.raises(InputError, match=r"000001\.h5: what was measured is gone or damaged"):
        other[1]


def test_long_texts_and_zeros(tmp_path):
    """More text than HDF5 puts beside its object, and a part of the file that a disk lost."""
    store: Store[Said] = Store(1, tmp_path / "s")
    said = replace(SAID, status=("x" * 100_000, ""), log_G=np.ones((4000, 1)))
    store.put(0, said)
    assert store.find(0).status == said.status
    path = tmp_path / "s" / "000" / "000000.h5"
    content = path.read_bytes()
    ones = content.index(np.ones(8).tobytes())
    for start in (ones, content.index(b"x" * 64)):
        path.write_bytes(content[:start] + bytes(16_000) + content[start + 16_000 :])
        assert store.find(0) is None


@pytest.mark.parametrize("at", [0.2, 0.5, 0.9])
def test_a_changed_byte_is_noticed(tmp_path, at):
    """Of the data: every byte of the data sets, which are larger than all else."""
    store: Store[Layout] = Store(1, tmp_path / "s")
    store.put(0, Layout(np.arange(10_000), np.arange(10_000), (1, 1)))
    path = tmp_path / "s" / "000" / "000000.h5"
    assert store.find(0) is not None  # it is checked again after it was read once
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1
    path.write_bytes(content)
    assert store.find(0) is None
    path.write_bytes(content[: len(content) // 2])
    assert store.find(0) is None


def test_a_file_that_is_cut_while_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    array_file.write(path, {"x": np.arange(1000)}, {})
    assert array_file.read(path)["x"][-1] == 999
    before = path.stat()
    path.write_bytes(path.read_bytes()[:-2000])
    monkeypatch.setattr(array_file.os, "fstat", lambda _: before)  # as it was a moment ago
    with pytest.raises(array_file.Damaged, match=r"a\.h5: x ends early"):
        array_file.read(path)


def test_a_temporary_one_goes_with_its_last_view(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    view = both(None).of("said")
    folder = view.folder
    assert view[1].counts.tolist() == [3, 0]
    del view
    assert not folder.exists()


def test_memory_holds_the_last_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "_MEMORY", stores._Memory())
    store = both(tmp_path / "s")
    assert store.of("said")[1] is not store.of("said")[1]
    hold_in_memory(10**6)
    assert store.of("said")[1] is store.of("said")[1]
    assert pickle.loads(pickle.dumps(places(store)[1])).get() is store[1]
    store.put(1, MeasuredBatch(LAYOUT, SAID, LAYOUT))  # type: ignore[arg-type]
    assert isinstance(store.of("said")[1], Layout)  # not the one before
    hold_in_memory(0)


def test_a_digest_is_of_values_to_the_last_bit():
    code = (
        "import numpy as np; from bayes_refine.util.output import digest;"
        "print(digest({'b': [1, None], 'a': np.arange(3.)}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    mine = {"a": np.arange(3.0), "b": [1, None]}
    assert found.stdout.strip() == digest(mine)
    others = [
        {"a": np.nextafter(np.arange(3.0), 9), "b": [1, None]},
        {"a": np.arange(3), "b": [1, None]},
        {"a": np.arange(3.0), "b": [1.0, None]},
        {"a": np.arange(3.0), "b": [[1], None]},
        {"a": np.arange(3.0).reshape(3, 1), "b": [1, None]},
    ]
    assert len({digest(x) for x in [mine, *others]}) == 1 + len(others)


def test_every_field_of_a_batch_is_written():
    assert {f.name for f in fields(MeasuredBatch)} == {"batch", "observations", "said"}
