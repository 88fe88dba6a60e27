"""Add images to a finished fit.

New images start from the shared unknowns of the fit.  The images of the fit keep their measured
statistics: while the new images are fitted, each batch of the old ones is a parabola in the shared
unknowns (``infer.summary``), and the unknowns of its images follow the shared ones linearly.  A
batch is measured and fitted again where a shared unknown has since moved by more than half of its
posterior sd.  Without a reference all batches are fitted again each time that the number of images
has doubled, since the intensities to which they were fitted are better known by then.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import infer
from ..indexing.ambiguity import ambiguity, reindexed_stills
from ..indexing.reindex import Reindexing, nothing_to_choose
from ..infer.summary import Summary
from ..physics.priors import Priors
from ..util.errors import InputError
from ..util.progress import SILENT, Listener
from ..util.status import usable
from ..util.store import Joined, Place, places
from .exposures import model_of
from .few_blocks import with_few_blocks
from .index_alike import stills_alike
from .kept import Kept
from .loop import SET_ASIDE, RunFit
from .measure_batch import Batch
from .measure_run import MeasuredRun
from .one_round import Round, one_round
from .over_batches import all_reflections, judged_images, with_intensities
from .prepare import Prepared, settings_of
from .problem import BATCH, Run, Settings, Work, prepare_run
from .start import BROAD_MARGIN, broadened, wavelengths
from .state import State, geometry_of, moved

RENEWED = 0.5  # posterior sd that a shared unknown may move before a batch is fitted again


class NothingToAdd(InputError):
    """Every image that was given is in the fit already."""


def add(
    prepared: Prepared,
    model: infer.Model,
    priors: Priors | None = None,
    settings: Settings | None = None,
    progress: Listener = SILENT,
    work: Work | None = None,
    *,
    kept: Kept,
) -> RunFit:
    """Fit those images of a run that a kept fit lacks, and renew the batches that they affect.

    Args:
        prepared: the run, which begins with the images of the kept fit (``prepare_more``).
        kept: the kept fit. The other arguments are those with which that fit was made.

    Raises:
        NothingToAdd: there is no new image.
        InputError: as ``fit``.
    """
    priors, settings = priors or Priors(), settings_of(prepared, settings or Settings())
    if priors.wavelength_jitter > 0 or settings.metadata:
        raise InputError(
            "images cannot be added where wavelengths are unknowns or a component depends on the "
            "order of images: leave out --add to fit all again"
        )
    stills, n_old = prepared.experiments.stills, len(kept.keys)
    if len(stills) == n_old:
        raise NothingToAdd("every image that can be read is in the fit already: nothing to add")
    program = model_of(model, stills)
    run = prepare_run(stills, prepared.reference, prepared.reader, program, priors, settings, work)
    if run.stills[0].sweep is not None:
        raise InputError(
            "images cannot be added where frames of one crystal share unknowns: fit with --keep, "
            "or with Settings(sweeps=False)"
        )
    if kept.told["room"] >= BATCH:  # its batches are whole
        run = replace(run, size=kept.told["room"])
    run = _with_folds(kept.saved.onto(run), kept)
    run, reindexing = _alike(run, kept, priors, progress)
    priors = replace(priors, uneven_blocks_sd=kept.told["uneven_blocks_sd"])
    priors = replace(priors, **kept.progress.learned)
    whole = _add(run, kept, priors, progress)
    return replace(whole.run_fit(reindexing, priors, kept), unread=prepared.unread)


def _with_folds(run: Run, kept: Kept) -> Run:
    """Deal new images out over the folds, and find ice rings by the images' present paths."""
    by_path = {
        (os.path.abspath(str(path)), frame): r for (path, frame), r in kept.saved.rings.items()
    }
    for still in run.stills[: len(kept.keys)]:
        place = os.path.abspath(still.image_path), still.frame
        if place in by_path:
            run.ice.found[still.image_path, still.frame] = by_path[place]
    if run.crosswise is None:
        return run
    fold, folds = run.crosswise.fold, len(run.crosswise.known.mean) - 1
    more = np.arange(len(fold), len(run.stills)) % folds
    return replace(run, crosswise=replace(run.crosswise, fold=np.concatenate([fold, more])))


