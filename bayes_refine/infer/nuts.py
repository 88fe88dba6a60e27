"""NUTS from the MAP, in the coordinates in which the Laplace approximation is a unit normal."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.hmc import hmc

from ..util.progress import SILENT, Listener
from .batches import of_each
from .density import Model, Site, density, unflatten
from .diagnostics import chain_summary, judge_chains
from .laplace import Fit
from .whitening import coloured, whitening

STRIDE = 50  # trajectories between two reports of progress
TARGET_ACCEPT = 0.8  # mean acceptance that warm-up sets the step for
MAX_TREE_DEPTH = 8  # a trajectory has at most 2⁸ − 1 steps
SPREAD = 1.5  # of the chains' starts, over that of the Laplace approximation


@dataclass(frozen=True)
class Chains:
    """Draws from the posterior by NUTS, c chains of d draws.

    Attributes:
        sites: the unknowns.
        draws: (c, d, ...) by site, constrained.
        stats: (c, d) each: diverging, acceptance_rate, n_steps, tree_depth, energy, lp; names
            and meanings are ArviZ's ``sample_stats``.
        summary: by site rhat, ess_bulk, ess_tail in the site's shape.
        converged, message: whether to believe the draws, and one sentence why.
        seconds: wall time of warm-up and draws, compilation included.
    """

    sites: tuple[Site, ...]
    draws: dict[str, np.ndarray]
    stats: dict[str, np.ndarray]
    summary: dict[str, dict[str, np.ndarray]]
    converged: bool
    message: str
    seconds: float

    def flat(self) -> dict[str, np.ndarray]:
        """The draws with the chains one after the other, (c·d, ...), as ``laplace_draws`` has."""
        return {k: v.reshape(-1, *v.shape[2:]) for k, v in self.draws.items()}


def nuts_fit(
    fit: Fit,
    model: Model,
    *args: Any,
    rng: np.random.Generator,
    n_chains: int = 4,
    n_draws: int = 1000,
    n_warmup: int = 500,
    progress: Listener = SILENT,
) -> Chains:
    """Draw from a model's posterior with NUTS, starting at its MAP.

    The Laplace covariance is the mass matrix: the sampler moves in the coordinates of
    ``whitening``, in which the metric is diagonal and starts at one.  A step therefore costs as
    much as the density, and memory is that of the draws.  Chains start 1.5 times as widely spread
    as the Laplace approximation.

        rng = np.random.default_rng(0)
        chains = nuts_fit(run.fit, run.problem.model, run.observations, run.priors, rng=rng)
        print(chains.message)

    Args:
        fit: of ``map_fit`` for the same model and ``args``.
        n_draws: of each chain.
        n_warmup: of each chain, trajectories before its draws.
        progress: updated every 50 trajectories.
    """
    started = time.perf_counter()
    sites, frame = fit.sites, whitening(fit)

    def potential(frame, args):
        def energy(z):
            image, shared = density(model, sites, *coloured(frame, *z), args)
            return -(image.sum() + shared)

        return energy

    init, sample = hmc(potential_fn_gen=potential, algo="NUTS")
    keys = jax.random.split(jax.random.key(int(rng.integers(2**31))), n_chains)
    energies = jax.jit(lambda z, frame, args: jax.vmap(potential(frame, args))(z))
    start = _starts(fit, n_chains, lambda z: energies(z, frame, args), rng=rng)
    settings = {
        "num_warmup": n_warmup,
        "target_accept_prob": TARGET_ACCEPT,
        "max_tree_depth": MAX_TREE_DEPTH,
    }
    first_state = jax.vmap(
        lambda z, key, frame, args: init(z, model_args=(frame, args), rng_key=key, **settings),
        in_axes=(0, 0, None, None),
    )
    state = jax.jit(first_state)(start, keys, frame, args)

    @partial(jax.jit, static_argnames="length")
    def stride(state, frame, args, length):
        def one(state, _):
            state = sample(state, (frame, args))
            kept = (state.z, state.diverging, state.accept_prob, state.num_steps)
            return state, (*kept, state.energy, state.potential_energy)

        return of_each(lambda chain: jax.lax.scan(one, chain, None, length=length), state)

    parts = []
    total = n_warmup + n_draws
    for done in range(0, total, STRIDE):
        length = min(STRIDE, total - done)
        state, kept = stride(state, frame, args, length)
        first = max(n_warmup - done, 0)
        if first < length:
            parts.append(jax.tree.map(lambda x, first=first: np.asarray(x[:, first:]), kept))
        progress.update(
            (done + length) / total,
            f"{'warm-up' if done + length <= n_warmup else 'drawing'}: {done + length} of {total}"
            f" trajectories, {float(kept[3].mean()):.0f} steps each,"
            f" {int(kept[1].sum())} of {length * n_chains} diverged",
        )
    joined = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *parts)
    z, diverging, accepted, steps, energy, potential_energy = joined

    def constrained(z_image, z_shared):
        return unflatten(sites, *coloured(frame, z_image, z_shared))

    draws = jax.jit(jax.vmap(lambda *z: jax.lax.map(lambda x: constrained(*x), z)))(*z)
    draws = {name: np.asarray(value) for name, value in draws.items()}
    depth = np.log2(steps).astype(int) + 1
    summary = chain_summary(draws)
    saturated = int((steps >= 2**MAX_TREE_DEPTH - 1).sum())
    converged, message = judge_chains(summary, int(diverging.sum()), saturated, energy)
    progress.say(message)
    return Chains(
        sites=sites,
        draws=draws,
        stats={
            "diverging": diverging,
            "acceptance_rate": accepted,
            "n_steps": steps,
            "tree_depth": depth,
            "energy": energy,
            "lp": -potential_energy,
        },
        summary=summary,
        converged=converged,
        message=message,
        seconds=time.perf_counter() - started,
    )


def _starts(fit: Fit, n_chains: int, energies, *, rng):
    """White starts (c, n, k) and (c, s), moved to the mode until the density is finite."""
    shapes = (n_chains, *fit.image.shape), (n_chains, *fit.shared.shape)
    z = tuple(jnp.asarray(SPREAD * rng.standard_normal(shape)) for shape in shapes)
    for _ in range(20):
        bad = ~jnp.isfinite(energies(z))
        if not bad.any():
            break
        z = tuple(jnp.where(bad.reshape(-1, *(1,) * (x.ndim - 1)), x / 2, x) for x in z)
    return z
