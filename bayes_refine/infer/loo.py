"""How well a model predicts data that it was not fitted to: leave-one-out by importance sampling.

With draws θ_s of weights w_s from the posterior of all data, the draws without y_h have weights
v_s ∝ w_s/p(y_h | θ_s), Pareto-smoothed, and

    elpd_h = ln Σ_s v_s p(y_h | θ_s) / Σ_s v_s        (Vehtari, Gelman & Gabry 2017).

By reflection, y_h is all statistics of one shoebox.  By image, an image's own unknowns were fitted
to that image and must not be kept: p(y_i | φ) is the evidence of the image, its unknowns integrated
over their prior, given the shared unknowns φ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..util.kept_programs import kept
from .density import Model, traced
from .diagnostics import psis
from .importance import Nested


@dataclass(frozen=True)
class Loo:
    """Expected log predictive density of N parts of the data, each left out in turn.

    Attributes:
        pointwise: (N,) nats. khat: (N,) Pareto k-hat; above 0.7 a part's number is unreliable.
        effective: effective number of parameters, ln p(y | θ) averaged over θ minus elpd.
    """

    pointwise: np.ndarray
    khat: np.ndarray
    effective: float

    @property
    def elpd(self) -> float:
        """The sum over the parts, nats."""
        return float(self.pointwise.sum())

    @property
    def se(self) -> float:
        """Its standard error, the parts taken as independent."""
        return float(np.sqrt(len(self.pointwise)) * self.pointwise.std(ddof=1))


@dataclass(frozen=True)
class ModelComparison:
    """One model beside the best of several.

    Attributes:
        name: of the model. elpd, effective: as ``Loo``.
        difference: elpd minus the best model's, nats; difference_se: its standard error.
        unreliable: parts with k-hat above 0.7.
    """

    name: str
    elpd: float
    effective: float
    difference: float
    difference_se: float
    unreliable: int


def log_likelihoods(
    model: Model, draws: Mapping[str, np.ndarray], where: np.ndarray, *args: Any
) -> dict[str, np.ndarray]:
    """ln p of each observed site for each draw, by name: (S, N), N places of ``where``.

    Args:
        draws: (S, ...) by site, constrained.
        where: mask in the shape of an observed site, (n, m).
    """

    @kept
    def one(values, args):
        sites = traced(model, values, args).items()
        return {
            name: site["fn"].log_prob(site["value"])
            for name, site in sites
            if site["type"] == "sample" and site["is_observed"]
        }

    rows = [
        {name: np.asarray(value)[where] for name, value in found.items()}
        for found in (
            one({k: v[s] for k, v in draws.items()}, args)
            for s in range(len(next(iter(draws.values()))))
        )
    ]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def leave_out(
    log_likelihood: np.ndarray,
    scored: np.ndarray | None = None,
    log_weights: np.ndarray | float = 0.0,
) -> Loo:
    """Leave each of N parts of the data out in turn.

    Args:
        log_likelihood: (S, N) ln p of all data that are left out with a part, for S draws.
        scored: (S, N) ln p of the data that the prediction of a part is judged by; by default all
            of them.  Models that observe different sites are compared by the sites in common.
        log_weights: (S,) of the draws.
    """
    scored = log_likelihood if scored is None else scored
    base = np.broadcast_to(log_weights, len(log_likelihood))
    smoothed, khat = psis((base[:, None] - log_likelihood).T)
    pointwise = np.logaddexp.reduce(smoothed + scored.T, axis=1)
    base = base - np.logaddexp.reduce(base)
    fitted = np.logaddexp.reduce(base[:, None] + scored, axis=0)
    return Loo(pointwise, khat, float((fitted - pointwise).sum()))


def leave_out_images(nested: Nested) -> Loo:
    """Leave each image out in turn, with its own unknowns integrated over their prior."""
    return leave_out(nested.log_evidence, log_weights=nested.log_weights)


def compare(models: Mapping[str, Loo], groups: np.ndarray | None = None) -> list[ModelComparison]:
    """The models from best to worst, with the standard errors of their differences.

    Args:
        models: by name; of the same parts of the same data.
        groups: (N,) group of each part.  Parts of a group, such as an image's reflections, may be
            predicted badly together, so that the standard error is that of the groups' sums.

    Raises:
        ValueError: different numbers of parts.
    """
    sizes = {len(m.pointwise) for m in models.values()}
    if len(sizes) != 1:
        raise ValueError(f"models of the same data have one number of parts, not {sorted(sizes)}")
    order = sorted(models, key=lambda name: -models[name].elpd)
    best, rows = models[order[0]].pointwise, []
    for name in order:
        change = models[name].pointwise - best
        if groups is not None:
            change = np.bincount(np.unique(groups, return_inverse=True)[1], change)
        rows.append(
            ModelComparison(
                name,
                models[name].elpd,
                models[name].effective,
                float(change.sum()),
                float(np.sqrt(len(change)) * change.std(ddof=1)),
                int((models[name].khat > 0.7).sum()),
            )
        )
    return rows
