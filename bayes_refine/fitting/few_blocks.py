"""Few mosaic blocks: what they do to many spots of an image at once (docs/theory.md, Few blocks).

A fit counts the errors of spots as independent.  Those of few blocks are not: the third cumulants
of the blocks displace all spots of a crystal together, and its orientation with them.  These ten
numbers are integrated out after the last round, which is cheaper than to search for them.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial

from .. import infer, physics
from ..geometry.experiments import Still
from ..physics.priors import Priors
from ..util.status import Kind
from .partial_sums import crystals_of

SITE = "block_skewness"


def skewed_blocks(priors: Priors) -> physics.Array:
    """Third cumulants (n, 3, 3, 3) of the blocks of each image, sampled."""
    numbers = infer.normal(SITE, 0.0, priors.block_skewness_sd, physics.N_CUMULANTS)
    return physics.third_cumulants(numbers[:, 0])


def with_few_blocks(
    model: infer.Model,
    stills: Sequence[Still],
    observations: infer.Batches,
    priors: Priors,
    fit: infer.Fit,
) -> tuple[infer.Fit, Priors]:
    """The fit with the third cumulants of blocks integrated out, and the priors with their sd.

    Frames of a turning crystal have the same blocks.

    Args:
        model: that was fitted; one without an argument ``blocks`` stays as it is.
    """
    if priors.block_skewness_sd == 0 or "blocks" not in inspect.signature(model).parameters:
        return fit, priors
    used = fit.status == Kind.CONVERGED
    if not used.any():
        return fit, priors
    sd = priors.block_skewness_sd
    held = infer.held_numbers(_skewed(model), (observations, priors), fit, SITE, sd, used)
    crystal = crystals_of(stills)[0]
    width = infer.width_of_held(held, crystal, sd, priors.log_block_skewness_sd_sd)
    return infer.held_integrated(fit, held, crystal, width), replace(
        priors, block_skewness_sd=width
    )


@lru_cache
def _skewed(model: infer.Model) -> infer.Model:
    """One object for each model: code is compiled for it."""
    return partial(model, blocks=skewed_blocks)
