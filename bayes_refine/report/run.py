"""Write the report of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..fitting.centroids import Centroids, centroids_of
from ..fitting.loop import RunFit
from ..fitting.state import PANELS
from ..fitting.tables import image_table, lab_positions, usable_images
from ..infer.curvature import IMAGES
from ..io.protocols import Images
from ..physics.contract import unknown
from ..util.large_arrays import release, room, slices, taken
from . import glance, images, learned, recipe, sections
from .arrows import Arrows, arrows_of
from .beam import Shell, outwards
from .charts import ObservedAndExpected
from .drawing import shown
from .gallery import shoebox_gallery
from .page import Section, attempt, chart, failures, write_report
from .spots import predicted_spots


def fit_report(
    path: str | Path,
    run: RunFit,
    summary: Mapping[str, Any],
    draws: Mapping[str, np.ndarray] | None = None,
    reader: Images | None = None,
) -> list[str]:
    """Write the report of a fit; a picture that cannot be drawn is left out and reported.

    Args:
        summary: the content of ``summary.json``.
        draws: (draws, ...) by site, constrained, by any method.
        reader: reads images for the pictures of pixels; without it there are none.

    Returns:
        A sentence for each picture or section that could not be made.

    Raises:
        InputError: ``path`` cannot be written.
    """
    with failures() as failed:
        arrays = (
            attempt("the images", lambda: image_table(run)),
            attempt("the reflections", lambda: _with_displacements(run)),
            attempt("the draws", lambda: shared_draws(run, draws or {})),
            attempt("the couplings", lambda: couplings(run)),
            *(attempt("the pixels", lambda: _pixels(run, reader)) or (None, None)),
        )
    return run_report(path, "bayes-refine fit", summary, Content(*arrays), failed)


@dataclass(frozen=True)
class Content:
    """The data that a report shows beside its summary; a section whose data are None is left out.

    Attributes:
        table: columns of ``images.csv``. reflections: their measured and expected J.
        draws: (n,) draws by name, of unknowns that the images share.
        correlation: from ``couplings``. gallery, overview: pictures of pixels, from ``chart``.
    """

    table: Mapping[str, np.ndarray] | None = None
    reflections: ObservedAndExpected | None = None
    draws: Mapping[str, np.ndarray] | None = None
    correlation: tuple[list[str], np.ndarray] | None = None
    gallery: str | None = None
    overview: str | None = None


def run_report(
    path: str | Path,
    title: str,
    summary: Mapping[str, Any],
    content: Content | None = None,
    already: Sequence[str] = (),
) -> list[str]:
    """Write a report from plain arrays; sections without data are left out.

    Args:
        summary: the content of ``summary.json``; any of its parts may be missing.
        already: a sentence for each earlier failure.

    Returns:
        A sentence for each picture or section that could not be made; the page has them too.

    Raises:
        InputError: ``path`` cannot be written.
    """
    content = content or Content()
    table, reflections = content.table, content.reflections
    r = reflections if reflections is not None and len(reflections) else None
    n_images = len(table["status"]) if table else int(r.image.max()) + 1 if r else 0
    counts = summary.get("counts", {})
    parts = [
        f"{counts['images']} images" if "images" in counts else "",
        summary.get("space_group") or "",
        f"reference {Path(summary['reference'].split(': ')[0]).name}"
        if summary.get("reference")
        else "",
        f"bayes_refine {version}"
        if (version := summary.get("versions", {}).get("bayes-refine"))
        else "",
    ]
    made: dict[str, Callable[[], Section | None]] = {
        "at a glance": lambda: glance.headline(summary, table, r),
        "what was run": lambda: recipe.what_was_run(summary),
        "shared by all images": lambda: recipe.shared_unknowns(summary),
        "images": lambda: images.images(table, r) if table else None,
        "intensities": lambda: sections.intensities(r),
        "learned components": lambda: learned.components(summary.get("components")),
        "residuals": lambda: sections.residuals(r, n_images),
        "pixels": lambda: sections.shoeboxes(content.gallery, content.overview),
        "agreement": lambda: sections.agreement(summary.get("agreement")),
        "calibration": lambda: sections.calibration(r, glance.likelihood_nu(summary)),
        "posterior": lambda: sections.posterior(content.draws, content.correlation),
    }
    with failures() as failed:
        parts_made = [attempt(f"section '{name}'", make) for name, make in made.items()]
    missing = sections.not_drawn([*already, *failed])
    subtitle = " · ".join(part for part in parts if part)
    write_report(path, title, [missing, *parts_made], subtitle)
    return [*already, *failed]


# -- plain arrays of a fit ------------------------------------------------------------------


def observed_and_expected(run: RunFit) -> ObservedAndExpected:
    """The measured reflections of usable images that have a reference; of very many a part."""
    usable = usable_images(run)
    rows = run.reflections.where(lambda r: r.measured & np.isfinite(r.J_model) & usable[r.image])
    rows = shown(rows)
    r = run.reflections.taken(rows)
    return ObservedAndExpected(
        image=r.image,
        J=r.J.astype(float),
        J_model=r.J_model.astype(float),
        sigma=np.sqrt(r.variance_model.astype(float)),
        d=r.d.astype(float),
        fitted=r.informs,
        free=r.free & ~r.informs,
        excitation_error=r.excitation_error.astype(float),
        partiality=r.partiality.astype(float),
        xy_mm=taken(lab_positions(run), rows),
    )


def _with_displacements(run: RunFit) -> ObservedAndExpected:
    arrows, shells = attempt("the displacements", lambda: _displaced(run)) or (None, ())
    return replace(observed_and_expected(run), arrows=arrows, outwards=shells)


def _displaced(run: RunFit) -> tuple[Arrows | None, tuple[Shell, ...]]:
    """Displacements of spots by position and by resolution; none if centroids were not fitted."""
    found = centroids_of(run)
    if found is None:
        return None, ()
    rows = shown(np.arange(len(found.image)))
    found = Centroids(*(column[rows] for column in found))
    return arrows_of(run, found), outwards(found, run.reflections.pixel_inv_angstrom)


def shared_draws(run: RunFit, draws: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """(n,) draws of each number that the images share; detector shifts are in µm."""
    found = {}
    for site in run.fit.sites:
        if site.per_image or site.name in PANELS or site.name not in draws:
            continue
        values = np.asarray(draws[site.name], float)
        values = values.reshape(len(values), -1)
        for name, column in zip(unknown(site.name).numbers(values.shape[1]), values.T, strict=True):
            if site.name.startswith("log_"):
                found[name] = np.exp(column)
            elif name.endswith("_mm"):
                found[f"{name.removesuffix('_mm')}_um"] = 1e3 * column
            else:
                found[name] = column
    return found


def couplings(run: RunFit) -> tuple[list[str], np.ndarray] | None:
    """Names and posterior correlations of an image's unknowns and the shared unknowns.

    The correlations are those of the Laplace approximation, the median over usable images.
    """
    fit, usable = run.fit, usable_images(run)
    if not usable.any():
        return None
    sites = [site for site in fit.sites if site.name not in PANELS]
    all_shared = [site for site in fit.sites if not site.per_image]
    kept = np.concatenate([np.full(site.size, site in sites) for site in all_shared])
    shared = fit.shared_covariance[np.ix_(kept, kept)]
    images = np.flatnonzero(usable)
    size = fit.image.shape[1] + len(shared)
    found = room((size, size, len(images)))
    for part in slices(len(images), found, size=IMAGES):
        some = images[part]
        slope = np.linalg.solve(fit.image_precision[some], fit.coupling[some])[:, :, kept]
        cross = -slope @ shared
        whole = np.broadcast_to(shared, (len(some), *shared.shape))
        covariance = np.block(
            [[fit.image_covariance(some), cross], [np.swapaxes(cross, 1, 2), whole]]
        )
        sd = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
        found[..., part] = np.moveaxis(covariance / (sd[:, :, None] * sd[:, None, :]), 0, -1)
    correlation = np.empty((size, size))
    for k, row in enumerate(found):
        correlation[k] = np.median(row, axis=-1)
        release(found)
    names: dict[bool, list[str]] = {True: [], False: []}
    for site in sites:
        names[site.per_image] += unknown(site.name).numbers(site.size)
    return names[True] + [f"run:{name}" for name in names[False]], correlation


# -- pixels ---------------------------------------------------------------------------------


def _pixels(run: RunFit, reader: Images | None) -> tuple[str | None, str | None]:
    """The gallery of shoeboxes, and part of an image with its predictions."""
    usable = usable_images(run)
    if reader is None or not run.reflections.column(lambda r: r.informs & usable[r.image]).any():
        return None, None
    gallery = chart(
        "gallery",
        lambda figure: shoebox_gallery(run, reader, n=3),
        "Shoeboxes: data, model and their difference over σ of a pixel (±5). Rows: strong; weak; "
        "below the model (largest deficit); above the model (largest excess). J is in photons. In "
        "a good run the differences are noise without structure, and spots far below or above the "
        "model have a visible reason: a neighbour, a bad pixel, a split spot.",
        (10.6, 6.4),
    )
    overview = chart(
        "predictions",
        lambda figure: predicted_spots(figure.add_subplot(), run, reader),
        "Part of the brightest image with its predictions. In a good run every dark spot is on a "
        "cross, and circles where more than 3σ is expected are not empty.",
        (10.6, 6.6),
    )
    return gallery, overview
