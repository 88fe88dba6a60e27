"""Scales that vary along a run, found together with the true intensities, which are integrated out.

Where neighbouring frames see the same reflections and no reference says what these are, a slow
change of scale along the frames looks like a change of intensities.  Scales that are fitted to the
present intensities, and intensities merged at the present scales, then hold each other in place.
Here ln g_i moves by a_i·x, and x maximises

    Π_h ∫ π(I) Π_i p(J_i | g_i exp(a_i·x) I) dI · N(x; mean, sd²),

whose curvature also says how well the change is known (docs/theory.md, Sweeps).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..physics import true_intensities
from ..util.kept_programs import kept
from .latent import NEARLY_NORMAL, AmplitudePrior, Measured, likelihood_at_nodes
from .pieces import in_pieces, padded, rows_of

PASSES, STILL = 20, 0.01  # most Newton steps; converged if the step is shorter, in posterior sd
REACH = 0.5  # longest step in ln g up to which the nodes of the quadrature are good


class Moved(NamedTuple):
    """x (r,) at the mode, and its covariance (r, r) there."""

    x: np.ndarray
    covariance: np.ndarray


def joint_scales(
    measured: Measured,
    prior: AmplitudePrior,
    design: np.ndarray,
    mean: np.ndarray,
    sd: np.ndarray,
) -> Moved:
    """The most probable change of scales, with the intensities integrated out.

    Args:
        measured: observations of which ν may be finite. prior: of their amplitudes.
        design: (n, r) a_i, in the order of the observations. mean, sd: (r,) of the prior of x.
    """
    x, precision = np.zeros(len(mean)), np.diag(sd**-2.0)
    hessian = precision
    for _ in range(PASSES):
        at = list(_at_nodes(measured, prior, design, x))
        found = [[np.asarray(part) for part in _derivatives(x, *here)] for here in at]
        log_z, slope, curvature = (np.sum(part, axis=0) for part in zip(*found, strict=True))
        value = _of_prior(x, mean, precision) - log_z
        slope = precision @ (x - mean) - slope
        # in units of the prior's sd no direction is known less than a priori
        size, axes = np.linalg.eigh(np.eye(len(x)) - sd[:, None] * curvature * sd)
        size = np.maximum(size, 1.0)
        hessian = (axes * size) @ axes.T / np.outer(sd, sd)
        step = -np.linalg.solve(hessian, slope)
        step *= min(1.0, REACH / max(np.abs(design @ step).max(initial=0.0), 1e-30))
        far = float(np.sqrt(step @ hessian @ step))
        while far > STILL and _cost(x + step, at, mean, precision) > value:
            step, far = step / 2, far / 2
        x = x + step
        if far < STILL:
            break
    return Moved(x, np.linalg.inv(hessian))


def _of_prior(x: np.ndarray, mean: np.ndarray, precision: np.ndarray) -> float:
    return float(0.5 * (x - mean) @ precision @ (x - mean))


def _cost(x, at, mean, precision) -> float:
    """−ln p of x, from the nodes of another x."""
    return _of_prior(x, mean, precision) - sum(float(_log_evidence(x, *here)) for here in at)


def _at_nodes(measured: Measured, prior: AmplitudePrior, design, x) -> Iterator[tuple]:
    """The pieces of the observations, with nodes that are good near x."""
    for rows, inside, part in in_pieces(measured):
        a = padded(design[inside], len(part.J))
        of_piece = rows_of(prior, rows, len(part.hkl))
        moved = replace(part, scale=np.asarray(part.scale) * np.exp(a @ x))
        nodes, _ = likelihood_at_nodes(moved, of_piece)
        yield part, of_piece, a, nodes, min(float(part.nu), NEARLY_NORMAL)


def _evidence(x, measured: Measured, prior: AmplitudePrior, design, nodes, nu) -> Array:
    d, F = measured, nodes.amplitude
    variance = true_intensities.VarianceOfJ(
        *map(jnp.asarray, (d.variance, d.fraction, d.per_photon))
    )
    scale = d.scale * jnp.exp(design @ x)
    observed = true_intensities.log_observations(F, d.J, scale, variance, nu, d.code, d.weight)
    return true_intensities.log_evidence(observed + prior.log_density(F), nodes).sum()


def _value_and_slopes(function: Callable[..., Array]) -> Callable[..., tuple[Array, Array, Array]]:
    def found(x, *rest):
        value, slope = jax.value_and_grad(function)(x, *rest)
        return value, slope, jax.hessian(function)(x, *rest)

    return found


_log_evidence = kept(_evidence)
_derivatives = kept(_value_and_slopes(_evidence))
