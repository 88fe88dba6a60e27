"""Find out whether an image of an HDF5 data set was ever written.

HDF5 returns zeros, or a fill value, for chunks that an aborted collection did not write and for
absent sources of a virtual data set.  A fit would take an image of zeros for a measurement.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..util.errors import InputError
from .boundary import refusing, regular_file
from .hdf5_links import DEEPEST, follow, locate, numbers, open_hdf5


@dataclass(frozen=True)
class _Selection:
    """The frames of a selection along the first axis, and its box along the other axes."""

    start: int
    stride: int
    count: int
    block: int
    box: tuple[slice, ...]

    def ordinal(self, frame: int) -> int | None:
        """Position of ``frame`` among the selected frames; None if it is not selected."""
        k, rest = divmod(frame - self.start, self._step)
        return k * self.block + rest if 0 <= k < self.count and rest < self.block else None

    def frame(self, ordinal: int) -> int:
        """The frame at a position among the selected frames."""
        k, rest = divmod(ordinal, self.block)
        return self.start + k * self._step + rest

    @property
    def _step(self) -> int:
        return self.stride if self.count > 1 else max(self.stride, self.block)


@dataclass(frozen=True)
class _Source:
    """A part of a virtual data set: its place there, and the file and data set that hold it.

    ``comes`` is a data space of the source; HDF5 does not state its extent if all of the source is
    taken.
    """

    goes: _Selection
    comes: Any
    file_name: str
    name: str

    def axes(self, axes: int, shape: tuple[int, ...]) -> int:
        """Number of an image's axes in a source of this shape: one module has no axis of panels."""
        one_panel = axes == 3 and self.goes.box[0].stop - self.goes.box[0].start == 1
        return 2 if one_panel and len(shape) == 3 else min(axes, len(shape))


@dataclass
class _Stored:
    """How a data set is stored.

    Attributes:
        path: of its file. images: number of images; None if the data set is one image.
        blocks: frames in a chunk. complete: rows of chunks that were written; None for all.
        sources: of a virtual data set.
    """

    path: Path
    shape: tuple[int, ...]
    blocks: int = 1
    complete: set[int] | None = None
    sources: list[_Source] = field(default_factory=list)
    virtual: bool = False


