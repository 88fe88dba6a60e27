"""Damaged image files of every kind: an image or one sentence, nothing else, and in time.

The cases are read in a process of their own, so that a crash or a hang of a library in C is seen as
what it is.  ``python test_image_mutations.py SEED N FOLDER`` reads N cases of a seed.
"""

from __future__ import annotations

import bz2
import gzip
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

NY, NX, IMAGES = 24, 16, 3
SECONDS = 10  # for one case


# -- sound files ----------------------------------------------------------------------------


def nexus(path: Path, **storage) -> Path:
    import h5py

    with h5py.File(path, "w") as file:
        for name, nx_class in [
            ("entry", "NXentry"),
            ("entry/data", "NXdata"),
            ("entry/instrument", "NXinstrument"),
            ("entry/instrument/detector", "NXdetector"),
            ("entry/instrument/beam", "NXbeam"),
        ]:
            file.create_group(name).attrs["NX_class"] = nx_class
        file["entry/data"].attrs["signal"] = "data"
        file["entry/data"].create_dataset("data", data=stack(), **storage)
        detector = file["entry/instrument/detector"]
        detector["pixel_mask"] = np.zeros((NY, NX), np.uint32)
        detector["saturation_value"], detector["underload_value"] = 60000, 0
        file["entry/instrument/beam/incident_wavelength_spread"] = 0.001
    return path


def stack():
    return np.random.default_rng(1).integers(0, 999, (IMAGES, NY, NX)).astype(np.int32)


def eiger(path: Path) -> Path:
    import h5py

    piece = path.with_name("piece.h5")
    with h5py.File(piece, "w") as file:
        file["data"] = stack()
    nexus(path)
    with h5py.File(path, "a") as file:
        del file["entry/data/data"]
        for k in (1, 2):
            file[f"entry/data/data_{k:06d}"] = h5py.ExternalLink("piece.h5", "data")
    return path


def virtual(path: Path) -> Path:
    import h5py

    piece = path.with_name("piece.h5")
    with h5py.File(piece, "w") as file:
        file.create_dataset("data", data=stack(), chunks=(1, 8, NX))
    nexus(path)
    layout = h5py.VirtualLayout((IMAGES, NY, NX), np.int32)
    layout[...] = h5py.VirtualSource("piece.h5", "data", shape=(IMAGES, NY, NX))
    with h5py.File(path, "a") as file:
        del file["entry/data/data"]
        file["entry/data"].create_virtual_dataset("data", layout)
    return path


def cbf(path: Path) -> Path:
    import fabio.cbfimage

    fabio.cbfimage.CbfImage(data=stack()[0]).write(str(path))
    return path


