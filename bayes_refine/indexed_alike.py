"""Indexing all images of a run alike: integrated ones, or stills still to be integrated.

Measure (or read), :func:`~bayes_refine.rough_scales.rough_scales`, choose, apply.
"""

from __future__ import annotations

import numpy as np

from .ambiguity import ambiguity, reindexed_stills, reindexed_unmerged
from .experiments import Still
from .io.mtz import Unmerged
from .leave_image_out import Integrated
from .priors import Priors
from .reference import Reference
from .reindex import Reindexing, choose, choose_by_reference, nothing_to_choose
from .rough_scales import rough_scales
from .run import BATCH, Run, Say
from .scout import BROAD_MARGIN, spot_width
from .seen import MIN_COVERED, Batch, Kept, measured


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
    obs = integrated(data)
    if reference is None:
        choice = choose(obs, ways, data.cell, seed=seed)
    else:
        choice = choose_by_reference(obs, ways, reference, free_fraction=free_fraction, seed=seed)
    return reindexed_unmerged(data, ways, choice.operation), choice


def integrated(data: Unmerged) -> Integrated:
    """Observations of a file with rough scales, and sigmas that do not go by what was counted.

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
        scale=rough_scales(data.hkl, image, J, data.excitation_error, data.cell, data.space_group),
        variance=np.maximum(variance - kappa * J, 0.2 * variance),
        variance_signal=np.full(len(data), kappa),
        n_images=n_images,
    )


def stills_alike(
    run: Run, priors: Priors, say: Say, by_reference: bool = True
) -> tuple[tuple[Still, ...], Reindexing]:
    """The stills of a run with every one indexed alike, and what was chosen; before any fit.

    Every still is measured once, at the geometry that it was indexed with.  What is refined
    afterwards never sees intensities of a wrong reflection.

    Args:
        by_reference: choose by ``run.ref``, less the free set; else, where it says nothing of
            strong and weak, by comparing the images with each other.

    Raises:
        InputError: the reference's cell does not have its symmetry, or no image can be used.
    """
    n = len(run.stills)
    ways = ambiguity(run.ref.cell, run.ref.space_group)
    if len(ways) == 1:
        return run.stills, nothing_to_choose(ways, n)
    say(f"indexing is ambiguous ({' | '.join(ways.names)}): measuring {n} images to choose by")
    few = run.few(np.unique(np.linspace(0, n - 1, BATCH).astype(int)))
    state = {"log_R1": np.full((n, 1), spot_width(few, priors))}
    unusable = np.full(n, "", dtype=object)
    seen = measured(run, state, priors, unusable, Kept(), BROAD_MARGIN, say)

    hkl, image, J, excitation, polarisation, variance, variance_signal = (
        np.concatenate(column) for column in zip(*map(_columns, seen.batches), strict=True)
    )
    g = rough_scales(hkl, image, J / polarisation, excitation, run.ref.cell, run.ref.space_group)
    obs = Integrated(hkl, image, J, g * polarisation, variance, variance_signal, n)
    settings = run.settings
    if by_reference:
        choice = choose_by_reference(
            obs, ways, run.ref, free_fraction=settings.free_fraction, seed=settings.seed
        )
    else:
        choice = choose(obs, ways, run.ref.cell, seed=settings.seed)
    say(str(choice))
    return reindexed_stills(run.stills, ways, choice.operation), choice


def _columns(batch: Batch) -> tuple[np.ndarray, ...]:
    """What there is to choose by of the reflections of a batch that were measured."""
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
