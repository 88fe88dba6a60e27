"""A file object for HDF5 that a full disk does not break."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError


class Sink(io.RawIOBase):
    """A new file that keeps in memory what the disk has no room for, and remembers the error.

    HDF5 cannot close a file after a failed write: its objects stay half open, and the process may
    crash when Python collects them.  So no write into this file fails.  The writer calls ``check``
    instead, often enough that little gathers in memory.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=0)
        self._at = 0
        self._size = 0
        self._kept: list[tuple[int, bytes]] = []
        self.error: OSError | None = None

    def check(self) -> None:
        """Raise the error of the first write that failed, if one did."""
        if self.error is not None:
            raise self.error

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def write(self, data) -> int:  # type: ignore[override]
        view = memoryview(data).cast("B")
        if self.error is None:
            try:
                self._file.seek(self._at)
                done = 0
                while done < len(view):
                    done += self._file.write(view[done:])
            except OSError as error:
                self.error = error
        if self.error is not None:
            self._kept.append((self._at, bytes(view)))
        self._at += len(view)
        self._size = max(self._size, self._at)
        return len(view)

    def readinto(self, buffer) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        self._file.seek(self._at)
        n = self._file.readinto(view) or 0
        for start, data in self._kept:
            first, last = max(start, self._at), min(start + len(data), self._at + len(view))
            if first < last:
                view[first - self._at : last - self._at] = data[first - start : last - start]
                n = max(n, last - self._at)
        self._at += n
        return n

    def truncate(self, size: int | None = None) -> int:
        self._size = self._at if size is None else size
        if self.error is None:
            try:
                self._file.truncate(self._size)
            except OSError as error:
                self.error = error
        return self._size

    def close(self) -> None:
        if not self.closed:
            try:
                self._file.close()
            except OSError as error:
                self.error = self.error or error
        super().close()


@contextmanager
def sink_for(path: str | Path) -> Iterator[Sink]:
    """A sink at ``path``; inside the block HDF5 opens, writes and closes its file.

    Raises:
        InputError: the file cannot be written completely.
    """
    path = Path(path)
    try:
        sink = Sink(path)
        try:
            yield sink
        finally:
            sink.close()
        sink.check()
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
