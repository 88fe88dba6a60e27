"""Indexing all images of integrated stills alike: first scales, choose, apply."""

from __future__ import annotations

import numpy as np

from ..io.unmerged import Unmerged
from ..physics.reference import Reference
from .ambiguity import ambiguity, reindexed_unmerged
from .first_scales import first_scales
from .leave_image_out import Integrated
from .reindex import Reindexing, choose, choose_by_reference, nothing_to_choose


def unmerged_alike(
    data: Unmerged,
    reference: Reference | None = None,
    free_fraction: float = 0.05,
    seed: int = 0,
) -> tuple[Unmerged, Reindexing]:
    """The observations with every image indexed alike, and what was chosen.

    Args:
        reference: to choose by; without one, images are compared with each other.
        free_fraction: of reflections whose reference is not looked at, picked by ``seed``, which
            is also that of the random starts.

    Raises:
        InputError: the cell does not have the symmetry of the space group, or the run shows no
            intensity at all.
    """
    n_images = int(data.image.max()) + 1
    ways = ambiguity(data.cell, data.space_group)
    if len(ways) == 1:
        return data, nothing_to_choose(ways, n_images)
    obs = roughly_scaled(data)
    if reference is None:
        choice = choose(obs, ways, data.cell, seed=seed)
    else:
        choice = choose_by_reference(obs, ways, reference, free_fraction=free_fraction, seed=seed)
    return reindexed_unmerged(data, ways, choice.operation), choice


def roughly_scaled(data: Unmerged) -> Integrated:
    """Observations of a file with first scales, and sigmas that do not go by what was counted.

    σ² = V + κ·J within an image, κ ≥ 0 by least squares: else a fluctuation downwards would look
    more certain than one upwards.
    """
    image, J, variance = data.image, data.intensity, data.sigma**2
    n_images = int(image.max()) + 1

    def centred(x: np.ndarray) -> np.ndarray:
        count, total = np.bincount(image), np.bincount(image, x)
        return x - (total / np.maximum(count, 1))[image]

    away = centred(J)
    kappa = max(float(away @ centred(variance) / max(away @ away, 1e-30)), 0.0)
    return Integrated(
        hkl=data.hkl,
        image=image,
        J=J,
        scale=first_scales(data.hkl, image, J, data.excitation_error, data.cell, data.space_group),
        variance=np.maximum(variance - kappa * J, 0.2 * variance),
        variance_signal=np.full(len(data), kappa),
        n_images=n_images,
    )
