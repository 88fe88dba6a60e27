"""Damaged runs as other programs write them, through the doors of ``fit`` and of ``merge``.

Streams, geometries and cells of CrystFEL, reflection tables of DIALS, files of XDS, lists of files.
"""

from __future__ import annotations

import gzip
import shutil
import tracemalloc
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bayes_refine.cli.inputs import given_from
from bayes_refine.io.crystfel_experiments import usable_of_stream
from bayes_refine.io.dials_reflections import read_refl, refl_bytes
from bayes_refine.io.open_experiments import open_experiments
from bayes_refine.io.open_unmerged import open_unmerged
from bayes_refine.io.recognise import Kind, expanded, kind_of
from bayes_refine.util.errors import InputError

from ..damage import damaged_bytes, damaged_numbers, damaged_text
from ..outcomes import Case, check_inspected, check_sentence, here
from ..sane import check_experiments, check_unmerged
from ..sound import (
    EACH,
    GROUP,
    INTEGRATE,
    N_IMAGES,
    XDS,
    observations,
    rows_of,
    sound,
    xds_table,
)


def damaged_file(rng: np.random.Generator, name: str, path: Path) -> Path:
    """A text file of the sound run, its bytes or its lines and words damaged."""
    text = (sound() / name).read_text()
    if rng.random() < 0.3:
        path.write_bytes(damaged_bytes(rng, text.encode()))
    else:
        path.write_text(damaged_text(rng, text), encoding="utf-8")
    return path


def through_fit(path: Path, *others: str, geometry: Path | None = None) -> str:
    """The outcome of a run whose stills are read for a fit."""
    try:
        found = open_experiments(path, GROUP, geometry)
        check_experiments(found)
    except InputError as error:
        check_sentence(error, path.name, *others)
        return "refused"
    return "left out" if found.left_out or len(found) < N_IMAGES else "read"


def through_merge(path: Path, *others: str) -> str:
    """The outcome of a run whose observations are read for a merge."""
    try:
        found = check_unmerged(open_unmerged([path], GROUP))
    except InputError as error:
        check_sentence(error, path.name, *others)
        return "refused"
    return "left out" if found.left_out or found.unread else "read"


# -- CrystFEL -------------------------------------------------------------------------------


def stream(rng: np.random.Generator, folder: Path, through=through_fit) -> str:
    path = damaged_file(rng, "run.stream", folder / "run.stream")
    check_inspected(path)
    return through(path)


def packed_stream(rng: np.random.Generator, folder: Path) -> str:
    path = folder / "run.stream.gz"
    if rng.random() < 0.5:
        path.write_bytes(gzip.compress(damaged_file(rng, "run.stream", path).read_bytes()))
    else:
        data = gzip.compress((sound() / "run.stream").read_bytes())
        path.write_bytes(damaged_bytes(rng, data))
    check_inspected(path)
    return (through_fit, through_merge)[rng.integers(2)](path)


def geometry(rng: np.random.Generator, folder: Path) -> str:
    """A damaged ``--geometry`` with a sound stream."""
    geom = damaged_file(rng, "run.geom", folder / "run.geom")
    check_inspected(geom)
    path = Path(shutil.copy(sound() / "run.stream", folder))
    said = through_fit(path, geom.name, geometry=geom)
    if said != "refused":
        try:
            found = open_experiments(path, GROUP, geom)
            usable = usable_of_stream(found, geom)
            shape = found.stills[0].detector.image_shape
            assert usable is None or (usable.shape == shape and usable.dtype == bool)
        except InputError as error:
            check_sentence(error, geom.name, path.name)
            return "refused"
    return said


def cell(rng: np.random.Generator, folder: Path) -> str:
    """A damaged ``--cell``."""
    path = damaged_file(rng, "run.cell", folder / "run.cell")
    check_inspected(path)
    try:
        found = given_from(None, str(path)).cell
    except InputError as error:
        check_sentence(error, path.name)
        return "refused"
    assert np.isfinite(found.parameters).all() and found.volume > 1
    return "read"


