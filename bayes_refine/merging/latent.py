"""True intensities from observations with known scales, for both ``fit`` and ``merge``.

:func:`intensity_posteriors` makes posteriors of a ``Measured`` and an ``AmplitudePrior``;
:func:`likelihood_only` makes intensities without a prior of a ``Measured``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..geometry.miller import unique_hkl
from ..physics import true_intensities
from ..physics.true_intensities import Nodes, Posterior
from ..physics.variance_of_J import variance_of_J
from ..util.kept_programs import kept
from ..util.large_arrays import release, room
from .average import Merged, Sums, split_images
from .pieces import in_pieces, joined, of_images, of_observations, rows_of, whole_reflections

# Of 40 reflections with 200 Student-t observations (ν = 3), the worst ln Z is off by 3e-4.
NODES = 48
NEARLY_NORMAL = 1e8  # degrees of freedom that replace infinity


@dataclass(frozen=True)
class Measured:
    """n observations J_i ~ t_ν(g_i·I, s_i²) of m reflections, sorted by reflection.

    s² = variance + per_photon·g·I + (fraction·g·I)².

    Attributes:
        J: (n,) as measured. scale: (n,) g > 0. variance: (n,) at I = 0.
        per_photon: (n,) variance per unit of g·I by counting; 0 where sigmas are a file's.
        fraction: (n,) fractional error of g·I: of the model, and of g itself.
        nu: degrees of freedom, may be infinite.
        code: (n,) int, index of the reflection, ascending. image: (n,) int. weight: (n,) 1 or 0.
        hkl: (m, 3) int32, sorted by H K L.
    """

    J: Array | np.ndarray
    scale: Array | np.ndarray
    variance: Array | np.ndarray
    per_photon: Array | np.ndarray
    fraction: Array | np.ndarray
    nu: float
    code: Array | np.ndarray
    image: Array | np.ndarray
    weight: Array | np.ndarray
    hkl: Array | np.ndarray

    def variance_at(self, expected: np.ndarray) -> np.ndarray:
        """(n,) s² of each observation at its expected I (n,)."""
        polynomial = self.variance, self.per_photon, np.square(self.fraction)
        return variance_of_J(np.asarray(self.scale) * expected, *map(np.asarray, polynomial))


@dataclass(frozen=True)
class AmplitudePrior:
    """Wilson's prior of F, or the double-Wilson prior given a reference.

    Attributes:
        log_mean: (m,) ln ⟨I⟩ by resolution, ln ε·Σ(d). centric: (m,) bool.
        centre: (m,) f, the mean of the complex F given a reference; 0 where no reference informs.
        log_variance: (m,) ln V, V the variance about f; V = ε·Σ(d) where no reference informs.
            Wilson's prior has None for centre and log_variance.
    """

    log_mean: Array | np.ndarray
    centric: Array | np.ndarray
    centre: Array | None = None
    log_variance: Array | None = None

    @property
    def centre_and_variance(self) -> tuple[Array, Array]:
        """f and ln V (m,), of Wilson's prior too."""
        if self.centre is None or self.log_variance is None:
            return jnp.zeros_like(self.log_mean), jnp.asarray(self.log_mean)
        return self.centre, self.log_variance

    @property
    def informed(self) -> np.ndarray:
        """(m,) bool, where a reference informs."""
        return np.asarray(self.centre_and_variance[1] < self.log_mean)

    @property
    def intensity(self) -> np.ndarray:
        """(m,) ⟨I⟩ under the prior, f² + V."""
        f, log_V = self.centre_and_variance
        return np.asarray(f**2 + jnp.exp(log_V))

    @property
    def reach(self) -> Array:
        """(m,) F above which the prior has no mass, seven sd above its centre."""
        f, log_V = self.centre_and_variance
        return f + 7 * jnp.exp(0.5 * log_V)

    def log_density(self, F: Array) -> Array:
        """ln π(F), (m, K)."""
        if self.centre is None or self.log_variance is None:
            return true_intensities.log_wilson(F, self.log_mean, self.centric)
        return true_intensities.log_rice(F, self.centre, self.log_variance, self.centric)


for _cls in (Measured, AmplitudePrior):
    jax.tree_util.register_dataclass(_cls, [f.name for f in fields(_cls)], [])


@dataclass(frozen=True)
class Latent:
    """Posteriors of m reflections; for draws, nodes over F and ln π + ln L (m, K) at the nodes."""

    posterior: Posterior
    nodes: Nodes
    log_integrand: Array | np.ndarray

    def draws(self, n_draws: int, *, seed: int) -> np.ndarray:
        """(n_draws, m) of F; I = F²."""
        key = jax.random.key(seed)
        return np.asarray(_compiled_draws(key, self.log_integrand, self.nodes, n_draws))


def intensity_posteriors(measured: Measured, prior: AmplitudePrior, n_nodes: int = NODES) -> Latent:
    """Posterior of I and F of each reflection by quadrature over F.

    p(F_h | J) ∝ π(F_h)·Π_i t_ν(J_i; g_i F_h², s_i²(F_h)) (docs/theory.md, True intensities).  A
    Student-t is a mixture of normals; the mixture is integrated out exactly, observation by
    observation.
    """
    nu = min(float(measured.nu), NEARLY_NORMAL)
    parts = (
        (rows, _compiled_posteriors(part, rows_of(prior, rows, len(part.hkl)), nu, n_nodes))
        for rows, _, part in in_pieces(measured)
    )
    return Latent(*joined(parts))


