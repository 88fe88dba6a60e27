"""Train a component from a plain fit, and judge it on images that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from ..fitting.loop import RunFit
from ..fitting.problem import Settings
from ..fitting.tables import usable_images
from ..infer import Batches, Model
from ..infer.profiled import draws_about, log_evidence, precision, settled, train
from ..infer.search import Search
from ..physics import SpotStatistics
from ..util.errors import InputError
from ..util.output import versions
from ..util.progress import SILENT, Listener
from .component import Component, Evidence, Family, Origin, Setup
from .curve import FARTHEST, Curve
from .factor import Factor, Frame
from .profile_training import learn_profile
from .strong_spots import strong_spots

FOLDS = 5  # a member trains on all folds but two: one says when to stop, one is the test
FEWEST = 3  # images that a component needs: to train on, to say when to stop, to test on
LARGEST = 8  # images in a batch, at most
OWN = 0.5  # ``Training.own`` where each image has a curve of its own
DRAWS = 32  # draws of a curve's numbers from their posterior


@dataclass(frozen=True)
class Training:
    """How a component is trained.

    Attributes:
        epochs: of training, at most. seed: of the folds and the first weights.
        own: for a partiality, how much the curve may differ from image to image (``Curve.own``).
    """

    epochs: int = 150
    seed: int = 0
    own: float = 0.0


@dataclass(frozen=True)
class Material:
    """The data that train a component: n images.

    Attributes:
        model: NumPyro program of ``(observations, priors)`` that takes a component's pieces as
            further arguments.
        observations: of the n images. values: the plain fit's values of its sites, at which
            training begins.
    """

    model: Model
    observations: SpotStatistics
    priors: Any
    values: Mapping[str, np.ndarray]


class Learned(NamedTuple):
    """A module trained on all images, members each trained without some, their evidence, and draws
    of a curve's numbers from their posterior."""

    module: Curve | Factor
    members: tuple[Curve | Factor, ...]
    evidence: Evidence
    draws: tuple[Curve, ...] = ()


def train_component(
    run: RunFit, family: Family, training: Training | None = None, progress: Listener = SILENT
) -> Component:
    """Train a component on the statistics of a fitted run, and judge it on held-out images.

        found = train_component(run, Family.partiality)
        found.origin.evidence.recommended

    Args:
        run: fitted with the plain model; for a correction, with ``Settings(metadata=True)``.

    Raises:
        InputError: fewer than three images could be used.
    """
    images = np.flatnonzero(usable_images(run))
    if family is Family.profile:
        return _of_spots(run, training or Training(), progress)
    data = _chosen(run.observations, images)
    of_images = {site.name for site in run.fit.sites if site.per_image}
    values = {k: v[images] if k in of_images else v for k, v in run.fit.values().items()}
    found = learn(Material(run.problem.model, data, run.priors, values), family, training, progress)
    origin = _origin(run, len(images), int(np.sum(data.fit)), found.evidence)
    return Component(family, found.module, found.members, origin, found.draws)


def _of_spots(run: RunFit, training: Training, progress: Listener) -> Component:
    """Train a profile on the pixels of the strong spots of a fitted run."""
    spots = strong_spots(run)
    n = int(np.max(spots.image)) + 1
    check_enough(n)
    folds = min(FOLDS, n)
    found = learn_profile(spots, folds, training.epochs, training.seed, progress)
    return Component(Family.profile, found[0], found[1], _origin(run, n, len(spots.J), found[2]))


def _origin(run: RunFit, n_images: int, n_reflections: int, evidence: Evidence) -> Origin:
    d_min, known = run.problem.settings.d_min, {**versions(), "equinox": eqx.__version__}
    return Origin(Setup.of(run.indexed), n_images, n_reflections, d_min, evidence, known)


def check_enough(n_images: int) -> None:
    """Check that there are enough images to train on and to hold out.

    Raises:
        InputError: there are fewer than three images.
    """
    if n_images < FEWEST:
        raise InputError(
            f"{n_images} images could be fitted, and a component needs {FEWEST} or more: give "
            "more images"
        )


