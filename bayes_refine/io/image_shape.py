"""The shape of a detector's images, which is compared with a file before pixels are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..geometry.detector import Detector
from ..util.errors import InputError

_MOST_PIXELS = 2**28  # 16,384²; a 16-megapixel detector has 2²⁴


@dataclass(frozen=True)
class ImageShape:
    """Panels, rows and columns of the images of a detector.

    Attributes:
        panels, ny, nx: number of panels; rows and columns of the largest panel.
        tiles: for each panel its first row, first column, rows and columns in one array of all
            panels; empty if the panels are not tiles of an array.
        equal: whether all panels have ny rows and nx columns.
    """

    panels: int
    ny: int
    nx: int
    tiles: tuple[tuple[int, int, int, int], ...] = ()
    equal: bool = True

    @classmethod
    def of(cls, detector: Detector, path: Path) -> ImageShape:
        """The shape of a detector's images.

        Raises:
            InputError: the detector has no pixels, or too many for any computer.
        """
        equal = bool((detector.shape == detector.shape[0]).all())
        shape = cls(*detector.image_shape, _tiles(detector), equal)
        ny, nx = (int(n) for n in detector.shape.min(axis=0))
        if not (ny > 0 and nx > 0) or shape.pixels > _MOST_PIXELS:
            raise InputError(
                f"{path}: no image has (panel, y, x) = {shape.array} pixels; "
                "correct the detector of the .expt"
            )
        return shape

    @property
    def array(self) -> tuple[int, int, int]:
        """(panels, ny, nx)."""
        return self.panels, self.ny, self.nx

    @property
    def pixels(self) -> int:
        """Number of pixels of all panels, or of the smallest array that has them as tiles."""
        rows = max((y + ny for y, _, ny, _ in self.tiles), default=0)
        columns = max((x + nx for _, x, _, nx in self.tiles), default=0)
        return max(self.panels * self.ny * self.nx, rows * columns)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape is one image: a stack of panels, one panel, or tiles."""
        return self._is_stack(shape) or self._holds_tiles(shape)

    def _is_stack(self, shape: tuple[int, ...]) -> bool:
        one = self.panels == 1 and shape == self.array[1:]
        return self.equal and (shape == self.array or one)

    def _holds_tiles(self, shape: tuple[int, ...]) -> bool:
        if len(shape) == 3 and shape[0] == 1:
            shape = shape[1:]
        if len(shape) != 2 or not self.tiles or shape[0] * shape[1] > _MOST_PIXELS:
            return False
        return all(y + ny <= shape[0] and x + nx <= shape[1] for y, x, ny, nx in self.tiles)

    def check(self, shape: tuple[int, ...], path: Path, what: str) -> None:
        """Refuse an array that is not one image.

        Raises:
            InputError: the shape does not fit; the message names ``path`` and ``what``.
        """
        if not self.fits(shape):
            raise InputError(
                f"{path} has {what} of shape {shape} where the detector is (panel, y, x) = "
                f"{self.array}; use the .expt that belongs to it"
            )

    def on_panels(self, array: np.ndarray, path: Path, what: str) -> np.ndarray:
        """The image ``array`` as (panel, y, x); a stack of panels is not copied.

        Panels smaller than the largest are filled with 0.

        Raises:
            InputError: ``array`` is not one image.
        """
        self.check(array.shape, path, what)
        if self._is_stack(array.shape):
            return array.reshape(self.array)
        flat = array.reshape(array.shape[-2:])
        out = np.zeros(self.array, array.dtype)
        for panel, (y, x, ny, nx) in enumerate(self.tiles):
            out[panel, :ny, :nx] = flat[y : y + ny, x : x + nx]
        return out


def _tiles(detector: Detector) -> tuple[tuple[int, int, int, int], ...]:
    """Tiles of the panels in one array; empty if there are no offsets or the tiles overlap."""
    start = np.array(detector.raw_image_offset, int).reshape(-1, 2)[:, ::-1]
    if len(start) != detector.n_panels or not start.any() or (start < 0).any():
        return ()
    end = start + detector.shape
    apart = (start[:, None] >= end[None]).any(2)
    apart |= apart.T
    if not apart[~np.eye(len(start), dtype=bool)].all():
        return ()
    rows = np.hstack([start, detector.shape])
    return tuple((int(y), int(x), int(ny), int(nx)) for y, x, ny, nx in rows)
