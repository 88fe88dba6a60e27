"""Few mosaic blocks: what they do to many spots of an image at once (docs/theory.md, Few blocks).

A fit counts the errors of spots as independent.  Those of few blocks are not: the third moments of
a crystal's blocks displace all its spots together, and its orientation with them.  These ten
numbers are integrated out after the last round, which is cheaper than to search for them.
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
    """Coefficients (n, ·) of the blocks of each image, sampled."""
    return infer.normal(SITE, 0.0, priors.uneven_blocks_sd, physics.N_COEFFICIENTS)[:, 0]


def with_few_blocks(
    model: infer.Model, observations: infer.Batches, priors: Priors, fit: infer.Fit
) -> tuple[infer.Fit, Priors]:
    """The fit with the coefficients of uneven blocks integrated out, and the priors with their sd.

    Args:
        model: that was fitted; one without an argument ``blocks`` stays as it is.
    """
    sd, used = priors.uneven_blocks_sd, fit.status == Kind.CONVERGED
    if sd == 0 or not used.any() or "blocks" not in inspect.signature(model).parameters:
        return fit, priors
    held = infer.held_numbers(_uneven(model), (observations, priors), fit, SITE, sd, used)
    width = infer.width_of_held(held, sd, priors.log_uneven_blocks_sd_sd)
    found = infer.held_integrated(fit, held, width)
    if fit.by_batch is not None:  # what the shared unknowns' curvature loses, shared out evenly
        lost = np.linalg.inv(found.shared_covariance) - np.linalg.inv(fit.shared_covariance)
        curvature = fit.by_batch.curvature + lost / len(fit.by_batch.at)
        found = replace(found, by_batch=fit.by_batch._replace(curvature=curvature))
    return found, replace(priors, uneven_blocks_sd=width)


@lru_cache
def _uneven(model: infer.Model) -> infer.Model:
    """One object for each model: code is compiled for it."""
    return partial(model, blocks=uneven_blocks)
