"""Index all stills of a run alike before any fit: measure, scale roughly, choose, apply."""

from __future__ import annotations

import numpy as np

from ..geometry.experiments import Still
from ..indexing.ambiguity import ambiguity, reindexed_stills
from ..indexing.first_scales import first_scales
from ..indexing.leave_image_out import Integrated
from ..indexing.reindex import Reindexing, choose, choose_by_reference, nothing_to_choose
from ..physics.priors import Priors
from ..util.progress import Listener
from .measure_batch import MIN_COVERED, Batch, Plan
from .measure_run import measure_run
from .problem import BATCH, Run
from .start import BROAD_MARGIN, spot_width


def stills_alike(
    run: Run, priors: Priors, progress: Listener, by_reference: bool = True
) -> tuple[tuple[Still, ...], Reindexing]:
    """Index every still of a run alike; return the stills and the operations that were chosen.

    This is done before any fit, so that no fit uses the intensity of a wrong reflection.  Every
    still is measured once, at its geometry as indexed.

    Args:
        by_reference: choose by ``run.ref`` without the free set; else, where ``run.ref`` has mean
            intensities only, by comparing the images with each other.

    Raises:
        InputError: the reference's cell does not have its symmetry, or no image can be used.
    """
    n = len(run.stills)
    ways = ambiguity(run.ref.cell, run.ref.space_group)
    if len(ways) == 1:
        return run.stills, nothing_to_choose(ways, n)
    progress.say(
        f"indexing is ambiguous ({' | '.join(ways.names)}): measuring {n} images to choose by"
    )
    few = run.few(np.unique(np.linspace(0, n - 1, BATCH).astype(int)))
    state = {"log_R1": np.full((n, 1), spot_width(few, priors))}
    unusable = np.full(n, "", dtype=object)
    measurements = measure_run(run, state, priors, unusable, Plan(), BROAD_MARGIN, progress)

    hkl, image, J, excitation, polarisation, variance, variance_signal = (
        np.concatenate(column) for column in zip(*map(_columns, measurements.batches), strict=True)
    )
    measurements.batches.delete()
    g = first_scales(hkl, image, J / polarisation, excitation, run.ref.cell, run.ref.space_group)
    obs = Integrated(hkl, image, J, g * polarisation, variance, variance_signal, n)
    settings = run.settings
    if by_reference:
        choice = choose_by_reference(
            obs, ways, run.ref, free_fraction=settings.free_fraction, seed=settings.seed
        )
    else:
        choice = choose(obs, ways, run.ref.cell, seed=settings.seed)
    progress.say(str(choice))
    return reindexed_stills(run.stills, ways, choice.operation), choice


def _columns(batch: Batch) -> tuple[np.ndarray, ...]:
    """Columns of a batch's measured reflections that the choice is made by."""
    p, s = batch.predictions, batch.statistics
    columns = (
        p.hkl,
        p.image + batch.images.start,
        s.value[:, 0],
        p.excitation_error,
        p.polarisation,
        s.variance_background[:, 0],
        s.variance_signal[:, 0],
    )
    return tuple(column[s.covered > MIN_COVERED] for column in columns)
