"""Variational inference from the MAP: the Gaussian guide of a family nearest to the posterior."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.optim import Adam

from ..util.progress import SILENT, Listener
from .batches import Batches
from .density import Model, Site, density, unflatten
from .diagnostics import judge_guide, psis
from .guides import Guide, structured
from .laplace import Fit

RHAT = 1.1  # of a parameter over two stretches (Dhaka et al. 2020)
DRIFT = 0.05  # posterior sd, or fraction of a width, that does not matter
SETTLED = 0.99  # of the parameters
UNNOTICED = 0.05  # nats, of the ELBO
SHORTER = 1 / 3  # factor on the steps where the ELBO has stopped and parameters still wander


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

    def draws(self, n_draws: int, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draws (n_draws, ...) by site from the guide, constrained."""
        keys = jax.random.split(jax.random.key(int(rng.integers(2**31))), n_draws)

        def one(key):
            theta, phi = self.guide.draw(self.parameters, self.frame, key)
            return unflatten(self.sites, theta, phi)

        draw = jax.jit(partial(jax.lax.map, one, batch_size=100))(keys)
        return {name: np.asarray(value) for name, value in draw.items()}


@dataclass(frozen=True)
class Ascent:
    """How a fit of a guide climbs.

    Attributes:
        particles: draws a step. learning_rate: of the first steps.
        stretch: steps between looks. max_steps: after which the fit ends.
        n_khat: draws for k-hat, none if 0.
    """

    particles: int = 4
    learning_rate: float = 0.01
    stretch: int = 250
    max_steps: int = 10_000
    n_khat: int = 500


def svi_fit(
    fit: Fit,
    model: Model,
    *args: Any,
    rng: np.random.Generator,
    guide: Guide = structured,
    batch: int | None = None,
    ascent: Ascent | None = None,
    progress: Listener = SILENT,
) -> GuideFit:
    """Fit a Gaussian guide to a model's posterior by stochastic variational inference.

    Adam maximises the evidence lower bound with the gradient along the draws alone (Roeder et al.
    2017), which has no noise where the guide is the posterior.  The fit is judged after each
    stretch of steps (Dhaka et al. 2020).  It has converged when the change of the ELBO is below its
    Monte-Carlo error, when 99 % of the parameters either have an R-hat below 1.1 over the last two
    stretches or drift by less than 0.05 posterior sd, and when steps three times shorter no longer
    raise the ELBO (Welandawe et al. 2022), since the noise of long steps makes a guide too narrow.
    The parameters are averages over the last two stretches.

        rng = np.random.default_rng(0)
        found = svi_fit(run.fit, run.problem.model, run.observations, run.priors, rng=rng)
        draws = found.draws(1000, rng=rng)

    Args:
        fit: of ``map_fit`` for the same model and ``args``; the guide's start and its metric.
        guide: ``guides.structured``, ``guides.mean_field`` or ``guides.low_rank()``.
        args: of the model.  Where the first is ``Batches``, a step sees one part, in random order,
            with terms scaled by the number of parts: for runs larger than memory.
        batch: images of a step, drawn anew, with terms scaled by n/batch; all images by default.
            Needs ``args[0]`` to be arrays whose first axis is that of images (scalars are shared).
        ascent: number and length of the steps; ``Ascent()`` by default.
        progress: updated after each stretch.
    """
    started = time.perf_counter()
    how = ascent or Ascent()
    frame, parameters = guide.start(fit)
    key = jax.random.key(int(rng.integers(2**31)))
    on_disk = isinstance(args[0], Batches)
    parts = partial(_parts, args) if on_disk else lambda: iter([_all(fit, args)])
    levels = _levels(model, fit, parts())
    if on_disk:
        walk = _walk_on_disk(model, fit.sites, guide, how.particles, frame, levels, args, rng=rng)
    else:
        walk = _walk_in_memory(model, fit, guide, how.particles, frame, levels, args, batch)
    state, rate = Adam(how.learning_rate).init(parameters), how.learning_rate
    elbo: list[np.ndarray] = []
    before: _Stretch | None = None
    reached = -np.inf  # the ELBO where longer steps settled
    while True:
        key, here = jax.random.split(key)
        state, now = walk(state, rate, jax.random.split(here, how.stretch))
        elbo.append(np.asarray(now.elbo))
        steps = how.stretch * len(elbo)
        last = steps + how.stretch > how.max_steps
        if before is None:
            before = now
            if not last:
                continue
        unsettled = 1 - float(_settled(before, now, how.stretch))
        change, change_sd = _change(before.elbo, now.elbo)
        flat = len(elbo) > 1 and change < max(2 * change_sd, UNNOTICED)
        still = flat and unsettled <= 1 - SETTLED
        progress.update(
            steps / how.max_steps,
            f"SVI step {steps}: ELBO {elbo[-1].mean():.2f} ({change:+.2f} ± {change_sd:.2f}),"
            f" {100 * unsettled:.1f} % of the guide still moving",
        )
        level = np.concatenate(elbo[-2:]).mean()
        settled = still and level - reached < max(2 * change_sd, UNNOTICED)
        if settled or last:
            break
        # two stretches of the same steps are judged together where those before were still
        before, reached = (None, level) if still else (now, reached)
        rate *= SHORTER if flat else 1
    averaged = jax.tree.map(lambda a, b: (a + b) / 2, before.mean, now.mean)
    tail = np.concatenate(elbo[-2:])
    khat = np.nan
    if how.n_khat:
        weights = _log_weights(model, fit.sites, guide, averaged, frame, key, how.n_khat, parts())
        khat = float(psis(weights)[1])
    message = judge_guide(bool(settled), steps, unsettled, change, change_sd, khat)
    progress.say(message)
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


