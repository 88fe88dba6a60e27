"""Typed columns that grow as a file of unknown length is read, without an object for each row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ..util.large_arrays import release, room, stored

ROWS = 1 << 20  # rows in a block


class GrowingColumns:
    """Columns of given types, kept in blocks of a fixed number of rows.

        columns = GrowingColumns({"hkl": (np.int32, 3), "J": (float, 1)})
        columns.extend({"hkl": hkl, "J": J})
        whole = columns.taken()

    Full blocks are in files, and so are the columns at the end where they are large: the last block
    is in memory.
    """

    def __init__(self, kinds: Mapping[str, tuple[type, int]]) -> None:
        self._kinds = dict(kinds)
        self._blocks: dict[str, list[np.ndarray]] = {name: [] for name in kinds}
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def extend(self, rows: Mapping[str, np.ndarray]) -> None:
        """Append k rows: arrays (k,) or (k, width), one for each column."""
        n = len(next(iter(rows.values())))
        done = 0
        while done < n:
            start = self._rows % ROWS
            if start == 0:
                self._allocate()
            count = min(n - done, ROWS - start)
            for name, values in rows.items():
                self._blocks[name][-1][start : start + count] = values[done : done + count]
            self._rows += count
            done += count

    def _allocate(self) -> None:
        for name, (kind, width) in self._kinds.items():
            blocks, shape = self._blocks[name], (ROWS,) if width == 1 else (ROWS, width)
            blocks[-1:] = map(stored, blocks[-1:])
            blocks.append(np.empty(shape, kind))

    def taken(self) -> dict[str, np.ndarray]:
        """Return every column as one array, and free the blocks."""
        found = dict(self._taken())
        self._rows = 0
        return found

    def _taken(self) -> Iterator[tuple[str, np.ndarray]]:
        for name, (kind, width) in self._kinds.items():
            blocks = self._blocks.pop(name)
            shape = (self._rows,) if width == 1 else (self._rows, width)
            start = 0
            whole = room(shape, kind)
            while blocks:
                count = min(ROWS, self._rows - start)
                whole[start : start + count] = blocks.pop(0)[:count]
                start += count
                release(whole)
            self._blocks[name] = blocks
            yield name, whole
