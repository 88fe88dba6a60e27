"""Index all images of integrated stills alike: estimate scales, choose operations, apply them."""

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
    """Index every image alike; return the observations and the operations that were chosen.

    Args:
        reference: compared with each image; without a reference, images are compared with each
            other.
        free_fraction: share of reflections whose reference intensity is not used.
        seed: of the choice of these reflections, and of the random starts.

    Raises:
        InputError: the cell does not have the symmetry of the space group, or mean J is positive at
            no resolution.
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
    """Observations of a file with first scales, and with variances that do not depend on J itself.

    Within an image σ² = V + κ·J, κ ≥ 0 by least squares, so that κ·J can be replaced by its
    expectation: with the file's σ a fluctuation downwards would count more than one upwards.
    """
    image, J, variance = data.image, data.J, data.sigma**2
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
