"""The shape that the images of a detector have, compared with a file's before pixels are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..geometry.detector import Detector
from ..util.errors import InputError

_MOST_PIXELS = 2**28  # 16,384²; a 16-megapixel detector has 2²⁴


@dataclass(frozen=True)
class ImageShape:
    """Panels, rows and columns of an image as the detector has them.

    Attributes:
        panels, ny, nx: numbers of panels, and of rows and columns of each.
    """

    panels: int
    ny: int
    nx: int

    @classmethod
    def of(cls, detector: Detector, path: Path) -> ImageShape:
        """The shape of a detector's images.

        Raises:
            InputError: the detector has no pixels, or more than any computer can hold.
        """
        ny, nx = (int(n) for n in detector.shape[0])
        shape = cls(detector.n_panels, ny, nx)
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
        """Number of pixels of all panels."""
        return self.panels * self.ny * self.nx

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape is one image."""
        return shape == self.array or (self.panels == 1 and shape == self.array[1:])

    def check(self, shape: tuple[int, ...], path: Path, what: str) -> None:
        """Refuse an array that is not one image.

        Raises:
            InputError: naming ``path`` and ``what`` the array was to be.
        """
        if not self.fits(shape):
            raise InputError(
                f"{path} has {what} of shape {shape} where the detector is (panel, y, x) = "
                f"{self.array}; use the .expt that belongs to it"
            )

    def on_panels(self, array: np.ndarray, path: Path, what: str) -> np.ndarray:
        """``array`` as (panel, y, x); no copy.

        Raises:
            InputError: it is not one image.
        """
        self.check(array.shape, path, what)
        return array.reshape(self.array)
