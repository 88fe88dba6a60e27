"""The mode of a run with its images, of many images step by step.

What images share is known from a part of them to within a few posterior sd of all.  So a large run
is fitted first with one batch in ``SHARE``, this part likewise if it is large, and all images only
go the rest of the way.  The result is the mode of all images, wherever the part led.
"""

from __future__ import annotations

from collections.abc import Callable
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
NEAR = 0.5  # posterior sd to the joint mode, where a fit that will be repeated ends
STRAGGLERS = 0.05  # of the images, that may be further then


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


def near_mode_of_many(
    model: Model,
    data: Batches,
    *rest: Any,
    init: dict[str, np.ndarray],
    progress: Listener = SILENT,
) -> Fit:
    """Near the joint mode, for a fit that will be repeated: most images within ``NEAR`` posterior
    sd of their modes, what they share as it is known from a fit of some of many images.

    Args:
        model, data, rest, init, progress: as of :func:`mode_of_many`.
    """
    near = partial(map_fit, model, tolerance=NEAR, exact=False, progress=progress)

    def fit(some: Batches, init: dict[str, np.ndarray]) -> Fit:
        return near(some, *rest, init=_led(fit, model, some, rest, init, progress) or init)

    start = _led(fit, model, data, rest, init, progress) or init
    return near(data, *rest, init=start, stragglers=STRAGGLERS)


def _before(model, data: Batches, rest, init, tolerance, progress) -> dict[str, Any]:
    """The fit from which the search for the marginal mode begins, and whether it is near."""

    def fit(some: Batches, init: dict[str, np.ndarray]) -> Fit:
        before = _before(model, some, rest, init, tolerance, progress)
        rough = {"tolerance": ROUGH, "means": False, "progress": progress}
        return marginal_fit(model, some, *rest, **before, **rough)

    start = _led(fit, model, data, rest, init, progress)
    if start is None:
        # what counts is the curvature at the marginal mode
        limits = {"tolerance": tolerance, "exact": "near"}
        return {"fit": map_fit(model, data, *rest, init=init, **limits, progress=progress)}
    of_each = images_fit(model, data, *rest, init=start, tolerance=tolerance, progress=progress)
    return {"fit": of_each, "near": True}


def _led(
    fit: Callable[[Batches, dict[str, np.ndarray]], Fit],
    model: Model,
    data: Batches,
    rest: tuple,
    init: dict[str, np.ndarray],
    progress: Listener,
) -> dict[str, np.ndarray] | None:
    """The start ``init`` with what the fit of one batch in ``SHARE`` found: the shared unknowns,
    and those of its images.  None where these images are too few."""
    first = range(0, len(data.parts) - 1, SHARE)  # the last batch may be nearly empty
    if len(first) * data.size < FEWEST:
        return None
    images = np.concatenate([np.arange(b * data.size, (b + 1) * data.size) for b in first])
    progress.say(f"fitting {len(images)} of the {data.n_images} images first")
    start, of_some = dict(init), dict(init)
    sites, _ = find_sites(model, (data.parts[0], *rest), {})
    for site in sites:
        if site.per_image and site.name in init:
            every = np.broadcast_to(init[site.name], (data.n_images, *site.shape))
            start[site.name], of_some[site.name] = np.array(every), every[images]
    found = fit(data.some(first), of_some).values()
    for site in sites:
        if not site.per_image:
            start[site.name] = found[site.name]
        elif site.name in init:
            start[site.name][images] = found[site.name]
    return start