# -- DIALS ----------------------------------------------------------------------------------


def reflections(rng: np.random.Generator, folder: Path) -> str:
    """A damaged ``.refl`` beside a sound ``.expt``: bytes, numbers, columns, or the document."""
    expt = Path(shutil.copy(sound() / "indexed.expt", folder))
    refl, source = folder / "indexed.refl", sound() / "indexed.refl"
    kind = rng.integers(4)
    if kind == 0:
        refl.write_bytes(damaged_bytes(rng, source.read_bytes()))
    elif kind == 1:
        document = msgspec.msgpack.decode(source.read_bytes())
        refl.write_bytes(msgspec.msgpack.encode(damaged_document(rng, document)))
    else:
        table = read_refl(source)
        columns, names = dict(table.columns), dict(table.identifiers)
        name = str(rng.choice(list(columns)))
        values = columns[name].reshape(len(table), -1)
        with np.errstate(all="ignore"):
            changed = damaged_numbers(rng, values).reshape(columns[name].shape)
            columns[name] = np.nan_to_num(changed).astype(values.dtype)
            if values.dtype.kind == "f":
                columns[name] = changed
        if kind == 3:
            del columns[str(rng.choice(list(columns)))]
            names = {k + int(rng.integers(3)): v for k, v in names.items()}
        refl.write_bytes(refl_bytes(columns, names))
    check_inspected(refl, expt.name)
    assert through_fit(expt) == "read"  # a fit does not look at it
    assert through_fit(refl) == "refused"
    return through_merge((refl, expt)[rng.integers(2)], refl.name, expt.name)


def damaged_document(rng: np.random.Generator, document: list) -> list:
    """The decoded table with one value of another type or size."""
    body = document[2]
    column = str(rng.choice(list(body["data"])))
    wrong = [None, -1, 10**12, "x", [], {}, [1], b"12345678", float("nan"), True]
    value = wrong[rng.integers(len(wrong))]
    kind = rng.integers(6)
    if kind == 0:
        document[int(rng.integers(3))] = value
    elif kind == 1:
        body[str(rng.choice(["nrows", "identifiers", "data"]))] = value
    elif kind == 2:
        body["data"][column] = value
    elif kind == 3:
        body["data"][column][int(rng.integers(2))] = value
    elif kind == 4:
        body["data"][column][1][int(rng.integers(2))] = value
    else:
        body["data"][column][0] = str(rng.choice(["double", "int6", "std::string", "bool"]))
    return document


# -- XDS ------------------------------------------------------------------------------------


def xds(name: str, rng: np.random.Generator, folder: Path) -> str:
    path = folder / name
    if rng.random() < 0.5:
        damaged_file(rng, name, path)
    else:
        table = np.concatenate([xds_table(observations(rng), k) for k in range(N_IMAGES)])
        table = damaged_numbers(rng, table[:, :12] if name.startswith("XDS") else table)
        head = XDS if name.startswith("XDS") else INTEGRATE
        path.write_text(head + rows_of(table) + "!END_OF_DATA\n")
    check_inspected(path)
    return through_merge(path)


# -- several files --------------------------------------------------------------------------


def files(rng: np.random.Generator, folder: Path) -> str:
    """A damaged list of files, or a pattern, of which one file may be damaged."""
    for k in range(3):
        name = ("indexed.expt", "run.stream")[rng.integers(2)]
        path = folder / f"{k}_{name}"
        if rng.random() < 0.2:
            damaged_file(rng, name, path)
        else:
            shutil.copy(sound() / name, path)
    names = sorted(path.name for path in folder.iterdir())
    path = folder / "all.lst"
    text = "\n".join(names) + "\n"
    if rng.random() < 0.3:
        path.write_bytes(damaged_bytes(rng, text.encode()))
    else:
        path.write_text(damaged_text(rng, text), encoding="utf-8")
    check_inspected(path, *names)
    given = path if rng.random() < 0.7 else folder / str(rng.choice(["*", "*.none", "[", "?_*"]))
    try:
        assert all(p.exists() for p in expanded([given]))
    except InputError as error:
        check_sentence(error, given.name, path.name, *names)
    return through_fit(given, path.name, *names)