def learn(
    material: Material,
    family: Family,
    training: Training | None = None,
    progress: Listener = SILENT,
) -> Learned:
    """Train a module on all images, and one member for each fold, without some of the images.

    Images are dealt into folds at random.  A member trains on all folds but two: one of the two
    says when to stop, and on the other the member is compared with the plain model, whose shared
    unknowns are fitted to the images that trained the member.

    Raises:
        InputError: there are fewer than three images.
    """
    training = training or Training()
    n = len(material.observations.fit)
    check_enough(n)
    order = np.random.default_rng(training.seed).permutation(n)
    folds = min(FOLDS, n)
    first = _first(family, material.observations, training, 0)
    search = _search(material, order, folds, first)
    plain, size, prior = first.plain(), search.data.size, _log_prior
    fold = np.arange(len(search.data.parts)) % folds
    nats, members, epochs = np.zeros(len(search.weight)), [], []
    for k in range(folds):
        test, stop = fold == k, fold == (k + 1) % folds
        own, halt, unseen = (
            search.some_batches(list(np.flatnonzero(parts)))
            for parts in (~test & ~stop, stop, test)
        )
        fresh = _first(family, material.observations, training, k + 1)
        found = train(own, halt, fresh, prior, first.rate, training.epochs)
        with_it, _ = log_evidence(unseen.given(found.weights), found.state.phi)
        without, _ = log_evidence(unseen.given(plain), settled(own.given(plain)).phi)
        nats[np.repeat(test, size)] = with_it - without
        members.append(found.weights)
        epochs.append(found.epochs)
        here = (with_it - without)[unseen.weight > 0]
        progress.say(
            f"member {k + 1} of {folds}: {found.epochs} epochs; {here.mean():+.2f} nats an image "
            f"on {len(here)} images that it did not see"
        )
    last = max(int(np.median(epochs)), 1)
    progress.say(f"training on all {n} images, {last} epochs")
    found = train(search, None, first, prior, first.rate, last)
    module, draws = found.weights, ()
    if isinstance(module, Factor):
        module, *members = (m.pinned(material.observations) for m in (module, *members))
    else:
        progress.say("the curve's posterior")
        curvature = precision(search, found.state, module, prior)
        draws = tuple(draws_about(module, curvature, DRAWS))
    back = np.empty(n)
    back[order] = nats[search.weight > 0]
    return Learned(module, tuple(members), Evidence(tuple(map(float, back)), last), draws)


def _log_prior(weights: Any) -> jax.Array:
    return weights.log_prior()


@lru_cache(maxsize=8)
def _learning(model: Model) -> Callable[..., None]:
    """The model with its pieces as an argument, so that new weights need no new compilation."""

    def learning(obs: SpotStatistics, priors: Any, weights: Curve | Factor) -> None:
        model(obs, priors, **weights.pieces())

    return learning


def _chosen(observed: SpotStatistics, images: np.ndarray) -> SpotStatistics:
    return jax.tree.map(lambda x: np.asarray(x)[images] if np.ndim(x) else x, observed)


def _search(material: Material, order: np.ndarray, folds: int, weights: Curve | Factor) -> Search:
    """A search over all images in a given order, which starts at the values of the plain fit."""
    n = len(order)
    size = max(1, min(LARGEST, n // folds))
    count = -(-n // size)
    rows = order[np.minimum(np.arange(count * size), n - 1)].reshape(count, size)
    parts = [_chosen(material.observations, r) for r in rows]
    # a site of images has the axes of its plate; a shared site has those of its event only
    init = {k: np.asarray(v)[order] if np.ndim(v) > 1 else v for k, v in material.values.items()}
    model = _learning(material.model)
    return Search(model, (Batches(parts, size, n), material.priors, weights), init)


def _first(family: Family, data: SpotStatistics, training: Training, member: int) -> Curve | Factor:
    key = jax.random.key(training.seed + member)
    if family is Family.partiality:
        return Curve.start(key, training.own)
    return Factor.start(key, frame_of(data))


def frame_of(data: SpotStatistics) -> Frame:
    """The scales of a correction's inputs: the extent of the reflections that inform a fit."""
    where, fit = data.metadata, np.asarray(data.fit)
    if where is None:
        raise InputError("a correction is trained on a fit with Settings(metadata=True)")
    x, y = np.asarray(where.x_mm)[fit], np.asarray(where.y_mm)[fit]
    middle = (x.min() + x.max()) / 2, (y.min() + y.max()) / 2
    half = max(np.ptp(x), np.ptp(y)) / 2
    energy = 0.0
    if data.log_pulse_energy is not None:
        known = np.abs(np.asarray(data.log_pulse_energy))
        energy = np.max(known[np.isfinite(known)], initial=0.0)
    return Frame(*map(float, (*middle, half, np.max(np.asarray(data.norm_q)[fit]) ** 2, energy)))


def settings_for(settings: Settings, families: Iterable[Family]) -> Settings:
    """Settings of the fit on which components of the families are to be trained."""
    families = set(families)
    if Family.partiality in families:
        settings = replace(settings, margin=max(settings.margin, FARTHEST))
    return replace(settings, metadata=settings.metadata or Family.correction in families)
