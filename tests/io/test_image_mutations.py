"""Damaged image files of every kind: an image or one sentence, nothing else, and in time."""

from __future__ import annotations

import bz2
import gzip
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ..damage import damage_objects, damaged_bytes
from ..outcomes import check_inspected, check_outcomes, check_sentence, in_another_process

NY, NX, IMAGES = 24, 16, 3


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


OBJECTS = (
    "entry/data/data",
    "entry/data",
    "entry/instrument/detector/pixel_mask",
    "entry/instrument/detector/saturation_value",
    "entry/instrument/beam/incident_wavelength_spread",
    "entry/instrument",
    "entry",
)


def damaged(name: str, rng: np.random.Generator, folder: Path) -> Path:
    """A damaged file of a kind of :data:`SOUND`."""
    path = SOUND[name](folder / name)
    part = folder / "piece.h5"
    if name.endswith(".h5") and rng.random() < 0.7:
        damage_objects(path, rng, OBJECTS, stack())
    else:
        where = part if part.exists() and rng.random() < 0.5 else path
        where.write_bytes(damaged_bytes(rng, where.read_bytes()))
    return path


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


def outcome(name: str, rng: np.random.Generator, folder: Path) -> str:
    """What became of a damaged file: its first images are read, or refused in a sentence."""
    from bayes_refine.io.images import ImageReader, read_bandwidth
    from bayes_refine.util.errors import InputError

    path, said = damaged(name, rng, folder), "read"
    for frame in (0, 1) if name.endswith(".h5") else (0,):
        with ImageReader() as reader:
            try:
                pixels, valid = reader.read(still(path, frame))
                assert pixels.shape == valid.shape == (1, NY, NX) and pixels.dtype == np.float32
                assert np.isfinite(pixels).all()
                read_bandwidth(still(path, frame))
            except InputError as error:
                check_sentence(error, path.name, "piece.h5")
                said = "refused"
    check_inspected(path, "piece.h5")
    return said


KINDS = {name: partial(outcome, name) for name in SOUND}


def test_damaged_files_give_an_image_or_a_sentence(tmp_path):
    found = in_another_process(__file__, seed=1, n=4, folder=tmp_path)
    check_outcomes(found)
    total = sum(found.values(), Counter())
    assert total["refused"] > 15 and total["read"] > 5  # neither is all there is


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_many_damaged_files_give_an_image_or_a_sentence(tmp_path, seed):
    check_outcomes(in_another_process(__file__, seed=seed, n=30, folder=tmp_path))
