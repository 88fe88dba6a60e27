"""A finished fit to which images can be added: its state, its curvature and its statistics.

The fit is saved as a checkpoint (:mod:`checkpoint`) that has the curvature too and names the files
of the batches.  A complete addition replaces the checkpoint by its own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .. import infer
from ..geometry.experiments import Still
from ..infer.summary import Summary
from ..measuring.bad_pixels import BadPixels
from ..measuring.detector_noise import DetectorNoise
from ..util.errors import InputError
from ..util.folder import MEASURED
from ..util.store import Joined, Place, Store, places
from .checkpoint import Checkpoint, More, Progress, Saved
from .learned_priors import learned_numbers
from .loop import RunFit

OF_IMAGES = ("image", "image_precision", "coupling", "distance", "image_shift")
OF_RUN = ("shared", "shared_covariance", "shared_shift", "image_prior_sd")
CHOICE = ("operation", "log_odds", "log_likelihood")  # of ``Reindexing``, (n, ...)


@dataclass(frozen=True)
class Kept:
    """A finished fit of n images in B batches, as it was saved."""

    saved: Saved

    @property
    def progress(self) -> Progress:
        """State, statuses, plan and movement of the fit."""
        return self.saved.progress

    @cached_property
    def keys(self) -> dict[str, int]:
        """The place of each image in the run, by :func:`key_of`."""
        return {key.decode(): k for k, key in enumerate(self.saved.more.arrays["key"].tolist())}

    def array(self, name: str) -> np.ndarray:
        """One of the arrays that :func:`keep` saved."""
        return self.saved.more.arrays[name]

    @property
    def told(self) -> Mapping[str, Any]:
        """The numbers and words that :func:`keep` saved."""
        return self.saved.more.told

    def fit(self, sites: tuple[infer.Site, ...]) -> infer.Fit:
        """The fit, of a model with these sites.

        Raises:
            InputError: the model has other unknowns.
        """
        if [site.name for site in sites] != self.told["sites"]:
            raise InputError(
                "the model has other unknowns than the fit in --out; put its file back as it was, "
                "or leave out --add to fit all images again"
            )
        arrays = {name: self.array(name) for name in (*OF_IMAGES, *OF_RUN)}
        return infer.Fit(
            sites=sites,
            shared_distance=0.0,
            status=self.progress.status,
            iterations=0,
            log_density=float("nan"),
            by_batch=Summary(*(self.array(name) for name in Summary._fields)),
            **arrays,
        )

    def batches(self) -> Joined:
        """The places of the batches on disk."""
        return Joined([Place(Store(k + 1, Path(folder)), k) for folder, k in self.told["batches"]])

    def choice_status(self) -> np.ndarray:
        """(n,) ``Reindexing.status``."""
        return np.array(self.told["choice_status"], object)

    def noise(self) -> DetectorNoise:
        """Gain and read-out noise that the fit took."""
        return DetectorNoise(*self.told["noise"])

    def bad_pixels(self) -> BadPixels:
        """Hot and dead pixels that the fit left out."""
        shape, n_images = self.told["bad_pixels"]
        hot, dead = np.zeros((2, *shape), bool)
        for mask, name in ((hot, "hot"), (dead, "dead")):
            mask[tuple(self.array(name).T)] = True
        return BadPixels(hot, dead, n_images)


def key_of(still: Still) -> str:
    """A name for an image as indexed: a hash of file, frame and orientation."""
    what = (os.path.abspath(still.image_path), still.frame, still.crystal.A.tobytes())
    return hashlib.sha1(repr(what).encode("utf-8", "surrogateescape")).hexdigest()


def keep(
    checkpoint: Checkpoint,
    run: RunFit,
    names: Mapping[str, str],
    noise: DetectorNoise,
    bad: BadPixels,
) -> None:
    """Save a finished fit, so that images can be added to it.

    Args:
        names: the key of each image by its identifier.
    """
    fit, choice = run.fit, run.reindexing
    summary = fit.by_batch
    if summary is None:  # no parabolas: an addition then fits all images again
        s = len(fit.shared)
        summary = Summary(np.zeros((0, s)), np.zeros((0, s)), np.zeros((0, s, s)))
    arrays = {
        "key": np.array([names[still.identifier].encode() for still in run.stills]),
        **{name: np.asarray(getattr(fit, name)) for name in OF_RUN},
        **{name: np.asarray(getattr(fit, name)) for name in OF_IMAGES},
        **summary._asdict(),
        **{name: np.asarray(getattr(choice, name)) for name in CHOICE},
        "hot": np.argwhere(bad.hot),
        "dead": np.argwhere(bad.dead),
        "wavelength": np.array([still.beam.wavelength for still in run.indexed]),
        "bandwidth": np.array([still.beam.bandwidth or 0.0 for still in run.indexed]),
    }
    arrays["image_shift"] = np.broadcast_to(fit.image_shift, fit.image.shape)
    arrays["shared_shift"] = np.broadcast_to(fit.shared_shift, fit.shared.shape)
    where = places(run.observed.parts)
    files = [(str(_store_of(place).folder), place.index) for place in where]
    told = {
        "sites": [site.name for site in fit.sites],
        "columns": [s.name for s in fit.sites if not s.per_image for _ in range(s.size)],
        "batches": files,
        "choice_status": list(map(str, choice.status)),
        "noise": [noise.gain, noise.read_noise],
        "bad_pixels": [list(bad.hot.shape), bad.n_images],
        "whole": run.all_fitted or len(run.stills),
        "room": run.observed.size,
        "uneven_blocks_sd": run.priors.uneven_blocks_sd,
    }
    before = Checkpoint(checkpoint.folder, {}).read()  # the fit to which images were added
    done = Progress(
        1 + (0 if before is None else before.progress.rounds),
        run.fit.values(),
        run.status,
        run.plan,
        run.movement,
        learned_numbers(run.priors),
    )
    checkpoint.save(done, run.problem, More(arrays, told))
    _forget(set(files), before)
    left = {Path(folder) for folder, _ in files}
    for folder in (checkpoint.folder.parent / MEASURED).glob("*-*"):
        if folder not in left:  # a stopped addition left it
            shutil.rmtree(folder, ignore_errors=True)


def _store_of(place: Place) -> Store:
    store = place.store
    if not isinstance(store, Store):
        raise TypeError("only batches on disk can be kept")
    return store


def _forget(batches: set[tuple[str, int]], before: Saved | None) -> None:
    """Delete the files of batches that the fit no longer has."""
    if before is None:
        return
    for folder, k in before.more.told["batches"]:
        if (folder, k) not in batches:
            Store(k + 1, Path(folder)).remove(k)


def read_kept(checkpoint: Checkpoint) -> Kept:
    """Read the fit that was kept.

    Raises:
        InputError: no fit was kept, or the kept fit is damaged or was made by other versions.
    """
    saved = checkpoint.read()
    if saved is None:
        raise InputError(
            f"{checkpoint.folder.parent.parent}: has no fit to which images can be added; fit with "
            "--keep first"
        )
    return Kept(saved)


def kept_first(stills: Iterable[Still], kept: Kept) -> tuple[Still, ...]:
    """Order stills: those of the kept fit first, in their places there, then all others.

    Raises:
        InputError: a still of the kept fit is missing.
    """
    order = kept.keys
    known: dict[int, Still] = {}
    new = []
    for still in stills:
        k = order.get(key_of(still))
        if k is None or k in known:
            new.append(still)
        else:
            known[k] = still
    if len(known) < len(order):
        raise InputError(
            f"{len(order) - len(known)} of {len(order)} images that were fitted are no longer in "
            "the files; put the files back, or leave out --add to begin again"
        )
    return (*(known[k] for k in range(len(order))), *new)
