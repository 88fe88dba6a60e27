"""Typed columns that grow row by row without an object a row, for files of unknown length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

ROWS = 1 << 17  # of a block


class GrowingColumns:
    """Columns of given types, held in blocks that are allocated whole.

        columns = GrowingColumns({"hkl": (np.int32, 3), "intensity": (float, 1)})
        columns.extend({"hkl": hkl, "intensity": J})
        whole = columns.taken()

    Rows past the blocks cost one block; columns are joined one after the other, so that the peak
    of memory is that of all columns and the widest of them once more.
    """

    def __init__(self, kinds: Mapping[str, tuple[type, int]]) -> None:
        self._kinds = dict(kinds)
        self._blocks: dict[str, list[np.ndarray]] = {name: [] for name in kinds}
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def extend(self, rows: Mapping[str, np.ndarray]) -> None:
        """Add rows, (k,) or (k, width) of each column."""
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
            shape = (ROWS,) if width == 1 else (ROWS, width)
            self._blocks[name].append(np.empty(shape, kind))

    def taken(self) -> dict[str, np.ndarray]:
        """Every column, whole; the blocks are given up."""
        found = dict(self._taken())
        self._rows = 0
        return found

    def _taken(self) -> Iterator[tuple[str, np.ndarray]]:
        for name, (kind, width) in self._kinds.items():
            blocks = self._blocks.pop(name)
            shape = (self._rows,) if width == 1 else (self._rows, width)
            start = 0
            whole: np.ndarray = np.empty(shape, kind)
            while blocks:
                count = min(ROWS, self._rows - start)
                whole[start : start + count] = blocks.pop(0)[:count]
                start += count
            self._blocks[name] = blocks
            yield name, whole