KINDS: dict[str, Case] = {
    ".stream, fit": stream,
    ".stream, merge": partial(stream, through=through_merge),
    ".stream.gz": packed_stream,
    ".geom": geometry,
    "CrystFEL cell": cell,
    ".refl": reflections,
    "XDS_ASCII.HKL": partial(xds, "XDS_ASCII.HKL"),
    "INTEGRATE.HKL": partial(xds, "INTEGRATE.HKL"),
    "lists and patterns": files,
}


def test_the_sound_files_are_read(tmp_path):
    for name in ("indexed.expt", "run.stream", "run_process.h5"):
        assert through_fit(sound() / name) == "read"
    for name in ("indexed.refl", "run.stream", "run_process.h5", "XDS_ASCII.HKL", "INTEGRATE.HKL"):
        assert len(check_unmerged(open_unmerged([sound() / name], GROUP))) > 60


def test_texts_that_are_no_list(tmp_path):
    """A word that is too long for a name of a file, and bytes that are no text."""
    (tmp_path / "a.txt").write_text("x" * 5000 + "\n")
    assert kind_of(tmp_path / "a.txt") is Kind.UNKNOWN
    (tmp_path / "a.lst").write_bytes(b"a.txt\n\xff\n")
    with pytest.raises(InputError, match=r"a\.lst cannot be read as a list of files"):
        list(expanded([tmp_path / "a.lst"]))
    with pytest.raises(InputError, match="cannot be read"):
        kind_of("nul\0nul")


def test_a_number_far_from_all_experiments_takes_no_memory(tmp_path):
    """An id of 2³⁰, for which a table of all ids would have taken 8 GiB."""
    shutil.copy(sound() / "indexed.expt", tmp_path)
    table = read_refl(sound() / "indexed.refl")
    columns = {name: np.array(values) for name, values in table.columns.items()}
    columns["id"][-1] = 2**30
    (tmp_path / "indexed.refl").write_bytes(refl_bytes(columns, table.identifiers))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="reflections of experiment 1073741824"):
            open_unmerged([tmp_path / "indexed.refl"])
        assert tracemalloc.get_traced_memory()[1] < 2**28
    finally:
        tracemalloc.stop()
    columns["id"][-1], columns["panel"][-2] = -7, 2**64 - 1  # of none, and on no panel
    (tmp_path / "indexed.refl").write_bytes(refl_bytes(columns, table.identifiers))
    found = open_unmerged([tmp_path / "indexed.refl"])
    assert len(found) == len(table) - 1 and np.isnan(found.xy_px[-1]).all()


def test_an_observation_of_no_image_is_left_out(tmp_path):
    """ZD is NaN, beyond 2³¹, or a number."""
    text = (sound() / "XDS_ASCII.HKL").read_text().splitlines()
    first = text.index("!END_OF_HEADER") + 1
    for k, word in enumerate(("nan", "1e30")):
        words = text[first + k].split()
        text[first + k] = " ".join([*words[:7], word, *words[8:]])
    (tmp_path / "a.HKL").write_text("\n".join(text) + "\n")
    found = open_unmerged([tmp_path / "a.HKL"])
    assert found.left_out == {"without an image": 2} and len(found) == N_IMAGES * EACH - 2


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(tmp_path, kind):
    found = here({kind: KINDS[kind]}, 0, 12, tmp_path)[kind]
    assert found["refused"] > 0 < found["read"] + found["left out"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files(tmp_path, kind):
    here({kind: KINDS[kind]}, 1, 200, tmp_path)
