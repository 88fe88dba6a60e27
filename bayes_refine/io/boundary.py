"""The boundary to the libraries that read files: any exception of theirs becomes one sentence."""

from __future__ import annotations

import bz2
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..util.errors import InputError

_SAID = 200  # characters of a library's own message that are shown
_PACKED: dict[bytes, Any] = {b"BZh": bz2.open, b"\x1f\x8b": gzip.open}


@contextmanager
def refusing(path: Path, what: str = "an image") -> Iterator[None]:
    """Turn any exception raised while ``path`` is read as ``what`` into an :class:`InputError`.

    Libraries that decode files of other programs raise exceptions of any type (``RuntimeError``,
    ``OSError``, ``UnicodeDecodeError``, ``zlib.error``, ``struct.error``, …).  The type does not
    help a user, but to know that the file is damaged does.

    Raises:
        InputError: in place of any other exception; an ``InputError`` passes unchanged.
    """
    try:
        yield
    except InputError:
        raise
    except MemoryError:
        raise InputError(
            f"{path} cannot be read as {what}: it needs more memory than there is; "
            "use a machine with more memory, or copy the file anew"
        ) from None
    except Exception as error:
        said = " ".join(str(error).split())[:_SAID] or "no more is known"
        raise InputError(
            f"{path} cannot be read as {what} ({type(error).__name__}: {said}); copy it anew"
        ) from None


def regular_file(path: Path) -> bool:
    """Whether ``path`` is a regular file: a folder is none, nor a pipe, which would block.

    A path that the operating system refuses (too long, or with a NUL) is none either.
    """
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def head(path: Path, n: int) -> bytes:
    """The first ``n`` bytes of a file as stored, not unpacked.

    Raises:
        InputError: the file cannot be read.
    """
    with refusing(path), open(path, "rb") as file:
        return file.read(n)


def packed(start: bytes) -> bool:
    """Whether a file that starts with these bytes is compressed with bz2 or gz."""
    return start.startswith(tuple(_PACKED))


def content(path: Path, limit: int) -> bytes:
    """The bytes of a file, unpacked if it is compressed with bz2 or gz.

    Args:
        limit: largest number of bytes that is unpacked into memory.

    Raises:
        InputError: the file holds more than ``limit``, or is damaged.
    """
    with refusing(path), open(path, "rb") as file:
        start = file.read(3)
        file.seek(0)
        unpack = next((u for magic, u in _PACKED.items() if start.startswith(magic)), None)
        if unpack is None:
            return _bounded(file, path, limit)
        with unpack(file) as unpacked:
            try:
                return _bounded(unpacked, path, limit)
            except (OSError, EOFError, zlib.error) as error:
                raise InputError(
                    f"{path} cannot be read as an image: it does not unpack ({error}); copy it anew"
                ) from None


def _bounded(file: IO[bytes], path: Path, limit: int) -> bytes:
    data = file.read(limit + 1)
    if len(data) > limit:
        raise InputError(
            f"{path} holds more than {limit} bytes, too much for an image of this detector; "
            "use the .expt that belongs to it"
        )
    return data
