"""What a run asks of its images: any object with these methods will do."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ..geometry.experiments import Still


class Images(Protocol):
    """Photons of stills, for ``fit_run``."""

    def read(self, still: Still) -> tuple[np.ndarray, np.ndarray]:
        """Photons (P, ny, nx), float32, and which pixels hold a measurement, (P, ny, nx) bool.

        Raises:
            InputError: the image cannot be read; the run goes on without it.
        """
        ...


class CountedImages(Images, Protocol):
    """Images whose gain and bad pixels ``prepare`` finds, and sets here.

    Attributes:
        gain: counts per photon, None while it is not known. usable: (P, ny, nx) bool, None for all.
    """

    gain: float | None
    usable: np.ndarray | None

    def counts(self, still: Still) -> tuple[np.ndarray, np.ndarray]:
        """As ``read``, before the gain is divided out: counts above the pedestal."""
        ...
