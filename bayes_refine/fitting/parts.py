"""Split a run into independent parts: each batch of images becomes a small run of its own."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..geometry.experiments import Still
from ..infer.executor import Shared
from ..measuring.ice_rings import Ring
from ..physics.priors import Priors
from ..util.output import digest, versions
from .problem import Run, Work
from .state import State


@dataclass(frozen=True)
class Part:
    """The part of a run that belongs to one batch of n images.

    Attributes:
        stills: of the batch. fold: (n,) of ``CrosswiseReference.fold``; None with a reference.
        rings: of ice, by file and frame, of images that were measured before.
        state: sites of the run, and the batch's rows of the images' sites.
        status: (n,) of the images so far.
    """

    stills: tuple[Still, ...]
    fold: np.ndarray | None
    rings: dict[tuple, tuple[Ring, ...]]
    state: State
    status: np.ndarray


@dataclass(frozen=True)
class Common:
    """What all parts of a run share: the run without its images, and its priors."""

    run: Shared[Run]
    priors: Priors

    def run_of(self, part: Part) -> Run:
        """A part as a run."""
        run = self.run.get()
        run.ice.found.update(part.rings)
        crosswise = run.crosswise
        if crosswise is not None and part.fold is not None:
            crosswise = replace(crosswise, fold=part.fold)
        return replace(run, stills=part.stills, crosswise=crosswise)


def of_no_images(run: Run) -> Run:
    """A run without its images."""
    crosswise = run.crosswise
    if crosswise is not None:
        crosswise = replace(crosswise, fold=crosswise.fold[:0])
    return replace(run, stills=(), crosswise=crosswise, work=Work())


def parts_of(run: Run, state: State, status: np.ndarray) -> list[Part]:
    """The parts of a run at a state; a site with the axes of the images' plate is the images'."""
    known = run.ice.found

    def one(images: slice) -> Part:
        stills = run.stills[images]
        keys = ((s.image_path, s.frame) for s in stills)
        return Part(
            stills,
            None if run.crosswise is None else run.crosswise.fold[images],
            {key: known[key] for key in keys if key in known},
            {k: np.asarray(v)[images] if np.ndim(v) > 1 else v for k, v in state.items()},
            status[images],
        )

    return [one(images) for images in run.batches()]


def depends_on(
    run: Run, state: State, priors: Priors, status: np.ndarray, plan: Any, margin: float
) -> dict[str, str]:
    """What the statistics of a run depend on; the files of statistics have it as attributes."""
    crystals = [(s.identifier, str(s.image_path), s.frame, s.crystal.A) for s in run.stills]
    known: tuple = ()
    if run.crosswise is not None:
        known = (*run.crosswise.known, run.crosswise.fold)
    of_reference = (run.ref.hkl, run.ref.intensity, *known)
    maps = ("gain", "pedestal", "usable", "gain_map", "pedestal_map")
    photons = [getattr(run.reader, name, None) for name in maps]
    return {
        "state_sha256": digest(state, list(map(str, status)), margin, tuple(plan)),
        "crystals_sha256": digest(crystals, photons),
        "reference_sha256": digest(of_reference),
        "priors": json.dumps(asdict(priors), default=repr),
        "settings": json.dumps(run.settings.shown(), default=repr),
        "software": json.dumps(versions()),
    }
