"""A learned correction: a factor on G·B_term·p by place on the detector, resolution and shot.

    ln f = s·MLP(x, y, 1/d², order, ln E) − offset − slope/(4d²),

each input scaled to −1…1; ln E, the logarithm of the shot's pulse energy, is 0 where the energy is
unknown.  G already describes a factor that all spots share, and B one that falls as exp(−b/(4d²)).
Offset and slope therefore make mean and slope (against 1/(4d²)) of ln f zero over the reflections
that trained it, so that G and B keep their meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..physics import Metadata, SpotStatistics
from ..util.errors import InputError

LAYERS = (5, 16, 16, 1)  # numbers in each layer
SCALE = 0.5  # s: prior sd of ln f, about


class Frame(NamedTuple):
    """Numbers that scale the inputs: middle and half size of the detector, mm; largest 1/d², Å⁻²;
    largest |ln E| about the run's median, 0 for a run without pulse energies."""

    x_mm: float
    y_mm: float
    half_mm: float
    norm_q2: float
    log_energy: float = 0.0


class Factor(eqx.Module):
    """ln f as a small network.

    Attributes:
        layers: of the network. offset, slope: set after training (:meth:`pinned`), not trained.
        frame: scales of the inputs.
    """

    layers: tuple[eqx.nn.Linear, ...]
    offset: jax.Array
    slope: jax.Array
    frame: Frame = eqx.field(static=True)

    needs_metadata: ClassVar[bool] = True
    rate: ClassVar[float] = 0.015  # of Adam

    def log_factor(self, x_mm, y_mm, norm_q, order, log_energy=None) -> jax.Array:
        """ln f, its arguments broadcast together.

        Args:
            x_mm, y_mm: places, mm. norm_q: 1/d, Å⁻¹. order: of the image in its run, 0 to 1.
            log_energy: ln of the pulse energy over the run's median; None or NaN where unknown.
        """
        frame, energy = self.frame, jnp.zeros(())
        if log_energy is not None and frame.log_energy > 0:
            known = jnp.where(jnp.isfinite(log_energy), log_energy, 0.0)
            energy = jnp.clip(known / frame.log_energy, -1.0, 1.0)
        inputs = (
            (x_mm - frame.x_mm) / frame.half_mm,
            (y_mm - frame.y_mm) / frame.half_mm,
            2 * norm_q**2 / frame.norm_q2 - 1,
            2 * order - 1,
            energy,
        )
        value = jnp.stack(jnp.broadcast_arrays(*inputs), axis=-1)
        for k, layer in enumerate(self.layers):
            assert layer.bias is not None
            value = value @ layer.weight.T + layer.bias
            value = jnp.tanh(value) if k + 1 < len(self.layers) else value
        gauge = jax.lax.stop_gradient(self.offset + self.slope * norm_q**2 / 4)
        return SCALE * value[..., 0] - gauge

    def __call__(self, obs: SpotStatistics, scale: jax.Array) -> jax.Array:
        """The scale (n, m) times f.

        Raises:
            InputError: the observations lack ``metadata``, the places of reflections.
        """
        if (where := obs.metadata) is None:
            raise InputError("a learned correction needs Settings(metadata=True)")
        return scale * jnp.exp(self._of(obs, where))

    def _of(self, obs: SpotStatistics, where: Metadata) -> jax.Array:
        shot = obs.norm_q, where.order, obs.log_pulse_energy
        return self.log_factor(where.x_mm, where.y_mm, *shot)

    def pieces(self) -> dict[str, Callable[..., Any]]:
        """The arguments of a model that this component replaces."""
        return {"correction": self}

    def log_prior(self) -> jax.Array:
        """ln p of weights and biases, up to a constant; Var[weight] is 1/(inputs of its layer)."""
        total = jnp.zeros(())
        for layer in self.layers:
            assert layer.bias is not None
            total += layer.weight.shape[1] * jnp.sum(layer.weight**2) + jnp.sum(layer.bias**2)
        return -0.5 * total

    def plain(self) -> Factor:
        """The module of f = 1, which is the plain model."""
        return jax.tree.map(jnp.zeros_like, self)

    @classmethod
    def start(cls, key: jax.Array, frame: Frame) -> Factor:
        """A module to begin training with: hidden layers drawn from their prior, f = 1."""
        layers = []
        pairs = list(pairwise(LAYERS))
        for k, (n_in, n_out) in enumerate(pairs):
            key, own = jax.random.split(key)
            layer = eqx.nn.Linear(n_in, n_out, key=own)
            scale = (k + 1 < len(pairs)) / np.sqrt(n_in)
            weight = scale * jax.random.normal(own, layer.weight.shape)
            fresh = (weight, jnp.zeros(n_out))
            layers.append(eqx.tree_at(lambda x: (x.weight, x.bias), layer, fresh))
        return cls(tuple(layers), jnp.zeros(()), jnp.zeros(()), frame)

    def pinned(self, observed: SpotStatistics) -> Factor:
        """The factor with offset and slope such that, over the reflections that informed a fit,
        ln f has neither mean nor slope against 1/(4d²)."""
        where, fit = observed.metadata, np.asarray(observed.fit)
        assert where is not None
        value = self._of(observed, where)
        quarter = np.asarray(observed.norm_q)[fit] ** 2 / 4
        slope, offset = np.polyfit(quarter, np.asarray(value)[fit], 1)
        return eqx.tree_at(
            lambda f: (f.offset, f.slope), self, (self.offset + offset, self.slope + slope)
        )