class WrittenImages:
    """Tells which pixels of an image were written; remembers how data sets are stored."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, str, int], _Stored] = {}

    def held(self, dataset: h5py.Dataset, path: Path, index: int | None) -> np.ndarray | None:
        """The written pixels of an image; None if all are.

        Args:
            index: of the image in the data set; None if the data set is one image.

        Raises:
            InputError: the image was never written, or its file does not exist.
        """
        axes = dataset.ndim if index is None else dataset.ndim - 1
        stored = self._stored(dataset, Path(dataset.file.filename), axes)
        return self._held(stored, path, index or 0, index or 0, axes, 0)

    def _held(
        self, stored: _Stored, path: Path, image: int, index: int, axes: int, depth: int
    ) -> np.ndarray | None:
        """As :meth:`held`, for image ``index`` of ``stored``; messages call it ``image``."""
        if depth > DEEPEST:
            raise InputError(f"{path}: its virtual data sets go in a circle; write the file anew")
        if not stored.virtual:
            beyond = len(stored.shape) > axes and index >= stored.shape[0]
            if beyond or (
                stored.complete is not None and index // stored.blocks not in stored.complete
            ):
                raise InputError(
                    f"{path}: image {image} was never written to {stored.path} (the collection was "
                    "aborted?); leave it out"
                )
            return None
        held = np.zeros(stored.shape[len(stored.shape) - axes :], bool)
        for source in stored.sources:
            ordinal = source.goes.ordinal(index)
            if ordinal is None:
                continue
            held[source.goes.box] = True
            block = (index - source.goes.start) // source.goes.stride
            below, inner_axes = self._source(source, stored.path, path, image, block, axes)
            comes = _selection(source.comes, inner_axes, below.shape)
            part = self._held(below, path, image, comes.frame(ordinal), inner_axes, depth + 1)
            if part is not None:
                target = held[source.goes.box]
                target[...] = part[comes.box].reshape(target.shape)
        if not held.any():
            raise InputError(f"{path}: no file holds image {image}; leave it out")
        return None if held.all() else held

    def _source(
        self, source: _Source, beside: Path, path: Path, image: int, block: int, axes: int
    ) -> tuple[_Stored, int]:
        """How a source is stored, and how many of its axes belong to an image."""
        file_name = source.file_name.replace("%b", str(block)).replace("%%", "%")
        name = source.name.replace("%b", str(block)).replace("%%", "%")
        where = beside if file_name == "." else locate(file_name, beside)
        if not regular_file(where):
            raise InputError(
                f"{path}: image {image} lies in {where}, which does not exist; put it beside it"
            )
        if (where, name, axes) not in self._known:
            with open_hdf5(where) as file:
                dataset = follow(file, name, where)
                if not isinstance(dataset, h5py.Dataset):
                    raise InputError(
                        f"{path}: image {image} lies in {name} of {where}, which has no such data "
                        "set; copy it anew"
                    )
                numbers(dataset, where, name)
                inner = source.axes(axes, dataset.shape)
                stored = self._stored(dataset, Path(dataset.file.filename), inner)
            self._known[where, name, axes] = stored
        stored = self._known[where, name, axes]
        return stored, source.axes(axes, stored.shape)

    def _stored(self, dataset: h5py.Dataset, path: Path, axes: int) -> _Stored:
        key = (path, str(dataset.name), axes)
        if key not in self._known:
            with refusing(path):
                self._known[key] = _stored(dataset, path, axes)
        return self._known[key]


def _stored(dataset: h5py.Dataset, path: Path, axes: int) -> _Stored:
    shape = dataset.shape
    if dataset.is_virtual:
        sources = [_virtual_source(s, axes, shape) for s in dataset.virtual_sources()]
        return _Stored(path, shape, sources=sources, virtual=True)
    if dataset.chunks is None:
        layout = dataset.id.get_create_plist().get_layout()
        empty = layout == h5py.h5d.CONTIGUOUS and not dataset.external
        absent = empty and dataset.id.get_storage_size() == 0
        return _Stored(path, shape, max(shape[0], 1), set() if absent else None)
    steps = [-(-n // c) for n, c in zip(shape, dataset.chunks, strict=True)]
    written = dataset.id.get_num_chunks()
    each = int(np.prod([float(n) for n in steps[-axes:]]))
    images = steps[0] if len(shape) > axes else 1
    rows = dataset.chunks[0] if len(shape) > axes else max(shape[0], 1)
    if written >= images * each or not hasattr(dataset.id, "chunk_iter"):
        return _Stored(path, shape, rows)
    count: Counter[int] = Counter()

    def seen(chunk: Any) -> None:
        count[int(chunk.chunk_offset[0]) // rows] += 1

    dataset.id.chunk_iter(seen)
    return _Stored(path, shape, rows, {row for row, n in count.items() if n >= each})


def _virtual_source(source: Any, axes: int, shape: tuple[int, ...]) -> _Source:
    goes = _selection(source.vspace, axes, shape)
    return _Source(goes, source.src_space, source.file_name, source.dset_name)


def _selection(space: Any, axes: int, shape: tuple[int, ...]) -> _Selection:
    """The selection of a data space of this shape, whose last ``axes`` are those of an image."""
    n = len(shape) - axes
    if space.get_select_type() == h5py.h5s.SEL_ALL:
        start, stride, count, block = (0,) * len(shape), (1,) * len(shape), shape, (1,) * len(shape)
    elif space.is_regular_hyperslab():
        start, stride, count, block = space.get_regular_hyperslab()
    else:
        start, last = space.get_select_bounds()
        stride = block = (1,) * len(shape)
        count = tuple(b - a + 1 for a, b in zip(start, last, strict=True))
    ends = [
        a + (min(c, extent) - 1) * s + b
        for a, s, c, b, extent in zip(start, stride, count, block, shape, strict=True)
    ]
    box = tuple(slice(int(a), int(e)) for a, e in zip(start[n:], ends[n:], strict=True))
    if n <= 0:  # one image: no axis of frames
        return _Selection(0, 1, 1, 1, box)
    return _Selection(int(start[0]), max(int(stride[0]), 1), int(count[0]), int(block[0]), box)