class _Part(NamedTuple):
    """Some images: their rows, how many images each stands for, and the model's arguments."""

    rows: Any
    weight: Any
    args: tuple


class _Stretch(NamedTuple):
    """ELBO (steps,) of one stretch; mean and variance of each parameter over it."""

    elbo: jax.Array
    mean: dict[str, jax.Array]
    variance: dict[str, jax.Array]


def _all(fit: Fit, args: tuple) -> _Part:
    """All images at once."""
    n = len(fit.image)
    return _Part(np.arange(n), np.ones(n), args)


def _part(args: tuple, number: int) -> _Part:
    """One part of ``Batches``; unused places have no weight."""
    data: Batches = args[0]
    rows = number * data.size + np.arange(data.size)
    weight = np.where(rows < data.n_images, 1.0, 0.0)
    return _Part(np.minimum(rows, data.n_images - 1), weight, (data.parts[number], *args[1:]))


def _parts(args: tuple) -> Iterator[_Part]:
    return (_part(args, number) for number in range(len(args[0].parts)))


def _levels(model, fit: Fit, parts: Iterator[_Part]) -> jax.Array:
    """(n,) ln p of each image at the mode, subtracted from a batch's terms to lower the noise."""

    @jax.jit
    def at(theta, args):
        return density(model, fit.sites, theta, jnp.asarray(fit.shared), args)[0]

    levels = np.zeros(len(fit.image))
    for part in parts:
        found = np.asarray(at(jnp.asarray(fit.image[part.rows]), part.args))
        kept = part.weight > 0
        levels[part.rows[kept]] = found[kept]
    return jnp.asarray(levels)


def _objective(model, sites, guide: Guide, frame, levels, parameters, key, part: _Part):
    """One draw's estimate of the negative ELBO."""
    theta, phi = guide.draw(parameters, frame, key)
    held = jax.lax.stop_gradient(parameters)  # the score has mean zero and would add noise alone
    q_image, q_shared = guide.log_density(held, frame, theta, phi)
    p_image, p_shared = density(model, sites, theta[part.rows], phi, part.args)
    above = part.weight * (p_image - levels[part.rows] - q_image[part.rows])
    return -(above.sum() + levels.sum() + p_shared - q_shared)


class _Moved(NamedTuple):
    """Adam's state, and sums and squares of the parameters less those at the stretch's start."""

    state: Any
    origin: Any
    total: Any
    squares: Any


def _begin(state) -> _Moved:
    origin = Adam(0.0).get_params(state)
    zero = jax.tree.map(jnp.zeros_like, origin)
    return _Moved(state, origin, zero, zero)


