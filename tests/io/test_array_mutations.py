"""Damaged files of arrays: HDF5 runs, masks, maps of pixels, pulse energies, names of data sets."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

from bayes_refine.io.crystfel_experiments import usable_of_stream
from bayes_refine.io.expt import read_experiments
from bayes_refine.io.images import ImageReader
from bayes_refine.io.jungfraujoch import Names, read_names
from bayes_refine.io.open_experiments import open_experiments
from bayes_refine.io.open_unmerged import open_unmerged
from bayes_refine.io.pixel_maps import read_mask, read_pixel_map
from bayes_refine.io.pulse_energies import with_pulse_energies
from bayes_refine.per_pixel.compare import read_truth
from bayes_refine.util.errors import InputError

from ..damage import damage_objects, damaged_bytes, damaged_numbers, damaged_text, time_limit
from ..outcomes import Case, check_inspected, check_outcomes, check_sentence, in_another_process
from ..sane import check_experiments, check_unmerged
from ..sound import GROUP, N_IMAGES, N_PIXELS, sound

PIXELS = np.random.default_rng(1).integers(0, 999, (N_IMAGES, N_PIXELS, N_PIXELS)).astype("i4")


def damage_hdf5(rng: np.random.Generator, path: Path, names: list[str]) -> None:
    """Damage bytes of a file, or one of the objects ``names``, or numbers of one of them."""
    kind = rng.integers(4)
    if kind == 0:
        path.write_bytes(damaged_bytes(rng, path.read_bytes()))
    elif kind == 1:
        name = str(rng.choice(names))
        with h5py.File(path, "r+") as file:
            found = file.get(name)
            if isinstance(found, h5py.Dataset) and found.dtype.kind in "iuf":
                array = np.asarray(found[()])
                table = damaged_numbers(rng, array.reshape(len(array) if array.ndim else 1, -1))
                del file[name]
                file[name] = table.reshape(array.shape)
    else:
        damage_objects(path, rng, names, PIXELS)


# -- runs -----------------------------------------------------------------------------------


def read_images(path: Path, *others: str, names: Names | None = None) -> str:
    """The outcome of a run whose stills are read with their images."""
    try:
        found = open_experiments(path, GROUP, names=names)
        check_experiments(found)
    except InputError as error:
        check_sentence(error, path.name, *others)
        return "refused"
    bad = len(found.left_out) + N_IMAGES - len(found)
    with ImageReader() as reader:
        for still in found.stills:
            try:
                pixels, valid = reader.read(still)
                assert pixels.shape == valid.shape == still.detector.image_shape
                assert np.isfinite(pixels).all()
            except InputError as error:
                check_sentence(error, path.name, "master.h5", *others)
                bad += 1
    return "left out" if bad else "read"


def merged(path: Path, *others: str, names: Names | None = None) -> str:
    """The outcome of a run whose observations are read."""
    try:
        found = check_unmerged(open_unmerged([path], GROUP, names=names))
    except InputError as error:
        check_sentence(error, path.name, *others)
        return "refused"
    return "left out" if found.left_out else "read"


def jungfraujoch(read: Callable[..., str], rng: np.random.Generator, folder: Path) -> str:
    path = Path(shutil.copy(sound() / "run_process.h5", folder))
    shutil.copy(sound() / "master.h5", folder)
    with h5py.File(path) as file:
        names = ["entry/data/data", "entry/MX", "entry/reflections", "entry"]
        file.visit(lambda name: names.append(name) if name.count("/") > 1 else None)
    damage_hdf5(rng, path, names)
    check_inspected(path, "master.h5", "absent.h5")
    return read(path, "absent.h5")


def names_table(rng: np.random.Generator, folder: Path) -> str:
    """A damaged ``--names``: the packaged table, or a part of it, with other values."""
    from bayes_refine.io import jungfraujoch as module

    path = folder / "names.toml"
    text = Path(module.__file__).with_name("jungfraujoch.toml").read_text("utf-8")
    kind = rng.integers(3)
    if kind == 0:
        path.write_bytes(damaged_bytes(rng, text.encode()))
    elif kind == 1:
        path.write_text(damaged_text(rng, text), encoding="utf-8")
    else:
        table = tomllib.loads(text)
        section = str(rng.choice(list(table)))
        key = str(rng.choice(list(table[section])))
        wrong = ["", [], [""], ["/"], ["/entry"], [1], 1.5, "%d", "%s%s", "\0", ["a\0b"],
                 ["x" * 9999], "h", 0.5, ["/entry/data/data"], ["/entry"] * 9]  # fmt: skip
        value = wrong[rng.integers(len(wrong))]
        path.write_text(f"[{section}]\n{key} = {json.dumps(value)}\n", encoding="utf-8")
    check_inspected(path)
    run = sound() / "run_process.h5"
    try:
        names = read_names(path)
    except InputError as error:
        check_sentence(error, path.name)
        return "refused"
    read = (read_images, merged)[rng.integers(2)]
    return read(run, names=names)


def crystfel_images(rng: np.random.Generator, folder: Path) -> str:
    """Images in the layout of CrystFEL: a stream whose geometry says where they and masks lie."""
    text = (sound() / "run.stream").read_text()
    place, mask = "/entry_1/data_%/data", "/entry_1/data_%/mask"
    mask = mask.replace("%", "1")
    text = text.replace("data = /entry/data/data", f"data = {place}\np0/mask0_data = {mask}")
    text = text.replace("Event: //", "Event: 1//")
    path = folder / "run.stream"
    path.write_text(text, encoding="utf-8")
    image = folder / "master.h5"
    with h5py.File(image, "w") as file:
        file.create_dataset(place.replace("%", "1"), data=PIXELS, chunks=(1, N_PIXELS, N_PIXELS))
        file[mask] = np.zeros((N_PIXELS, N_PIXELS), "u2")
    damage_hdf5(rng, image, [place.replace("%", "1"), mask, "entry_1/data_1", "entry_1"])
    check_inspected(image, "absent.h5")
    said = read_images(path, image.name, "absent.h5")
    try:
        usable = usable_of_stream(open_experiments(path, GROUP))
        assert usable is None or usable.shape == (1, N_PIXELS, N_PIXELS)
    except InputError as error:
        check_sentence(error, image.name)
        return "refused"
    return said


def truth(rng: np.random.Generator, folder: Path) -> str:
    """A damaged ``--truth``."""
    path = Path(shutil.copy(sound() / "truth.h5", folder))
    damage_hdf5(rng, path, ["A", "G", "B"])
    check_inspected(path, "absent.h5")
    try:
        found = read_truth(path, slice(0, N_IMAGES))
    except InputError as error:
        check_sentence(error, path.name, "absent.h5")
        return "refused"
    assert found.A.shape == (N_IMAGES, 3, 3) and np.isfinite(found.A).all()
    for values in (found.G, found.B):
        assert values is None or (values.shape == (N_IMAGES,) and np.isfinite(values).all())
    return "read"


# -- arrays with a number a pixel -----------------------------------------------------------


def array(kind: str, values: np.ndarray, path: Path) -> Path:
    """A sound file of an array."""
    if kind == "npy":
        np.save(path, values)
    elif kind == "h5":
        with h5py.File(path, "w") as file:
            file["entry/instrument/detector/pixel_mask"] = values
    elif kind == "tif":
        import fabio.tifimage

        fabio.tifimage.TifImage(data=values.astype("f4")).write(str(path))
    else:
        import fabio.cbfimage

        fabio.cbfimage.CbfImage(data=values.astype("i4")).write(str(path))
    return path


def pixel_map(kind: str, rng: np.random.Generator, folder: Path) -> str:
    """A damaged mask, or map of gains or pedestals."""
    detector = read_experiments(sound() / "indexed.expt").stills[0].detector
    mask = bool(rng.integers(2))
    values = np.zeros((N_PIXELS, N_PIXELS), "u4") if mask else 2.0 + PIXELS[0].astype("f4")
    if (damage := rng.integers(4)) == 0:
        values = damaged_numbers(rng, values)
    elif damage == 1:
        values = [values[1:], values[None], values[0], values[:, :0], values.astype(complex),
                  values.astype("V4"), np.zeros(0), np.float64(3)][rng.integers(8)]  # fmt: skip
        if kind in ("tif", "cbf") and (values.ndim != 2 or values.dtype.kind not in "iuf"):
            values = np.ones((3, 5))
    with np.errstate(all="ignore"):
        path = array(kind, values, folder / f"array.{kind}")
    if damage == 2 and kind == "h5":
        damage_objects(path, rng, ["entry/instrument/detector/pixel_mask", "entry"], PIXELS)
    elif damage >= 2:
        path.write_bytes(damaged_bytes(rng, path.read_bytes()))
    check_inspected(path, "absent.h5")
    given = path if kind != "h5" or rng.integers(2) else f"{path}:/entry/instrument/detector"
    positive = bool(rng.integers(2))
    try:
        if mask:
            found = read_mask(given, detector)
            assert found.dtype == bool and found.mean() >= 0.5
        else:
            found = read_pixel_map(given, detector, positive)
            assert found.dtype == np.float32 and np.isfinite(found).mean() >= 0.5
            assert not (positive and (found[np.isfinite(found)] <= 0).any())
    except InputError as error:
        check_sentence(error, path.name, "absent.h5")
        return "refused"
    assert found.shape == detector.image_shape
    return "read" if found.all() and np.isfinite(found).all() else "left out"


# -- pulse energies -------------------------------------------------------------------------


def energies(kind: str, rng: np.random.Generator, folder: Path) -> str:
    """A damaged ``--monitor``."""
    stills = read_experiments(sound() / "indexed.expt").stills
    path = folder / f"pulses.{kind}"
    values = rng.uniform(1, 2, N_IMAGES)
    if rng.integers(2):
        values = damaged_numbers(rng, values[:, None])[:, 0]
    if kind == "h5":
        with h5py.File(path, "w") as file:
            file["entry/energy"] = values
        damage_hdf5(rng, path, ["entry/energy", "entry"])
    else:
        rows = [(still.identifier, x) for still, x in zip(stills, values.tolist(), strict=True)]
        if kind == "toml":
            text = "".join(f"{json.dumps(name)} = {x!r}\n" for name, x in rows)
        else:
            text = "identifier,energy\n" + "".join(f"{name},{x!r}\n" for name, x in rows)
        if rng.integers(3):
            path.write_text(damaged_text(rng, text), encoding="utf-8")
        else:
            path.write_bytes(damaged_bytes(rng, text.encode()))
    check_inspected(path, "absent.h5")
    given = f"{path}:/entry/energy" if kind == "h5" and rng.integers(2) else path
    try:
        found = np.array([s.log_pulse_energy for s in with_pulse_energies(stills, given)])
    except InputError as error:
        check_sentence(error, path.name, "absent.h5")
        return "refused"
    good = np.isfinite(found)
    assert good.any() and not np.isinf(found).any() and found[good].max() < 7
    return "read" if good.all() else "left out"


KINDS: dict[str, Case] = {
    "_process.h5, fit": partial(jungfraujoch, read_images),
    "_process.h5, merge": partial(jungfraujoch, merged),
    "names of data sets": names_table,
    "CrystFEL images": crystfel_images,
    "truth of compare": truth,
    **{f"mask or map .{kind}": partial(pixel_map, kind) for kind in ("npy", "tif", "h5", "cbf")},
    **{f"pulse energies .{kind}": partial(energies, kind) for kind in ("csv", "toml", "h5")},
}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("entry/MX/latticeIndexed", "9000000000 numbers, too many"),
        ("entry/reflections", r"reflections in .*fifo\.h5, which does not exist"),
    ],
)
def test_what_is_too_large_or_a_pipe_is_not_opened(tmp_path, name, says):
    """A data set of 36 GB, and a link to a pipe, which would block for ever."""
    path = Path(shutil.copy(sound() / "run_process.h5", tmp_path))
    os.mkfifo(tmp_path / "fifo.h5")
    with h5py.File(path, "r+") as file:
        del file[name]
        if name == "entry/reflections":
            file[name] = h5py.ExternalLink("fifo.h5", "/")
        else:
            file.create_dataset(name, (10**9, 9), "f4", chunks=(1000, 9))
    with time_limit(10), pytest.raises(InputError, match=says):
        open_unmerged([path], GROUP)


def test_damaged_arrays(tmp_path):
    found = in_another_process(__file__, 0, 12, tmp_path)
    check_outcomes(found)
    for outcome in ("refused", "read", "left out"):  # none is all there is
        assert sum(told[outcome] for told in found.values()) > 10, outcome


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 3))
def test_many_damaged_arrays(tmp_path, seed):
    found = in_another_process(__file__, seed, 100, tmp_path)
    check_outcomes(found)
    for kind, told in found.items():
        assert told["refused"] > 0 < told["read"] + told["left out"], kind