def _alike(run: Run, kept: Kept, priors: Priors, progress: Listener) -> tuple[Run, Reindexing]:
    """The run with its new images indexed like the images of the kept fit."""
    ways, n_old = ambiguity(run.ref.cell, run.ref.space_group), len(kept.keys)
    if len(ways) == 1:
        return run, nothing_to_choose(ways, len(run.stills))
    old = reindexed_stills(run.stills[:n_old], ways, kept.array("operation"))
    new, choice = stills_alike(
        run.few(np.arange(n_old, len(run.stills))), priors, progress, by_reference=True
    )
    before = {name: kept.array(name) for name in ("operation", "log_odds", "log_likelihood")}
    before["status"] = kept.choice_status()
    joined: dict[str, Any] = {
        name: np.concatenate([values, getattr(choice, name)]) for name, values in before.items()
    }
    return replace(run, stills=(*old, *new)), replace(choice, **joined)


def _add(run: Run, kept: Kept, priors: Priors, progress: Listener) -> _Whole:
    n_old, size = len(kept.keys), run.size
    summary = Summary(*(kept.array(name) for name in Summary._fields))
    settled = n_old // size if kept.told["room"] == size and len(summary.at) else 0
    progress.say(f"adding {len(run.stills) - n_old} images to {n_old}")
    before = summary.some(np.arange(settled))
    found, status = _fit_new(run, kept, before, priors, progress)
    whole = _Whole.of(run, kept, found, status, settled)
    if run.crosswise is not None:
        whole = replace(whole, run=whole.with_intensities(priors))
    stale = whole.stale(settled)
    if run.crosswise is not None and len(run.stills) >= 2 * kept.told["whole"]:
        stale = np.arange(settled)
    if len(stale):
        progress.say(f"renewing {len(stale) * size} images that were fitted at other values")
        whole = whole.renewed(stale, priors, kept.progress.plan, progress)
        if run.crosswise is not None:
            whole = replace(whole, run=whole.with_intensities(priors))
    again = settled == 0 or len(stale) == settled
    return replace(whole, all_fitted=len(run.stills) if again else kept.told["whole"])


def _fit_new(
    run: Run, kept: Kept, before: Summary, priors: Priors, progress: Listener
) -> tuple[Round, np.ndarray]:
    """Fit the images that are not settled in three rounds; return the last and their statuses.

    The first round has a broad partiality curve, as the first round of a run has.  In each round
    the parabola of the settled images keeps the shared unknowns near their values.
    """
    images = np.arange(len(before.at) * run.size, len(run.stills))
    few, n = run.few(images), len(images)
    known, plan = kept.progress.state, kept.progress.plan
    good = usable(kept.progress.status)
    good = good if good.any() else np.ones(len(good), bool)
    of_run = {k: v for k, v in known.items() if np.ndim(v) <= 1}
    wide, broad = broadened(of_run, np.asarray(known.get("rotation_mrad", 0.0))[good], priors)
    state: State = {**of_run, **wide, **wavelengths(few)}
    for name in ("strain", "log_R1"):  # the cell goes with the distance
        if name in known:
            state[name] = np.repeat(np.median(known[name][good], axis=0)[None], n, axis=0)
    after = dict(of_run)
    if "log_mosaic_image_mrad" in known:
        after["log_mosaic_image_mrad"] = np.full((n, 1), of_run["log_mosaic_mrad"])
    at = kept.array("shared")
    held = before.total(at) if len(before.at) else None
    widened = None
    if held is not None:
        names = np.array(kept.told["columns"])
        there = at.copy()
        for name, value in wide.items():
            there[names == name] = value
        widened = held._replace(at=there, slope=0 * at)
    status, found = np.full(n, "", dtype=object), None
    for k, (now, margin, earlier) in enumerate(
        (
            (broad, BROAD_MARGIN, widened),
            (priors, run.settings.margin, held),
            (priors, run.settings.margin, held),
        )
    ):
        if found is not None:
            found.measurements.batches.delete()
        few = replace(few, earlier=earlier)
        found = one_round(few, state, now, status, plan, margin, k == 2, progress)
        progress.say(f"round {k + 1}: {found.movement}")
        state = found.state if k else {**found.state, **after}
        if k == 1:  # doubtful images do not inform the last round
            said = judged_images(few, found.measurements, state, priors, found.fit)
            wrong = (status == "") & np.isin([s.kind for s in said], SET_ASIDE)
            status[wrong] = said[wrong]
    assert found is not None
    found = _with_few_blocks(few, found, priors)
    said = judged_images(few, found.measurements, found.state, priors, found.fit)
    return found, np.where(status == "", said, status)