def _step(objective, particles, rate, moved: _Moved, key, part: _Part):
    """One step of Adam along the mean gradient of some draws; with it the ELBO."""
    optimiser = Adam(lambda _: rate)

    def loss(parameters):
        one = jax.vmap(lambda k: objective(parameters, k, part))
        return one(jax.random.split(key, particles)).mean()

    value, slope = jax.value_and_grad(loss)(optimiser.get_params(moved.state))
    finite = jnp.isfinite(value)
    slope = jax.tree.map(lambda g: jnp.where(finite & jnp.isfinite(g), g, 0), slope)
    state = optimiser.update(slope, moved.state)
    away = jax.tree.map(jnp.subtract, optimiser.get_params(state), moved.origin)
    total = jax.tree.map(jnp.add, moved.total, away)
    squares = jax.tree.map(lambda s, x: s + x**2, moved.squares, away)
    return _Moved(state, moved.origin, total, squares), -value


def _end(moved: _Moved, elbo) -> tuple[Any, _Stretch]:
    steps = len(elbo)
    mean = jax.tree.map(lambda x: x / steps, moved.total)
    variance = jax.tree.map(lambda s, m: jnp.maximum(s / steps - m**2, 0), moved.squares, mean)
    return moved.state, _Stretch(elbo, jax.tree.map(jnp.add, moved.origin, mean), variance)


def _walk_in_memory(model, fit: Fit, guide, particles, frame, levels, args, batch):
    """A stretch of steps at once, compiled: all images, or ``batch`` of them drawn anew."""
    n = len(fit.image)
    batch = n if batch is None else min(batch, n)

    def drawn(key, args) -> _Part:
        if batch == n:
            return _all(fit, args)
        rows = jax.random.choice(key, n, (batch,), replace=False)
        return _Part(rows, jnp.full(batch, n / batch), subset(args, rows))

    @jax.jit
    def walk(state, rate, keys, frame, levels, args):
        objective = partial(_objective, model, fit.sites, guide, frame, levels)

        def step(moved, key):
            of_batch, of_draws = jax.random.split(key)
            part = drawn(of_batch, args)
            return _step(objective, particles, rate, moved, of_draws, part)

        return _end(*jax.lax.scan(step, _begin(state), keys))

    return lambda state, rate, keys: walk(state, rate, keys, frame, levels, args)


def _walk_on_disk(model, sites, guide, particles, frame, levels, args, *, rng):
    """A stretch of steps, each on one part that is read for it; every part once in each turn."""
    count = len(args[0].parts)
    turn: list[int] = []

    @jax.jit
    def step(moved, rate, key, frame, levels, part):
        objective = partial(_objective, model, sites, guide, frame, levels)
        return _step(objective, particles, rate, moved, key, part)

    def walk(state, rate, keys):
        moved, elbo = _begin(state), []
        for key in keys:
            if not turn:
                turn.extend(rng.permutation(count))
            part = _part(args, turn.pop())
            part = part._replace(weight=count * part.weight)
            moved, value = step(moved, rate, key, frame, levels, part)
            elbo.append(value)
        return _end(moved, jnp.stack(elbo))

    return walk


def _settled(before: _Stretch, now: _Stretch, steps: int):
    """Share of the parameters that no longer move from one stretch to the next."""
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


def _log_weights(model, sites, guide, parameters, frame, key, count, parts) -> np.ndarray:
    """(count,) ln p/q of draws from the guide."""

    @jax.jit
    def draw(key):
        theta, phi = guide.draw(parameters, frame, key)
        image, shared = guide.log_density(parameters, frame, theta, phi)
        return theta, phi, image.sum() + shared

    @jax.jit
    def weigh(theta, phi, weight, args):
        image, shared = density(model, sites, theta, phi, args)
        return jnp.where(weight > 0, image, 0.0).sum(), shared

    drawn = [draw(k) for k in jax.random.split(key, count)]
    log_weights = -np.array([float(q) for _, _, q in drawn])
    shared = np.zeros(count)
    for part in parts:
        found = [weigh(theta[part.rows], phi, part.weight, part.args) for theta, phi, _ in drawn]
        log_weights += [float(image) for image, _ in found]
        shared = np.array([float(s) for _, s in found])
    return log_weights + shared
