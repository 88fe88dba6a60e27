"""Large arrays in files without a name, so that the memory of a run does not grow with its size.

An array of :func:`room` is an ordinary NumPy array.  If it is large its bytes are in a temporary
file (in the folder that the environment variable TMPDIR names), and :func:`release` tells the
system that the parts which were read or written need not stay in memory.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .errors import InputError

LARGE = 1 << 22  # bytes from which on an array is in a file
SLICE = 1 << 20  # rows of a table that are in memory at a time
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # options of glibc's mallopt
_NEVER = (1 << 31) - 1  # bytes, the largest threshold


def room(shape: int | Sequence[int], dtype: DTypeLike = float) -> np.ndarray:
    """An array of zeros of this shape and type, in a file if it is large.

    Raises:
        InputError: the disk has no room for it.
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < LARGE:
        return np.zeros(shape, dtype)
    try:
        with tempfile.TemporaryFile() as file:
            _reserve(file.fileno(), size)
            return np.ndarray(shape, dtype, mmap.mmap(file.fileno(), size))
    except OSError as error:
        raise _no_room(size, error) from None


def _no_room(size: int, error: OSError) -> InputError:
    return InputError(
        f"{tempfile.gettempdir()}: no room for {size / 2**20:.0f} MiB of temporary files "
        f"({error.strerror}); set TMPDIR to a folder with room"
    )


def _reserve(file: int, size: int) -> None:
    """Give a file its size, with room on the disk where the system can reserve it."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)  # to write into a hole on a full disk kills the process
    else:
        os.ftruncate(file, size)


def stored(values: ArrayLike) -> np.ndarray:
    """The same numbers; in a file if they are many."""
    values = np.asarray(values)
    if values.nbytes < LARGE or _file_of(values) is not None:
        return values
    found = copied(values)
    release(found)
    return found


def joined(parts: Iterable[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Columns of several parts, one part after the other; a large column is in a file.

    Only one part is in memory at a time.

    Args:
        parts: of each the same columns, (k, ...) with the k of the part; one part or more.

    Raises:
        InputError: the disk has no room for them.
    """
    size, n, kinds = 0, 0, [np.empty(0)]
    files: list[IO[bytes]] = []
    with ExitStack() as opened:
        for part in parts:
            try:
                if not files:
                    kinds = [column[:0] for column in part]
                    spooled = (tempfile.SpooledTemporaryFile(LARGE - 1) for _ in part)
                    files = [opened.enter_context(file) for file in spooled]
                n += len(part[0])
                for file, column, kind in zip(files, part, kinds, strict=True):
                    size += file.write(np.ascontiguousarray(column, kind.dtype).data)
                    file.flush()
                    release(column)
            except OSError as error:
                raise _no_room(size, error) from None
        return [_array_in(file, n, kind) for file, kind in zip(files, kinds, strict=True)]


def in_slices(
    function: Callable[..., Sequence[np.ndarray]], *columns: Any, size: int
) -> list[np.ndarray]:
    """Columns of what a function makes of slices of the rows of other columns (n, ...).

    Only a slice of all of them is in memory at a time; columns that are large are in files.

        (inverse,) = in_slices(lambda a: [np.linalg.inv(a)], matrices, size=1024)

    Args:
        function: of the columns' rows (m, ...) → columns (m, ...).  size: rows of a slice.
    """
    rows = slices(len(columns[0]), *columns, size=size)
    return joined(function(*(column[w] for column in columns)) for w in rows)


def copied(values: ArrayLike) -> np.ndarray:
    """A copy; in a file if it is large."""
    values = np.asarray(values)
    found = room(values.shape, values.dtype)
    found[...] = values
    return found


def _array_in(file: IO[bytes], n: int, kind: np.ndarray) -> np.ndarray:
    """The n rows that were written to a file, of the type and shape of ``kind`` (0, ...)."""
    size = file.tell()
    file.seek(0)
    where = bytearray(file.read()) if size < LARGE else mmap.mmap(file.fileno(), size)
    return np.ndarray((n, *kind.shape[1:]), kind.dtype, where)


def _file_of(array: object) -> mmap.mmap | None:
    """The file in which an array of :func:`room`, or a part of one, is."""
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return array if isinstance(array, mmap.mmap) else None


def slices(n: int, *columns: object, size: int | None = None) -> Iterator[slice]:
    """Slices of n rows; after each the memory of these columns is given back."""
    size = size or SLICE
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
        release(*columns)


def taken(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """``values[rows]``, rows (k,); in a file if they are many."""
    found = room((len(rows), *values.shape[1:]), values.dtype)
    for part in slices(len(rows), found, rows, values):
        found[part] = values[rows[part]]
    return found


def release(*arrays: object) -> None:
    """Let the system take the memory of arrays of :func:`room`, or of parts; nothing is lost."""
    for array in arrays:
        if (file := _file_of(array)) is not None:
            file.madvise(mmap.MADV_DONTNEED)


def keep_freed_memory() -> None:
    """Let freed memory serve later arrays, where the C library can (glibc's ``mallopt``).

    Every compiled program asks for its room anew.  By default the system takes back what is large
    and gives it again full of zeros, page by page, which takes as long as to compute with it.
    :func:`trim` gives it back where much was freed.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_ARENA_MAX, 1)):
            mallopt(option, value)


def trim() -> None:
    """Give freed memory back to the system, where the C library can."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
