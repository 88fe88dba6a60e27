"""Few mosaic blocks displace all spots of an image together (docs/theory.md, Few blocks).

A fit takes the errors of spots as independent.  The errors that few blocks cause are not: the third
moments of a crystal's blocks, ten numbers, displace all spots of the crystal together, and thereby
the orientation that is fitted to the spots.  The ten numbers are integrated out after the last
round, since searching for them as unknowns would take longer.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np

from .. import infer, physics
from ..physics.priors import Priors
from ..util.status import Kind

SITE = "uneven_blocks"


def uneven_blocks(priors: Priors) -> physics.Array:
    """Sample the coefficients (n, N_COEFFICIENTS) of the blocks of each image."""
    return infer.normal(SITE, 0.0, priors.uneven_blocks_sd, physics.N_COEFFICIENTS)[:, 0]


def with_few_blocks(
    model: infer.Model,
    observations: infer.Batches,
    priors: Priors,
    fit: infer.Fit,
    crystal: np.ndarray | None = None,
) -> tuple[infer.Fit, Priors]:
    """Integrate the coefficients of uneven blocks out of a fit, and estimate their sd.

    Args:
        model: the model that was fitted.
        crystal: (n,) number of the crystal of each image, whose frames have the same blocks; None
            where each image has a crystal of its own.

    Returns:
        The fit, and the priors with ``uneven_blocks_sd`` as the images say.  Both are returned
        unchanged where the model has no argument ``blocks``, the prior sd is 0, or no image has
        converged.
    """
    sd, used = priors.uneven_blocks_sd, fit.status == Kind.CONVERGED
    if sd == 0 or not used.any() or "blocks" not in inspect.signature(model).parameters:
        return fit, priors
    held = infer.held_numbers(_uneven(model), (observations, priors), fit, SITE, sd, used)
    if crystal is not None:
        held = held.shared_by(crystal)
    width = infer.width_of_held(held, sd, priors.log_uneven_blocks_sd_sd)
    found = infer.held_integrated(fit, held, width)
    if fit.by_batch is not None:  # each batch bears an even share of the shared unknowns' loss
        lost = np.linalg.inv(found.shared_covariance) - np.linalg.inv(fit.shared_covariance)
        curvature = fit.by_batch.curvature + lost / len(fit.by_batch.at)
        found = replace(found, by_batch=fit.by_batch._replace(curvature=curvature))
    return found, replace(priors, uneven_blocks_sd=width)


@lru_cache
def _uneven(model: infer.Model) -> infer.Model:
    """The model with uneven blocks: always the same object, so that it is compiled once."""
    return partial(model, blocks=uneven_blocks)
