"""Variational inference from the MAP: a Gaussian guide made as near the posterior as it can be."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.optim import Adam

from .density import Model, Site, density, unflatten
from .diagnostics import judge_guide, psis
from .guides import Guide, structured
from .laplace import Fit

RHAT = 1.1  # of a parameter over two stretches (Dhaka et al. 2020)
DRIFT = 0.05  # posterior sd, or fraction of a width: what nobody would notice
SETTLED = 0.99  # of the parameters
UNNOTICED = 0.05  # nats, of the ELBO
SHORTER = 1 / 3  # steps, once the ELBO has stopped and the parameters wander


@dataclass(frozen=True)
class GuideFit:
    """A guide fitted to a posterior.

    Attributes:
        sites: the unknowns. guide: the family; parameters: of it, averaged over the last two
            stretches; frame: its constants.
        elbo: (steps,) noisy estimates, nats. evidence, evidence_sd: their mean over the last
            two stretches, a lower bound on ln p(data), and its Monte-Carlo sd.
        converged: the ELBO and the parameters stopped moving.
        khat: Pareto k-hat of the importance weights p/q in all dimensions; NaN if not computed.
        message: one sentence. seconds: wall time, compilation included.
    """

    sites: tuple[Site, ...]
    guide: Guide
    parameters: dict[str, np.ndarray]
    frame: Any
    elbo: np.ndarray
    evidence: float
    evidence_sd: float
    converged: bool
    khat: float
    message: str
    seconds: float

    def draws(self, rng: np.random.Generator, n_draws: int) -> dict[str, np.ndarray]:
        """Draws (n_draws, ...) by site from the guide, constrained."""
        keys = jax.random.split(jax.random.key(int(rng.integers(2**31))), n_draws)

        def one(key):
            theta, phi = self.guide.draw(self.parameters, self.frame, key)
            return unflatten(self.sites, theta, phi)

        draw = jax.jit(partial(jax.lax.map, one, batch_size=100))(keys)
        return {name: np.asarray(value) for name, value in draw.items()}


def svi_fit(
    fit: Fit,
    rng: np.random.Generator,
    model: Model,
    *args: Any,
    guide: Guide = structured,
    batch: int | None = None,
    particles: int = 4,
    learning_rate: float = 0.01,
    stretch: int = 250,
    max_steps: int = 10_000,
    n_khat: int = 500,
    progress: Callable[[str], None] | None = None,
) -> GuideFit:
    """Fit a Gaussian guide to a model's posterior by stochastic variational inference.

    Adam on the evidence lower bound, its gradient along the draws alone (Roeder et al. 2017):
    without noise where the guide is the posterior.  Judged stretch by stretch (Dhaka et al.
    2020): it has converged when the ELBO's change is below its Monte-Carlo error and 99 % of the
    parameters either have an R-hat below 1.1 over the last two stretches or drift by less than
    0.05 posterior sd; the parameters are then the average over those two.  Where the ELBO has
    stopped but the parameters wander, the steps become three times shorter (Welandawe et al.
    2022).

    Args:
        fit: of ``map_fit`` for the same model and ``args``; the guide's start and its metric.
        guide: ``guides.structured``, ``guides.mean_field`` or ``guides.low_rank()``.
        batch: images a step, drawn anew, their terms scaled by n/batch; all by default.  Needs
            ``args[0]`` to be arrays that lead with the images (scalars are shared).
        particles: draws a step. learning_rate: of the first steps. stretch: steps between looks.
        n_khat: draws for k-hat, none if 0.
        progress: called with one line a stretch.
    """
    started = time.perf_counter()
    say = progress or (lambda line: None)
    n = len(fit.image)
    batch = n if batch is None else min(batch, n)
    frame, parameters = guide.start(fit)
    problem = _Problem(frame, _levels(fit, model, args, batch), args)
    walk = _stretch(model, fit.sites, guide, batch, particles, stretch)
    state, rate = Adam(learning_rate).init(parameters), learning_rate
    key = jax.random.key(int(rng.integers(2**31)))
    elbo: list[np.ndarray] = []
    before: _Stretch | None = None
    while True:
        key, here = jax.random.split(key)
        state, now = walk(state, rate, jax.random.split(here, stretch), problem)
        elbo.append(np.asarray(now.elbo))
        steps = stretch * len(elbo)
        last = steps + stretch > max_steps
        if before is None:
            before = now
            if not last:
                continue
        unsettled = 1 - float(_settled(before, now, stretch))
        change, change_sd = _change(before.elbo, now.elbo)
        flat = len(elbo) > 1 and change < max(2 * change_sd, UNNOTICED)
        settled = flat and unsettled <= 1 - SETTLED
        say(
            f"step {steps}: ELBO {elbo[-1].mean():.2f} ({change:+.2f} ± {change_sd:.2f}),"
            f" {100 * unsettled:.1f} % of the guide still moving"
        )
        if settled or last:
            break
        before, rate = now, rate * (SHORTER if flat else 1)
    averaged = jax.tree.map(lambda a, b: (a + b) / 2, before.mean, now.mean)
    tail = np.concatenate(elbo[-2:])
    log_weights = _log_weights(model, fit.sites, guide, n_khat)(averaged, key, problem)
    khat = float(psis(np.asarray(log_weights))[1]) if n_khat else np.nan
    message = judge_guide(bool(settled), steps, unsettled, change, change_sd, khat)
    say(message)
    return GuideFit(
        sites=fit.sites,
        guide=guide,
        parameters={k: np.asarray(v) for k, v in averaged.items()},
        frame=frame,
        elbo=np.concatenate(elbo),
        evidence=float(tail.mean()),
        evidence_sd=float(tail.std() / np.sqrt(len(tail))),
        converged=bool(settled),
        khat=khat,
        message=message,
        seconds=time.perf_counter() - started,
    )


def subset(args: tuple, rows: jax.Array) -> tuple:
    """A model's arguments for some of the images: rows of each array in the first argument."""
    return jax.tree.map(lambda x: x[rows] if jnp.ndim(x) else x, args[0]), *args[1:]


