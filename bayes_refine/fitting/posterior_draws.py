"""Draws from the posterior of a fitted run: about its mode, from a guide, or by NUTS.

A *method* is a function of (run, model, priors, progress, *, rng) that returns ``Draws``; its
options are bound with ``functools.partial``.  All methods draw from the posterior of the same
frozen statistics, those of the fit's last round.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import jax
import numpy as np

from .. import infer
from ..infer.diagnostics import bfmi, chain_summary, extreme
from ..infer.guides import Guide, structured
from ..physics.priors import Priors
from ..util.large_arrays import stored
from ..util.progress import Listener
from .loop import RunFit

IN_MEMORY = 512  # images whose statistics a method may hold at once: about 1 GB


@dataclass(frozen=True)
class Draws:
    """Draws of the unknowns of a run, c chains of d, and whether to believe them.

    Attributes:
        method: "map", "laplace", "svi", "nuts", or other words.
        values: (c, d, ...) by site, constrained.
        scales_vary: whether merged sigmas contain the uncertainty of the scales.
        of_laplace: whether draws are of the normal about the mode, whose moments the fit knows.
        stats: (c, d) each, by ArviZ's names of ``sample_stats``; of NUTS only.
        converged, message: whether to believe the draws, and one sentence why; None and "" if the
            method has no such test.
        numbers: the diagnostics behind the judgement.
        seconds: wall time, compilation included.
    """

    method: str
    values: Mapping[str, np.ndarray]
    scales_vary: bool = True
    of_laplace: bool = False
    stats: Mapping[str, np.ndarray] = field(default_factory=dict)
    converged: bool | None = None
    message: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def shape(self) -> tuple[int, int]:
        """Chains, and draws of each."""
        return np.shape(next(iter(self.values.values())))[:2]  # type: ignore[return-value]

    def flat(self, at_most: int | None = None) -> dict[str, np.ndarray]:
        """(D, ...) by site, one chain after the other; evenly spaced ones if there are too many."""
        c, d = self.shape
        flat = {k: v.reshape(-1, *v.shape[2:]) for k, v in self.values.items()}
        if at_most is None or at_most >= c * d:
            return flat
        rows = np.linspace(0, c * d - 1, at_most).astype(int)
        return {k: stored(v[rows]) for k, v in flat.items()}


class Method(Protocol):
    """Draw from the posterior of a fitted run."""

    def __call__(
        self,
        run: RunFit,
        model: infer.Model,
        priors: Priors,
        progress: Listener,
        *,
        rng: np.random.Generator,
    ) -> Draws: ...


def laplace(
    run: RunFit,
    model: infer.Model,
    priors: Priors,
    progress: Listener,
    *,
    rng: np.random.Generator,
    n_draws: int = 100,
) -> Draws:
    """Independent draws from the normal with the mode's curvature."""
    started = time.perf_counter()
    values = infer.laplace_draws(run.fit, n_draws, rng=rng)
    seconds = time.perf_counter() - started
    return Draws("laplace", _one_chain(values), of_laplace=True, seconds=seconds)


def at_mode(
    run: RunFit,
    model: infer.Model,
    priors: Priors,
    progress: Listener,
    *,
    rng: np.random.Generator,
    n_draws: int = 100,
) -> Draws:
    """Draws as of :func:`laplace`; merged sigmas take the scales at the mode as known."""
    return replace(
        laplace(run, model, priors, progress, rng=rng, n_draws=n_draws),
        method="map",
        scales_vary=False,
    )