def _with_few_blocks(few: Run, found: Round, priors: Priors) -> Round:
    """The round with the moments of few blocks integrated out; their prior sd is the run's."""
    fit, _ = with_few_blocks(few.model, found.measurements.observations, priors, found.fit)
    return replace(found, fit=fit, state=fit.values())


@dataclass(frozen=True)
class _Whole:
    """All images of a run, each as it was fitted last.

    Attributes:
        fit: of all images, whose unknowns have followed the shared ones.
        summary: a parabola of each batch, about the shared unknowns at which the batch was fitted.
        status: (n,). batches: where each batch is stored. movement: of all rounds.
        all_fitted: how many images there were when all were last fitted together.
    """

    run: Run
    fit: infer.Fit
    summary: Summary | None
    status: np.ndarray
    batches: list[Place]
    movement: tuple
    plan: object
    all_fitted: int = 0

    @classmethod
    def of(cls, run: Run, kept: Kept, found: Round, status: np.ndarray, settled: int) -> _Whole:
        """The settled batches of a fit that was kept, and a round of all other images."""
        old = kept.fit(found.fit.sites)
        rows = slice(settled * run.size)
        fit = _rows_of(found.fit, lambda name, new: np.concatenate([getattr(old, name)[rows], new]))
        fit = _followed(fit, np.arange(rows.stop), found.fit.shared - old.shared)
        summary = found.fit.by_batch
        if summary is not None and old.by_batch is not None:
            before = old.by_batch.some(np.arange(settled))
            summary = Summary.joined([before, summary])
        return cls(
            run,
            fit,
            summary,
            np.concatenate([kept.progress.status[rows], status]),
            [*kept.batches().places[:settled], *places(_raw(found.measurements))],
            (*kept.progress.movement, found.movement),
            found.measurements.plan,
        )

    def stale(self, settled: int) -> np.ndarray:
        """The settled batches that were fitted too far from the shared unknowns, or are gone."""
        gone = np.array([not place.is_there() for place in self.batches[:settled]], bool)
        if self.summary is None:
            return np.flatnonzero(gone)
        sd = np.sqrt(np.diag(self.fit.shared_covariance))
        far = np.abs(self.summary.at[:settled] - self.fit.shared) > RENEWED * sd
        return np.flatnonzero(far.any(axis=1) | gone)

    def renewed(self, stale: np.ndarray, priors: Priors, plan, progress: Listener) -> _Whole:
        """Measure and fit some full batches again."""
        run, size, fit = self.run, self.run.size, self.fit
        images = (stale[:, None] * size + np.arange(size)).ravel()
        few, values = run.few(images), fit.values()
        state = {k: np.asarray(v)[images] if np.ndim(v) > 1 else v for k, v in values.items()}
        if self.summary is not None:
            others = np.setdiff1d(np.arange(len(self.batches)), stale)
            few = replace(few, earlier=self.summary.some(others).total(fit.shared))
        status = np.where(usable(self.status[images]), "", self.status[images]).astype(object)
        found = one_round(few, state, priors, status, plan, run.settings.margin, True, progress)
        found = _with_few_blocks(few, found, priors)
        said = judged_images(few, found.measurements, found.state, priors, found.fit)
        batches, summary = list(self.batches), self.summary
        for b, place in zip(stale, places(_raw(found.measurements)), strict=True):
            batches[b] = place
        if summary is not None and found.fit.by_batch is not None:
            for whole, part in zip(summary, found.fit.by_batch, strict=True):
                whole[stale] = part

        def put(name: str, new: np.ndarray) -> np.ndarray:
            rows = np.array(getattr(fit, name))
            rows[images] = new
            return rows

        now = _rows_of(found.fit, put)
        rest = np.setdiff1d(np.arange(len(self.status)), images)
        whole_status = self.status.copy()
        whole_status[images] = np.where(status == "", said, status)
        return replace(
            self,
            fit=_followed(now, rest, found.fit.shared - fit.shared),
            summary=summary if found.fit.by_batch is not None else None,
            status=whole_status,
            batches=batches,
            movement=(*self.movement, found.movement),
        )

    @property
    def measurements(self) -> MeasuredRun:
        """The measurements of all images."""
        run, stores = self.run, Joined(self.batches)
        batches = zip(stores.of("batch").places, run.batches(), strict=True)
        placed = Joined([_InRun(p.store, p.index, images) for p, images in batches])
        observed = infer.Batches(
            stores.of("observations"), run.size, len(run.stills), run.work.executor
        )
        none = np.zeros(0)
        return MeasuredRun(placed, observed, none, none, self.plan)  # type: ignore[arg-type]

    def with_intensities(self, priors: Priors) -> Run:
        """The run with intensities as all images now say them."""
        return with_intensities(self.run, self.measurements, self.fit.values(), priors)

    def run_fit(self, reindexing: Reindexing, priors: Priors, kept: Kept) -> RunFit:
        """The whole as the result of a fit."""
        run, state, measured = self.run, self.fit.values(), self.measurements
        return RunFit(
            stills=moved(run.stills, geometry_of(run.stills, state)),
            indexed=run.stills,
            reindexing=reindexing,
            reference=run.ref,
            status=self.status,
            fit=replace(self.fit, status=self.status, by_batch=self.summary),
            reflections=all_reflections(run, measured, state, priors),
            batches=measured.batches,  # type: ignore[arg-type]
            observed=measured.observations,
            movement=self.movement,
            ice=tuple(run.ice.of(still) for still in run.stills),
            problem=run,
            priors=priors,
            plan=kept.progress.plan,
            all_fitted=self.all_fitted,
        )


@dataclass(frozen=True)
class _InRun(Place):
    """The place of a batch that was measured as part of another run."""

    images: slice

    def get(self) -> Batch:
        return replace(super().get(), images=self.images)


def _raw(measurements: MeasuredRun):
    """The store of a round, with all that each batch has."""
    return measurements.batches.of("")


def _rows_of(fit: infer.Fit, rows: Callable[[str, np.ndarray], np.ndarray]) -> infer.Fit:
    """A fit with other rows of images: ``rows`` of a name and of the fit's own array."""
    shift = np.broadcast_to(fit.image_shift, fit.image.shape)
    own = {"image_shift": shift}
    names = ("image", "image_precision", "coupling", "distance", "image_shift", "status")
    found: dict[str, Any] = {name: rows(name, own.get(name, getattr(fit, name))) for name in names}
    return replace(fit, shared_precision=None, **found)


def _followed(fit: infer.Fit, images: np.ndarray, step: np.ndarray) -> infer.Fit:
    """A fit whose ``images`` follow a step of the shared unknowns: Δθ = −H⁻¹ C Δφ."""
    image = fit.image.copy()
    pull = np.linalg.solve(fit.image_precision[images], fit.coupling[images])
    image[images] -= pull @ step
    return replace(fit, image=image)
