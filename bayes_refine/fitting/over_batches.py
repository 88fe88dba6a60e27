"""Results of each batch of a measured run at a state, computed by the run's executor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from .. import infer
from ..infer.executor import Shared
from ..physics.priors import Priors
from ..util.store import places
from . import crosswise_reference
from .claims import Claims, claims_of, judged
from .measure_run import MeasuredRun
from .merge_fit import measured_of
from .problem import Run
from .reflections import Reflections, reflections_of_batch, together
from .state import State, images_of, tails

T = TypeVar("T")
AT_A_TIME = 256  # batches whose results are in memory, some 100 MB of reflections


def all_reflections(
    run: Run, measurements: MeasuredRun, state: State, priors: Priors
) -> Reflections:
    """All reflections of a run, about 130 bytes each; many are in files."""
    return together(_each(_as_they_are, run, measurements, state, priors))


def claims_of_run(run: Run, measurements: MeasuredRun, state: State, priors: Priors) -> Claims:
    """``claims.claims_of`` of all images; reflections of one batch are in memory at a time."""
    nu, names = tails(state, priors), [still.identifier for still in run.stills]
    use = partial(_claims, nu, run.settings.seed)
    found = _each(use, run, measurements, state, priors, [names[w] for w in run.batches()])
    return Claims(*(np.concatenate(column) for column in zip(*found, strict=True)))


def judged_images(
    run: Run, measurements: MeasuredRun, state: State, priors: Priors, fit: infer.Fit
) -> np.ndarray:
    """(n,) statuses: the fit's, or that of an image which is not what its indexing claims."""
    return judged(fit, claims_of_run(run, measurements, state, priors))


def with_intensities(run: Run, measurements: MeasuredRun, state: State, priors: Priors) -> Run:
    """A run without a reference, with intensities as its images say them after a round."""
    assert run.crosswise is not None
    r = all_reflections(run, measurements, state, priors)
    rows = r.where(lambda some: some.informs)
    nu = tails(state, priors)
    measured = measured_of(r, rows, run.ref.space_group, 0.0, nu)
    now = crosswise_reference.renewed(run.crosswise, measured)
    return replace(run, ref=now.reference, crosswise=now)


def _each(
    use: Callable[[Reflections, Any], T],
    run: Run,
    measurements: MeasuredRun,
    state: State,
    priors: Priors,
    own: Sequence[Any] | None = None,
) -> Iterator[T]:
    """``use(reflections, own)`` for each batch; the batch's images count from 0."""
    executor, images = run.work.executor, run.batches()
    here = [images_of(state, w, run.size) for w in images]
    parts = zip(
        places(measurements.batches),
        places(measurements.observations.parts),
        images,
        here,
        [None] * len(images) if own is None else own,
        strict=True,
    )
    work = partial(_of_batch, use, executor.share((run.ref, run.model)), priors)
    items = [*parts]
    for start in range(0, len(items), AT_A_TIME):
        yield from executor.map(work, items[start : start + AT_A_TIME])


def _of_batch(use: Callable, shared: Shared, priors: Priors, item: tuple) -> Any:
    (batch, obs, images, here, own), (ref, model) = item, shared.get()
    r = reflections_of_batch(batch.get(), obs.get(), ref, model, here, priors)
    return use(replace(r, image=r.image - images.start), images if own is None else own)


def _as_they_are(r: Reflections, images: slice) -> Reflections:
    return replace(r, image=r.image + np.int32(images.start))


def _claims(nu: float, seed: int, r: Reflections, names: Sequence[str]) -> Claims:
    return claims_of(r, nu, names, seed)