def svi(
    run: RunFit,
    model: infer.Model,
    priors: Priors,
    progress: Listener,
    *,
    rng: np.random.Generator,
    n_draws: int = 100,
    guide: Guide = structured,
) -> Draws:
    """Independent draws from a guide fitted to the posterior (``infer.svi_fit``).

    Runs of more than 512 images are read a batch at a time; smaller ones are held in memory.
    """
    obs = _statistics(run) if len(run.stills) <= IN_MEMORY else run.observed
    found = infer.svi_fit(run.fit, model, obs, priors, rng=rng, guide=guide, progress=progress)
    return Draws(
        "svi",
        _one_chain(found.draws(n_draws, rng=rng)),
        converged=found.converged,
        message=found.message,
        numbers={
            "guide": guide.name,
            "steps": len(found.elbo),
            "elbo": found.evidence,
            "elbo_sd": found.evidence_sd,
            "khat": found.khat,
        },
        seconds=found.seconds,
    )


def nuts(
    run: RunFit,
    model: infer.Model,
    priors: Priors,
    progress: Listener,
    *,
    rng: np.random.Generator,
    n_draws: int = 1000,
    n_chains: int = 4,
    n_warmup: int = 500,
) -> Draws:
    """Chains of ``n_draws`` by NUTS from the mode (``infer.nuts_fit``), statistics in memory."""
    found = infer.nuts_fit(
        run.fit,
        model,
        _statistics(run),
        priors,
        rng=rng,
        n_chains=n_chains,
        n_draws=n_draws,
        n_warmup=n_warmup,
        progress=progress,
    )
    worst = {what: extreme(found.summary, what) for what in ("rhat", "ess_bulk", "ess_tail")}
    return Draws(
        "nuts",
        found.draws,
        stats=found.stats,
        converged=found.converged,
        message=found.message,
        numbers={
            "warmup": n_warmup,
            "divergences": int(found.stats["diverging"].sum()),
            "rhat_max": worst["rhat"][1],
            "ess_bulk_min": worst["ess_bulk"][1],
            "ess_tail_min": worst["ess_tail"][1],
            "bfmi_min": float(bfmi(found.stats["energy"]).min()),
        },
        seconds=found.seconds,
    )


@dataclass(frozen=True)
class _Sampled(infer.Fit):
    """A mode with the sd of draws."""

    spread: Mapping[str, np.ndarray] = field(default_factory=dict)

    def sd(self, name: str) -> np.ndarray:
        return self.spread[name]


def with_spread(fit: infer.Fit, draws: Draws) -> infer.Fit:
    """The mode with the sd of the draws, where the draws are not Laplace's."""
    if draws.of_laplace:
        return fit
    known = {f.name: getattr(fit, f.name) for f in fields(infer.Fit)}
    flat = draws.flat()
    spread = {s.name: np.reshape(flat[s.name].std(0), np.shape(fit.sd(s.name))) for s in fit.sites}
    return _Sampled(**known, spread=spread)


def describe(draws: Draws, sites: tuple[infer.Site, ...]) -> dict[str, Any]:
    """The part of ``summary.json`` about draws, with mean and sd of each shared unknown."""
    chains, each = draws.shape
    shared = {}
    for site in sites:
        if not site.per_image:
            x = np.asarray(draws.values[site.name], float)
            found = {"mean": x.mean((0, 1)), "sd": x.std((0, 1))}
            if chains > 1:
                found |= chain_summary({site.name: x})[site.name]
            shared[site.name] = {name: np.asarray(value).tolist() for name, value in found.items()}
    return {
        "chains": chains,
        "draws": each,
        "converged": draws.converged,
        "message": draws.message,
        **draws.numbers,
        "shared": shared,
    }


def of_batch(run: RunFit, values: Mapping[str, np.ndarray], images: slice) -> dict[str, np.ndarray]:
    """Flat draws of a batch of images, those of the last image repeated in unused places."""
    rows = np.minimum(np.arange(images.start, images.start + run.observed.size), images.stop - 1)
    return {
        s.name: values[s.name][:, rows] if s.per_image else values[s.name] for s in run.fit.sites
    }


def _statistics(run: RunFit):
    """The observations of all images in memory, moved to the device once."""
    return jax.device_put(run.observations)


def _one_chain(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value)[None] for name, value in values.items()}
