"""Find the images in an HDF5 file: NXmx, Eiger masters, CXI, or the one data set that fits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py

from ..util.errors import InputError
from .hdf5_links import attribute, child, data_sets, groups, numbers
from .image_shape import ImageShape

_NOT_IMAGES = re.compile(
    r"(^|[^a-z])(mask|gain|pedestal|dark|flat|offset|background|error|sigma)", re.I
)
_PLACES = (
    "entry/data/data",
    "entry/instrument/detector/data",
    "entry_1/data_1/data",
    "entry_1/instrument_1/detector_1/data",
    "data/data",
    "data",
)


@dataclass(frozen=True)
class Piece:
    """A data set of one image or of a stack of images, or the reason why it is missing.

    Attributes:
        data: None if the data set cannot be opened. missing: why it cannot.
        single: whether the data set is one image, without an axis of images.
        first: number of the first image, if the file has it.
    """

    data: h5py.Dataset | None
    single: bool = False
    missing: str = ""
    first: int | None = None

    def __len__(self) -> int:
        if self.data is None:
            return 0
        return 1 if self.single else int(self.data.shape[0])


def find_stack(file: h5py.File, path: Path, shape: ImageShape) -> list[Piece]:
    """Find the images of a file, in order: one data set, or the numbered ones of an Eiger master.

    Raises:
        InputError: the file has no images, or several data sets may be the images.
    """
    for entry in groups(file, "NXentry", "entry"):
        for data in groups(entry, "NXdata", "data"):
            if pieces := _of_nxdata(data, path, shape):
                return pieces
    for place in _PLACES:
        try:
            dataset = _at(file, place, path)
        except InputError as error:
            return [Piece(None, missing=str(error))]
        if isinstance(dataset, h5py.Dataset) and (piece := _piece(dataset, path, shape)):
            return [piece]
    fitting = list(_fitting(file, path, shape))
    if len(fitting) == 1:
        return fitting
    if fitting:
        names = ", ".join(str(piece.data.name) for piece in fitting[:3] if piece.data is not None)
        raise InputError(
            f"{path} has several data sets that may be the images ({names}); name one in an "
            "NXdata group"
        )
    absent = _absent_group(file, path)
    raise InputError(
        absent or f"{path} has no images in an NXdata group; give an NXmx or Eiger master file"
    )


def named_stack(file: h5py.File, path: Path, shape: ImageShape, dataset: str) -> Piece:
    """The images at a given path, such as ``data =`` of a CrystFEL geometry names.

    Raises:
        InputError: there are no images at this path.
    """
    found = _at(file, dataset.strip("/"), path)
    piece = _piece(found, path, shape) if isinstance(found, h5py.Dataset) else None
    if piece is None:
        raise InputError(f"{path} has no images at {dataset}; correct data = in the geometry")
    return piece


def locate_image(pieces: list[Piece], index: int, path: Path) -> tuple[h5py.Dataset, int | None]:
    """The data set of image ``index``, and the image's index in it (None if it is the whole).

    A detector fills one data set after the other, so a missing one counts as long as the others.

    Raises:
        InputError: there is no such image, or its data set is missing.
    """
    full = max(map(len, pieces))
    regular = all(len(p) in (0, full) for p in pieces[:-1])
    start = 0
    for piece in pieces:
        if piece.first is not None:
            start = piece.first
        length = len(piece) if piece.data is not None else full
        inside = 0 <= index - start < length
        if piece.data is None and (inside or not full or (index >= start and not regular)):
            raise InputError(piece.missing)
        if inside and piece.data is not None:
            return piece.data, None if piece.single else index - start
        start += length
    absent = next((p.missing for p in pieces if p.data is None), "")
    raise InputError(
        f"{path} has {start} frames, no frame {index}; correct the .expt"
        + (f" ({absent})" if absent else "")
    )


def _of_nxdata(data: h5py.Group, path: Path, shape: ImageShape) -> list[Piece]:
    """The data sets of images in an NXdata group; empty if it has none."""
    signal = attribute(data, "signal") or "data"
    numbered = sorted((k for k in data if re.fullmatch(r"data_\d{1,18}", k)), key=_number)
    if signal in numbered or data.get(signal, getlink=True) is None:
        names = numbered or ["data"]
    else:
        names = [signal]
    pieces: list[Piece] = []
    for name in names:
        try:
            dataset = child(data, name, path)
            if dataset is None:
                continue
            piece = _piece(numbers(dataset, path, str(dataset.name)), path, shape)
        except InputError as error:
            piece = Piece(None, missing=str(error))
        if piece is None:
            return []
        pieces.append(piece)
    return _placed(pieces)


def _piece(dataset: h5py.Dataset, path: Path, shape: ImageShape) -> Piece | None:
    """The piece of a data set; None if the data set does not have the dimensions of images."""
    if dataset.ndim not in (2, 3, 4):
        return None
    numbers(dataset, path, str(dataset.name))
    single = dataset.ndim == 2 or (shape.panels > 1 and dataset.shape == shape.array)
    return Piece(dataset, single, first=_first(dataset))


def _first(dataset: h5py.Dataset) -> int | None:
    """Number of the first image, from 1, which Dectris writes to each data file; else None."""
    try:
        return int(dataset.attrs["image_nr_low"]) - 1
    except Exception:  # absent, or no number: one data set then follows the other
        return None


def _placed(pieces: list[Piece]) -> list[Piece]:
    """Count the numbers of first images from that of the first piece; drop them if they overlap."""
    first = next((p.first for p in pieces if p.first is not None), None)
    if first is None or pieces[0].first is None:
        return [Piece(p.data, p.single, p.missing) for p in pieces]
    shifted = [
        Piece(p.data, p.single, p.missing, None if p.first is None else p.first - first)
        for p in pieces
    ]
    end = 0
    for piece in shifted:
        if piece.first is not None:
            if piece.first < end:  # numbers overlap if each file counts from 1 again
                return [Piece(p.data, p.single, p.missing) for p in pieces]
            end = piece.first + len(piece)
    return shifted


def _at(file: h5py.File, place: str, path: Path) -> object:
    """The object at a path in the file; None if there is none."""
    at: object = file
    for part in place.split("/"):
        if not isinstance(at, h5py.Group):
            return None
        at = child(at, part, path)
    return at


def _fitting(file: h5py.File, path: Path, shape: ImageShape) -> Iterator[Piece]:
    """All data sets in the file whose images have the shape of the detector."""
    for name, dataset in data_sets(file, path):
        found = dataset.shape or ()
        if not _NOT_IMAGES.search(name) and (shape.fits(found) or shape.fits(found[1:])):
            if dataset.dtype.kind in "biuf" and (piece := _piece(dataset, path, shape)):
                yield piece


def _absent_group(file: h5py.File, path: Path) -> str:
    """Why a group near the root cannot be opened; "" if all can."""
    for group in (file, *groups(file, "NXentry", "entry")):
        for key in group:
            try:
                child(group, key, path)
            except InputError as error:
                return str(error)
    return ""


def _number(name: str) -> int:
    return int(name.rsplit("_", 1)[1])
