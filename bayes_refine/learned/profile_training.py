"""Train a profile on the pixels of strong spots, with each spot's own numbers profiled out.

The photons of a pixel are Poisson about μ = Bg + J·P.  J, centre and second moment of each spot are
free here, whatever the physics says of them.  Near a state of the spots μ = Bg + Σ_k b_k D_k, where
D_k are the profile and its derivatives along centre and shape, which are linear in the profile's
shares s.  Given the shares, b̂ is a weighted least-squares fit, and by the envelope theorem

    d ln p(y, b̂ | s)/ds = ∂ ln p(y, b | s)/∂s   at b̂.

A few epochs of Adam move the shares; then D is computed anew at the improved states of the spots.
The evidence of spots that are held out, with b integrated by Laplace's method, judges the profile.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..measuring.point_spread import summed, wider
from ..measuring.template import template_gradient_bend
from ..physics import Array
from ..util.kept_programs import kept
from ..util.progress import Listener
from .component import Evidence
from .factor import Frame
from .profile import Profile, nodes_for
from .strong_spots import StrongSpots

RENEWED = 8  # epochs between new derivatives D
PATIENCE = 3  # training ends after so many looks at the held-out spots without a new best one
REWEIGHTED = 3  # iterations of reweighted least squares
SETTLING = 4  # steps that take the spots to their modes
BOUND = np.array([0.3, 0.3, 0.15, 0.1, 0.1])  # largest step along η
LOOSE = 0.3  # prior sd of a step along η
NARROWEST = 0.3  # smallest sd of a spot, px


class Taught(NamedTuple):
    """The data that train a profile: n spots, and how the nodes map onto their pixels.

    Attributes:
        wide: (K', 2) pixels, px. place: (J, K) pixel less node among them (``point_spread``).
    """

    spots: StrongSpots
    wide: Array
    place: Array


class State(NamedTuple):
    """J (n,), centre (n, 2) and second moment (n, 3) of the cores of n spots, px."""

    J: Array
    centre: Array
    moment: Array


class Found(NamedTuple):
    """A trained profile, the spots' state, and the epochs that it took."""

    profile: Profile
    state: State
    epochs: int


def learn_profile(
    spots: StrongSpots, folds: int, epochs: int, seed: int, progress: Listener
) -> tuple[Profile, tuple[Profile, ...], Evidence]:
    """Train a profile on all images, and one member for each fold, without some of the images.

    Folds serve as in ``training.learn``: a member trains on all folds but two; one of the two says
    when to stop, and on the other the member is compared with Gaussian spots.  ln p is that of the
    pixels of strong spots.
    """
    n = int(np.max(spots.image)) + 1
    order = np.random.default_rng(seed).permutation(n)
    fold = np.argsort(order)[np.asarray(spots.image)] % folds
    first = first_profile(spots, seed)
    wide, place = wider(np.asarray(spots.offsets), first.nodes)
    data = Taught(spots, wide, place)
    plain = first.plain()
    gaussian = settled(data, plain, start_of(spots))
    of_gaussian = evidence(data, plain, gaussian)
    nats, members, taken = np.zeros(n), [], []
    for k in range(folds):
        test, stop = fold == k, fold == (k + 1) % folds
        fresh = first_profile(spots, seed + k + 1)
        found = grow(data, ~test & ~stop, stop, fresh, gaussian, epochs)
        state = settled(data, found.profile, found.state)
        gain = evidence(data, found.profile, state) - of_gaussian
        nats += np.bincount(np.asarray(spots.image)[test], gain[test], n)
        members.append(found.profile)
        taken.append(found.epochs)
        here = nats[np.unique(np.asarray(spots.image)[test])]
        progress.say(
            f"member {k + 1} of {folds}: {found.epochs} epochs; {here.mean():+.2f} nats an image "
            f"on {len(here)} images that it did not see"
        )
    last = max(int(np.median(taken)), 1)
    progress.say(f"training on {len(fold)} spots of all {n} images, {last} epochs")
    found = grow(data, np.ones(len(fold), bool), None, first, gaussian, last)
    moment = np.asarray(found.state.moment)
    core = float(np.sqrt(np.median(moment[:, 0] + moment[:, 1]) / 2))
    module, *rest = (replace(p, core_px=core) for p in (found.profile, *members))
    return module, tuple(rest), Evidence(tuple(map(float, nats)), last)


def first_profile(spots: StrongSpots, seed: int) -> Profile:
    """A profile to begin training with, scaled to the places and the width of the spots."""
    places = [np.asarray(x) for x in (spots.x_mm, spots.y_mm)]
    x, y = (float(place.min() + place.max()) / 2 for place in places)
    half = max(float(np.ptp(x)) for x in places) / 2
    frame = Frame(x, y, max(half, 1.0), 1.0)
    core = spots.core_px
    return Profile.start(jax.random.key(seed), nodes_for(core), core, frame)


def grow(
    data: Taught,
    taught: np.ndarray,
    held: np.ndarray | None,
    first: Profile,
    state: State,
    epochs: int,
) -> Found:
    """Train a profile on some spots until others are predicted no better.

    Args:
        taught: (n,) bool, spots that train. held: (n,) bool, spots that say when to stop; None to
            take all epochs. state: of all spots, at the beginning.
    """
    import optax

    adam = optax.adam(optax.cosine_decay_schedule(first.rate, max(epochs, 1), 0.1))
    profile, memory = first, adam.init(first)
    weight = jnp.asarray(taught, float)
    best, value_of_best = Found(profile, state, 0), -np.inf
    big = derivatives(data.wide, state)
    for epoch in range(epochs + 1):
        if epoch % RENEWED == 0:
            state = stepped(data, big, state, profile)
            big = derivatives(data.wide, state)
            if held is not None:
                value = float(np.sum(np.asarray(_evidence(data, big, state, profile))[held]))
                if value > value_of_best:
                    best, value_of_best = Found(profile, state, epoch), value
                elif epoch - best.epochs > PATIENCE * RENEWED:
                    break
        if epoch < epochs:
            change, memory = adam.update(_slope(data, big, state, profile, weight), memory, profile)
            profile = jax.tree.map(jnp.add, profile, change)
    return best if held is not None else Found(profile, state, epochs)


def start_of(spots: StrongSpots) -> State:
    """The state that the plain fit found for the spots."""
    return State(*map(jnp.asarray, (spots.J, spots.centre, spots.moment)))


def settled(data: Taught, profile: Profile, state: State) -> State:
    """Move the spots to their modes given a profile."""
    for _ in range(SETTLING):
        state = stepped(data, derivatives(data.wide, state), state, profile)
    return state


def evidence(data: Taught, profile: Profile, state: State) -> np.ndarray:
    """(n,) ln p of each spot's pixels with its six numbers integrated out, up to a constant."""
    return np.asarray(_evidence(data, derivatives(data.wide, state), state, profile))


@kept
def derivatives(wide, state: State) -> jax.Array:
    """(n, 6, K') Gaussian template of spots, and its derivatives along η, on pixels (K', 2)."""
    width = jnp.sqrt(state.moment[:, 0] + state.moment[:, 1])
    frame = jnp.broadcast_to(jnp.eye(2), (len(width), 2, 2))
    at = state.centre, frame, state.moment, width, jnp.asarray(wide, float)
    template, gradient, *_ = template_gradient_bend(*at)
    return jnp.concatenate([template[:, None], gradient], axis=1)


def _profile(data: Taught, big, profile: Profile) -> jax.Array:
    """(n, 6, K) the profile and its derivatives."""
    return summed(big, profile.shares(data.spots.x_mm, data.spots.y_mm), data.place)


def _fitted(spots: StrongSpots, D, J) -> tuple[jax.Array, jax.Array]:
    """b̂ (n, 6) by reweighted least squares, and its precision (n, 6, 6)."""
    seen = jnp.asarray(spots.usable, D.dtype)
    mean = jnp.maximum(spots.background + J[:, None] * D[:, 0], spots.background)
    loose = jnp.append(0.0, jnp.full(5, LOOSE**-2)) / jnp.maximum(J, 1.0)[:, None] ** 2
    b = precision = jnp.zeros(())
    for _ in range(REWEIGHTED):
        score = D * (seen / mean)[:, None]
        precision = jnp.einsum("nak,nbk->nab", score, D)
        total = precision + loose[:, :, None] * jnp.eye(6)
        b = jnp.linalg.solve(
            total, jnp.einsum("nak,nk->na", score, spots.photons - spots.background)[..., None]
        )[..., 0]
        mean = _mean(spots, D, b)
    return b, precision


def _mean(spots: StrongSpots, D, b) -> jax.Array:
    """Expected photons of pixels, at least 0.3 of the background: a linear step may go below."""
    return jnp.maximum(spots.background + jnp.einsum("na,nak->nk", b, D), 0.3 * spots.background)


def _log_p(spots: StrongSpots, mean) -> jax.Array:
    """(n,) ln p of the pixels, up to a constant."""
    return jnp.sum(jnp.where(spots.usable, spots.photons * jnp.log(mean) - mean, 0.0), axis=1)


@kept
def _slope(data: Taught, big, state: State, profile: Profile, weight):
    """Slope of −ln p along the profile's numbers."""
    spots = data.spots
    b, _ = _fitted(spots, _profile(data, big, profile), state.J)

    def negative(profile):
        of_spot = _log_p(spots, _mean(spots, _profile(data, big, profile), b))
        return -jnp.sum(weight * of_spot) - profile.log_prior()

    return jax.grad(negative)(profile)


@kept
def _evidence(data: Taught, big, state: State, profile: Profile):
    spots = data.spots
    D = _profile(data, big, profile)
    b, precision = _fitted(spots, D, state.J)
    # b is in units of J and of the present width: change to those of the plain fit's width, so that
    # both profiles are compared under one prior
    was = spots.moment[:, 0] + spots.moment[:, 1]
    narrower = was / (state.moment[:, 0] + state.moment[:, 1])  # (ρ of the plain fit / ρ)²
    units = 5 * jnp.log(jnp.maximum(b[:, 0], 1.0)) + 4 * jnp.log(narrower)
    _, log_det = jnp.linalg.slogdet(precision + 1e-9 * jnp.eye(6))
    return _log_p(spots, _mean(spots, D, b)) - 0.5 * log_det - units


@kept
def stepped(data: Taught, big, state: State, profile: Profile) -> State:
    """Move the spots one step towards their modes."""
    b, _ = _fitted(data.spots, _profile(data, big, profile), state.J)
    J = jnp.maximum(b[:, 0], 0.2 * state.J)
    eta = jnp.clip(b[:, 1:] / J[:, None], -BOUND, BOUND)
    square = (state.moment[:, 0] + state.moment[:, 1])[:, None]
    change = jnp.stack([eta[:, 2] + eta[:, 3], eta[:, 2] - eta[:, 3], eta[:, 4]], axis=1)
    moment = state.moment + change * square
    xx, yy = (jnp.maximum(moment[:, k], NARROWEST**2) for k in (0, 1))
    most = 0.8 * jnp.sqrt(xx * yy)
    moment = jnp.stack([xx, yy, jnp.clip(moment[:, 2], -most, most)], axis=1)
    return State(J, state.centre + eta[:, :2] * jnp.sqrt(square), moment)