def likelihood_at_nodes(
    measured: Measured, prior: AmplitudePrior, n_nodes: int = NODES
) -> tuple[Nodes, Array]:
    """Nodes that cover π·L, and ln L (m, K) at the nodes, of a piece of ``pieces.in_pieces``."""
    nu = jnp.asarray(min(float(measured.nu), NEARLY_NORMAL))
    return _compiled_likelihood(measured, prior, nu, n_nodes)


def _likelihood(measured: Measured, prior: AmplitudePrior, nu, n_nodes: int):
    d = measured
    m = len(d.hkl)

    def log_likelihood(F):
        variance = true_intensities.VarianceOfJ(d.variance, d.fraction, d.per_photon)
        return true_intensities.log_observations(F, d.J, d.scale, variance, nu, d.code, d.weight)

    def total(x):
        return jax.ops.segment_sum(d.weight * x / d.variance, d.code, m, indices_are_sorted=True)

    information = jnp.maximum(total(d.scale**2), 1e-30)
    estimate = total(d.scale * d.J) / information
    upper = true_intensities.upper_amplitude(prior.log_mean, estimate, information**-0.5)
    upper = jnp.maximum(upper, prior.reach)
    nodes = true_intensities.place_nodes(
        lambda F: prior.log_density(F) + log_likelihood(F), upper, n_nodes
    )
    return nodes, log_likelihood(nodes.amplitude)


def _posteriors(measured: Measured, prior: AmplitudePrior, nu, n_nodes: int):
    nodes, log_likelihood = _likelihood(measured, prior, nu, n_nodes)
    values = log_likelihood + prior.log_density(nodes.amplitude)
    return true_intensities.posterior(values, nodes), nodes, values


_compiled_draws = kept(true_intensities.draw_amplitudes, static=("n_draws",))
_compiled_likelihood = kept(_likelihood, static=("n_nodes",))
_compiled_posteriors = kept(_posteriors, static=("n_nodes",))


# -- without a prior ------------------------------------------------------------------------


def likelihood_only(
    measured: Measured,
    prior: AmplitudePrior,
    expected: np.ndarray | Array,
    hkl: np.ndarray | None = None,
    seed: int = 0,
) -> Merged:
    """Merge intensities without a prior (docs/theory.md, True intensities), and random halves.

    The estimate is one step of the Student-t's maximum-likelihood estimator from an expected
    intensity: an observation has the weight w·g²/s² with w = (ν + 1)/(ν + z²), z being the residual
    at the expected intensity (Lange et al. 1989).  Sigma is that of the expected Fisher
    information, except that an outlier counts no more than its weight:

        σ⁻² = Σ min((ν + 1)/(ν + 3), w)·g²/s².

    The intensity of a single observation is J/g whatever was expected, and its pull is then at most
    √(ν + 1).  Halves share the scales.  The weights of each half come from its own posterior:
    weights from all data would pull both halves to the same values and make the halves agree.

    Args:
        prior: for the expected intensities of the halves.
        expected: (m,) intensities ≥ 0 at which variances and residuals are taken.
        hkl: (m, 3) indices to merge under; by default ``measured.hkl``.
        seed: of the random halves of the images.
    """
    code, image = np.asarray(measured.code), np.asarray(measured.image)
    among = np.asarray(measured.hkl if hkl is None else hkl)
    first, of = unique_hkl(among)
    nu = min(float(measured.nu), NEARLY_NORMAL)
    slices = list(whole_reflections(code))
    used = np.zeros(int(image.max()) + 1, bool)
    for rows in slices:
        used[image[rows][np.asarray(measured.weight[rows]) > 0]] = True
    half_of_image = np.zeros(len(used), int)  # an unused image does not change another's half
    half_of_image[used] = split_images(int(used.sum()), seed)

    def merged_at(expected: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Merged:
        """With the expected I of each observation, of (reflection, half of the image)."""
        sums, weight = Sums(len(first)), room(len(code))
        for rows in slices:
            some = of_observations(measured, rows)
            taken, half = np.asarray(some.weight) > 0, half_of_image[some.image]
            I = expected(np.asarray(some.code), half)  # noqa: E741
            variance = some.variance_at(I)
            z2 = (np.asarray(some.J) - some.scale * I) ** 2 / variance
            robust = (nu + 3) / (nu + z2)  # w over its (ν + 1)/(ν + 3)
            variance *= (nu + 3) / (nu + 1) / np.minimum(robust, 1.0)
            columns = (of[some.code], some.J, variance, some.scale, np.maximum(robust, 1.0), half)
            weight[rows][taken] = sums.add(*(np.asarray(x)[taken] for x in columns))
            release(weight)
        return sums.merged(among[first], half_of_image, weight)

    whole = merged_at(lambda code, half: np.asarray(expected)[code])
    halves = np.zeros((len(measured.hkl), 2))
    for k in (0, 1):
        of_half = of_images(measured, half_of_image == k)
        halves[:, k] = intensity_posteriors(of_half, prior).posterior.intensity
    apart = merged_at(lambda code, half: halves[code, half])
    return replace(whole, half_intensity=apart.half_intensity, half_sigma=apart.half_sigma)
