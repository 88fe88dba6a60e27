"""What a run needs of its images: any object with these methods can serve."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ..geometry.experiments import Still


class Images(Protocol):
    """Images of stills in photons, for ``fit_run``."""

    def read(self, still: Still) -> tuple[np.ndarray, np.ndarray]:
        """Photons (P, ny, nx), float32, and whether a pixel holds a measurement, (P, ny, nx) bool.

        Raises:
            InputError: the image cannot be read; the run goes on without this image.
        """
        ...


class CountedImages(Images, Protocol):
    """Images in counts, whose gain and bad pixels ``prepare`` finds and sets here.

    Attributes:
        gain: counts per photon, None until it is known. usable: (P, ny, nx) bool, None for all.
    """

    gain: float | None
    usable: np.ndarray | None

    def counts(self, still: Still) -> tuple[np.ndarray, np.ndarray]:
        """As ``read``, in counts above the pedestal: the gain is not divided out."""
        ...
