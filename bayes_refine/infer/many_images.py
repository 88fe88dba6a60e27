"""The marginal mode of a run with its images, of many images step by step.

What images share is known from a part of them to within a few posterior sd of all.  So a large run
is fitted first with one batch in ``SHARE``, this part likewise if it is large, and all images only
go the rest of the way: each to its own mode, then the shared unknowns to the marginal mode.  The
result is the mode of all images, wherever the part led.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ..util.progress import SILENT, Listener
from .batches import Batches
from .density import Model, find_sites
from .images_alone import images_fit
from .laplace import Fit
from .marginal import marginal_fit
from .newton import map_fit

SHARE = 8  # batches, of which one is fitted first
FEWEST = 128  # images that are fitted first, at least
ROUGH = 0.3  # posterior sd, of these, to the marginal mode


def mode_of_many(
    model: Model,
    data: Batches,
    *rest: Any,
    init: dict[str, np.ndarray],
    tolerance: float = 0.1,
    progress: Listener = SILENT,
) -> Fit:
    """``marginal_fit`` from ``map_fit``, or of many images from a fit of some.

    Args:
        model: NumPyro program of the data and the ``rest``.
        init: start by site (constrained, all images); the prior mean where absent.
        tolerance: of the images, posterior sd, where the search for the marginal mode begins.
        progress: updated at each step.

    Raises:
        InputError: as of ``map_fit``.
    """
    last = partial(marginal_fit, model, data, *rest, progress=progress)
    return last(**_before(model, data, rest, init, tolerance, progress))


def _before(model, data: Batches, rest, init, tolerance, progress) -> dict[str, Any]:
    """The fit from which the search for the marginal mode begins, and whether it is near."""
    first = range(0, len(data.parts) - 1, SHARE)  # the last batch may be nearly empty
    if len(first) * data.size < FEWEST:
        # what counts is the curvature at the marginal mode
        limits = {"tolerance": tolerance, "exact": "near"}
        return {"fit": map_fit(model, data, *rest, init=init, **limits, progress=progress)}
    images = np.concatenate([np.arange(b * data.size, (b + 1) * data.size) for b in first])
    progress.say(f"fitting {len(images)} of the {data.n_images} images first")
    some, start, of_some = data.some(first), dict(init), dict(init)
    sites, _ = find_sites(model, (data.parts[0], *rest), {})
    for site in sites:
        if site.per_image and site.name in init:
            every = np.broadcast_to(init[site.name], (data.n_images, *site.shape))
            start[site.name], of_some[site.name] = np.array(every), every[images]
    rough = {"tolerance": ROUGH, "means": False, "progress": progress}
    before = _before(model, some, rest, of_some, tolerance, progress)
    fit = marginal_fit(model, some, *rest, **before, **rough)
    found = fit.values()
    for site in sites:
        if not site.per_image:
            start[site.name] = found[site.name]
        elif site.name in init:
            start[site.name][images] = found[site.name]
    fit = images_fit(model, data, *rest, init=start, tolerance=tolerance, progress=progress)
    return {"fit": fit, "near": True}