class _Problem(NamedTuple):
    """What a step needs: the guide's constants, ln p of each image at the mode, observations."""

    frame: Any
    levels: jax.Array
    args: tuple


class _Stretch(NamedTuple):
    """ELBO (steps,) of one stretch; mean and variance of each parameter over it."""

    elbo: jax.Array
    mean: dict[str, jax.Array]
    variance: dict[str, jax.Array]


def _levels(fit: Fit, model, args, batch):
    """(n,) ln p of each image at the mode: taken out of what a batch of images stands for."""
    n = len(fit.image)

    @jax.jit
    def at(rows, args):
        some = args if batch == n else subset(args, rows)
        return density(model, fit.sites, jnp.asarray(fit.image)[rows], fit.shared, some)[0]

    starts = [min(i, n - batch) for i in range(0, n, batch)]
    rows = [np.arange(i, i + batch) for i in starts]
    levels = np.zeros(n)
    for r in rows:
        levels[r] = np.asarray(at(jnp.asarray(r), args))
    return jnp.asarray(levels)


def _objective(model, sites, guide: Guide, batch, parameters, key, problem: _Problem):
    """One draw's estimate of the negative ELBO."""
    of_batch, of_draw = jax.random.split(key)
    n = len(problem.levels)
    theta, phi = guide.draw(parameters, problem.frame, of_draw)
    held = jax.lax.stop_gradient(parameters)  # the score's mean is zero: only noise
    q_image, q_shared = guide.log_density(held, problem.frame, theta, phi)
    if batch == n:
        p_image, p_shared = density(model, sites, theta, phi, problem.args)
        return -((p_image - q_image).sum() + p_shared - q_shared)
    rows = jax.random.choice(of_batch, n, (batch,), replace=False)
    p_image, p_shared = density(model, sites, theta[rows], phi, subset(problem.args, rows))
    above = (p_image - problem.levels[rows] - q_image[rows]).sum() * (n / batch)
    return -(above + problem.levels.sum() + p_shared - q_shared)


def _stretch(model, sites, guide, batch, particles, steps):
    """Many steps at once, compiled."""

    def loss(parameters, key, problem):
        one = partial(_objective, model, sites, guide, batch, parameters)
        return jax.vmap(lambda k: one(k, problem))(jax.random.split(key, particles)).mean()

    @jax.jit
    def walk(state, rate, keys, problem):
        optimiser = Adam(lambda _: rate)
        origin = optimiser.get_params(state)

        def step(carry, key):
            state, total, squares = carry
            value, slope = jax.value_and_grad(loss)(optimiser.get_params(state), key, problem)
            finite = jnp.isfinite(value)
            slope = jax.tree.map(lambda g: jnp.where(finite & jnp.isfinite(g), g, 0), slope)
            state = optimiser.update(slope, state)
            moved = jax.tree.map(jnp.subtract, optimiser.get_params(state), origin)
            total = jax.tree.map(jnp.add, total, moved)
            squares = jax.tree.map(lambda s, x: s + x**2, squares, moved)
            return (state, total, squares), -value

        zero = jax.tree.map(jnp.zeros_like, origin)
        (state, total, squares), elbo = jax.lax.scan(step, (state, zero, zero), keys)
        mean = jax.tree.map(lambda x: x / steps, total)
        variance = jax.tree.map(lambda s, m: jnp.maximum(s / steps - m**2, 0), squares, mean)
        return state, _Stretch(elbo, jax.tree.map(jnp.add, origin, mean), variance)

    return walk


def _settled(before: _Stretch, now: _Stretch, steps: int):
    """Share of the parameters that do not move any more from one stretch to the next."""
    still = []
    for name in now.mean:
        drift = now.mean[name] - before.mean[name]
        within = (now.variance[name] + before.variance[name]) / 2
        rhat2 = (steps - 1) / steps + drift**2 / 2 / jnp.maximum(within, 1e-30)
        still.append(((rhat2 < RHAT**2) | (jnp.abs(drift) < DRIFT)).reshape(-1))
    return jnp.concatenate(still).mean()


def _change(before, now) -> tuple[float, float]:
    """Change of the ELBO between two stretches and its sd."""
    a, b = np.asarray(before), np.asarray(now)
    return float(b.mean() - a.mean()), float(np.sqrt(a.var() / len(a) + b.var() / len(b)))


def _log_weights(model, sites, guide, count):
    """ln p/q of ``count`` draws from the guide."""

    @jax.jit
    def weigh(parameters, key, problem):
        def one(key):
            theta, phi = guide.draw(parameters, problem.frame, key)
            q_image, q_shared = guide.log_density(parameters, problem.frame, theta, phi)
            p_image, p_shared = density(model, sites, theta, phi, problem.args)
            return (p_image - q_image).sum() + p_shared - q_shared

        return jax.lax.map(one, jax.random.split(key, count))

    return weigh if count else lambda *_: np.zeros(1)