def packed_cbf(path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pycbf
    handle = pycbf.cbf_handle_struct()
    handle.new_datablock("x")
    handle.new_category("array_data")
    handle.new_column("data")
    handle.new_row()
    sizes = (NX * NY, b"little_endian", NX, NY, 1, 0)
    handle.set_integerarray_wdims_fs(pycbf.CBF_PACKED, 1, stack()[0].tobytes(), 4, 1, *sizes)
    handle.write_widefile(str(path), pycbf.CBF, pycbf.MIME_HEADERS | pycbf.MSG_DIGEST, 0)
    return path


def tiff(path: Path) -> Path:
    import fabio.tifimage

    fabio.tifimage.TifImage(data=stack()[0]).write(str(path))
    return path


def edf(path: Path) -> Path:
    import fabio.edfimage

    fabio.edfimage.EdfImage(data=stack()[0]).write(str(path))
    return path


def smv(path: Path) -> Path:
    order = "BYTE_ORDER=little_endian;\nTYPE=unsigned_short;"
    header = f"{{\nHEADER_BYTES=  512;\nDIM=2;\n{order}\nSIZE1={NX};\nSIZE2={NY};\n}}\n\f"
    path.write_bytes(header.encode().ljust(512) + stack()[0].astype("<u2").tobytes())
    return path


def compressed(make, pack):
    def write(path: Path) -> Path:
        path.write_bytes(pack(make(path).read_bytes()))
        return path

    return write


SOUND = {
    "bitshuffled.h5": lambda path: nexus(path, chunks=(1, NY, NX), **bitshuffle()),
    "deflated.h5": lambda path: nexus(path, chunks=(2, 8, NX), compression="gzip"),
    "plain.h5": nexus,
    "eiger_master.h5": eiger,
    "virtual.h5": virtual,
    "image.cbf": cbf,
    "packed.cbf": packed_cbf,
    "image.cbf.bz2": compressed(cbf, bz2.compress),
    "image.cbf.gz": compressed(cbf, gzip.compress),
    "image.tif": tiff,
    "image.edf": edf,
    "image.img": smv,
    "image.img.gz": compressed(smv, gzip.compress),
}


def bitshuffle():
    import hdf5plugin

    return dict(hdf5plugin.Bitshuffle())


# -- damage ---------------------------------------------------------------------------------


def damage_bytes(path: Path, rng: np.random.Generator) -> str:
    """One of: cut, flip, blank, repeat, insert, append."""
    data = bytearray(path.read_bytes())
    n = len(data)
    kind = rng.choice(["cut", "flip", "flip in the header", "blank", "repeat", "insert", "append"])
    at = int(rng.integers(n))
    size = int(rng.integers(1, max(n // 4, 2)))
    if kind == "cut":
        del data[at:]
    elif kind.startswith("flip"):
        for k in rng.integers(min(n, 1024) if "header" in kind else n, size=rng.integers(1, 12)):
            data[k] = rng.integers(256)
    elif kind == "blank":
        data[at : at + size] = bytes([rng.choice([0, 255])]) * len(data[at : at + size])
    elif kind == "repeat":
        data[at:at] = data[at : at + size]
    elif kind == "insert":
        data[at:at] = rng.bytes(size)
    else:
        data += rng.bytes(size)
    path.write_bytes(data)
    return str(kind)


OBJECTS = (
    "entry/data/data",
    "entry/data",
    "entry/instrument/detector/pixel_mask",
    "entry/instrument/detector/saturation_value",
    "entry/instrument/beam/incident_wavelength_spread",
    "entry/instrument",
    "entry",
)


def replacements(path: Path):
    """Name → what may stand where numbers are expected."""
    import h5py

    pixels = stack()
    fifo = path.with_name("fifo.h5")
    if not fifo.exists():
        os.mkfifo(fifo)
    shape = (IMAGES, NY, NX)
    return {
        "text": lambda f, k: f.create_dataset(k, data="words"),
        "texts": lambda f, k: f.create_dataset(k, data=[b"a", b"b", b"c"]),
        "compound": lambda f, k: f.create_dataset(k, data=np.zeros(shape, "i4,f8")),
        "complex": lambda f, k: f.create_dataset(k, data=pixels.astype(complex)),
        "group": lambda f, k: f.create_group(k),
        "empty": lambda f, k: f.create_dataset(k, data=h5py.Empty("i4")),
        "no images": lambda f, k: f.create_dataset(k, data=pixels[:0]),
        "no pixels": lambda f, k: f.create_dataset(k, data=pixels[:, :, :0]),
        "a number": lambda f, k: f.create_dataset(k, data=7),
        "not a number": lambda f, k: f.create_dataset(k, data=np.full(shape, np.nan)),
        "infinite": lambda f, k: f.create_dataset(k, data=np.full(shape, -np.inf)),
        "huge numbers": lambda f, k: f.create_dataset(k, data=np.full(shape, 1e300)),
        "a row": lambda f, k: f.create_dataset(k, data=pixels[0, 0]),
        "five dimensions": lambda f, k: f.create_dataset(k, data=pixels[None, None]),
        "another shape": lambda f, k: f.create_dataset(k, data=pixels[:, 1:]),
        "one image": lambda f, k: f.create_dataset(k, data=pixels[0]),
        "big-endian": lambda f, k: f.create_dataset(k, data=pixels.astype(">i8")),
        "half precision": lambda f, k: f.create_dataset(k, data=pixels.astype("f2")),
        "long double": lambda f, k: f.create_dataset(k, data=pixels.astype(np.longdouble)),
        "truth values": lambda f, k: f.create_dataset(k, data=pixels > 500),
        "lists": lambda f, k: f.create_dataset(k, (3,), h5py.vlen_dtype("i4")),
        "references": lambda f, k: f.create_dataset(k, (3,), h5py.ref_dtype),
        "opaque": lambda f, k: f.create_dataset(k, data=np.zeros(3, "V7")),
        "10⁹ images": lambda f, k: f.create_dataset(
            k, (10**9, NY, NX), "i4", chunks=(1, NY, NX)
        ),
        "200,000²": lambda f, k: f.create_dataset(k, (200_000,) * 2, "i4", chunks=(1, 100)),
        "one chunk for all": lambda f, k: f.create_dataset(
            k, (10**6, NY, NX), "i4", chunks=(10**6, NY, NX), maxshape=(None, NY, NX)
        ),
        "never written": lambda f, k: f.create_dataset(k, shape, "i4"),
        "link to nowhere": lambda f, k: f.__setitem__(k, h5py.SoftLink("/nowhere")),
        "link to itself": lambda f, k: f.__setitem__(k, h5py.SoftLink("/" + k)),
        "link to the root": lambda f, k: f.__setitem__(k, h5py.SoftLink("/")),
        "absent file": lambda f, k: f.__setitem__(k, h5py.ExternalLink("absent.h5", k)),
        "own file": lambda f, k: f.__setitem__(k, h5py.ExternalLink(path.name, k)),
        "a folder": lambda f, k: f.__setitem__(k, h5py.ExternalLink(".", k)),
        "a pipe": lambda f, k: f.__setitem__(k, h5py.ExternalLink("fifo.h5", k)),
        "own source": lambda f, k: f.create_virtual_dataset(
            k, over(h5py, ".", "/" + k, shape)
        ),
        "absent source": lambda f, k: f.create_virtual_dataset(
            k, over(h5py, "absent.h5", "data", shape)
        ),
        "source of another shape": lambda f, k: f.create_virtual_dataset(
            k, over(h5py, ".", "/entry/instrument/detector/pixel_mask", (NY, NX))
        ),
    }  # fmt: skip


def over(h5py, name: str, key: str, shape):
    layout = h5py.VirtualLayout((IMAGES, NY, NX), np.int32)
    source = h5py.VirtualSource(name, key, shape=shape)
    if len(shape) == 3:
        layout[...] = source
    else:
        layout[0] = source
    return layout


def damage_objects(path: Path, rng: np.random.Generator) -> str:
    """Replace an object of an HDF5 file, or an attribute."""
    import h5py

    name = str(rng.choice(OBJECTS))
    with h5py.File(path, "a") as file:
        if rng.random() < 0.2:
            values = [7, [1.5, 2.5], "x" * 60_000, b"\xff\xfe", "data_1", h5py.Empty("f4"), "../.."]
            k = int(rng.integers(len(values)))
            attribute = str(rng.choice(["signal", "NX_class", "units", "image_nr_low"]))
            if name in file:
                file[name].attrs[attribute] = values[k]
            return f"attribute {attribute} of {name}: {str(values[k])[:10]!r}"
        choices = replacements(path)
        kind = str(rng.choice(list(choices)))
        if name in file:
            del file[name]
        elif file.get(name, getlink=True) is not None:
            del file[name]
        choices[kind](file, name)
    return f"{kind} for {name}"


def cases(seed: int, n: int, folder: Path):
    """(what was done, path) of n damaged files."""
    for k in range(n):
        rng = np.random.default_rng([seed, k])
        here = folder / str(k)
        here.mkdir()
        name = list(SOUND)[k % len(SOUND)]
        path = SOUND[name](here / name)
        if name.endswith(".h5") and rng.random() < 0.7:
            done = damage_objects(path, rng)
        elif (here / "piece.h5").exists() and rng.random() < 0.5:
            done = "piece: " + damage_bytes(here / "piece.h5", rng)
        else:
            done = damage_bytes(path, rng)
        yield f"{name}: {done}", path


# -- reading --------------------------------------------------------------------------------


def still(path: Path, frame: int):
    from bayes_refine.geometry.crystal import Crystal
    from bayes_refine.geometry.detector import Beam, Detector
    from bayes_refine.geometry.experiments import Still

    one = np.ones(1)
    detector = Detector(
        origin_mm=np.array([[0.0, 0.0, 100.0]]),
        fast=np.array([[1.0, 0.0, 0.0]]),
        slow=np.array([[0.0, 1.0, 0.0]]),
        pixel_size_mm=np.full((1, 2), 0.1),
        shape=np.array([[NY, NX]]),
        trusted_range=np.array([[-1.0, 1e6]]),
        gain=one,
        pedestal=0 * one,
        thickness_mm=0 * one,
        mu_per_mm=0 * one,
    )
    beam = Beam(1.25, np.array([0, 0, 1.0]), np.array([0, 1.0, 0]))
    return Still("x", path, frame, beam, detector, Crystal(A=np.eye(3) / 50, hall="P 1"))


def outcome(path: Path) -> str:
    """``image``, ``refused``, or what is wrong with how the file was read."""
    from bayes_refine.io.images import ImageReader, read_bandwidth
    from bayes_refine.util.errors import InputError

    said = "image"
    for frame in (0, 1):
        with ImageReader() as reader:
            try:
                pixels, valid = reader.read(still(path, frame))
                shapes = pixels.shape == valid.shape == (1, NY, NX)
                if not (shapes and pixels.dtype == np.float32 and np.isfinite(pixels).all()):
                    return f"an image of {pixels.shape} {pixels.dtype}, finite or not"
                read_bandwidth(still(path, frame))
            except InputError as error:
                named = path.name in str(error) or "piece.h5" in str(error)
                if not named or "\n" in str(error) or len(str(error)) > 1000:
                    return f"not a sentence with the file: {error}"
                said = "refused"
    return said


def main(seed: int, n: int, folder: Path) -> None:
    import faulthandler
    import logging

    import bayes_refine  # noqa: F401  warnings of third parties at import are not the matter here

    logging.disable()
    warnings.simplefilter("error")
    for what, path in cases(seed, n, folder):
        print(json.dumps([what, None]), flush=True)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            said = outcome(path)
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps([what, said]), flush=True)


def results(seed: int, n: int, folder: Path) -> dict[str, list[str]]:
    """What was said → the cases; a case that crashed or hung was not finished."""
    done = subprocess.run(
        [sys.executable, __file__, str(seed), str(n), str(folder)],
        capture_output=True,
        text=True,
        timeout=60 + SECONDS + n,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr
    found: dict[str, list[str]] = {}
    for what, said in lines:
        if said is not None:
            found.setdefault(said, []).append(what)
    if lines[-1][1] is None:
        found[f"crash or hang: {done.stderr[-600:]}"] = [lines[-1][0]]
    return found


def test_damaged_files_give_an_image_or_a_sentence(tmp_path):
    found = results(seed=1, n=52, folder=tmp_path)
    assert set(found) == {"image", "refused"}, found
    assert len(found["refused"]) > 15 and len(found["image"]) > 5  # neither is all there is


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_many_damaged_files_give_an_image_or_a_sentence(tmp_path, seed):
    found = results(seed=seed, n=400, folder=tmp_path)
    assert set(found) == {"image", "refused"}, found


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
