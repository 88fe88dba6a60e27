"""What is fitted, and how: stills, reference, reader, model, settings, candidate reflections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import jax.numpy as jnp
import numpy as np

from .. import infer
from ..geometry import predict
from ..geometry.experiments import Still
from ..io.images import ImageReader
from ..measuring.ice_rings import IceRings
from ..measuring.weights import Weights, score_weights
from ..physics import reference
from ..physics.priors import Priors
from ..physics.reference import Reference
from ..util.errors import InputError
from . import crosswise_reference
from .crosswise_reference import CrosswiseReference
from .state import of_one_bandwidth, partiality_width

BATCH = 16  # images in memory at a time; as many as at the start, so that all is compiled once

Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How a run is fitted.

    Attributes:
        d_min: Å. rounds: of predict → measure → fit.
        margin: largest |ε_r| of reflections that are taken, in R0_eff; at 2.4, p = 0.3 %, and no
            spot is visible.
        free_fraction, seed: the free set (``reference.free_set``).
        read_noise: photons rms a pixel.
        weights: ``weights.score_weights`` or ``weights.moment_weights``.
        metadata: whether observations have ``Metadata``, for models that depend on them.
    """

    d_min: float = 2.0
    rounds: int = 3
    margin: float = 2.4
    free_fraction: float = 0.05
    seed: int = 0
    read_noise: float = 0.0
    weights: Weights = score_weights
    metadata: bool = False


@dataclass(frozen=True)
class Run:
    """What is fitted, and how.

    Attributes:
        ref: reference intensities; without a reference, the estimate of all images together.
        candidates: (·, 3) hkl for each still that may come near the sphere.
        crosswise: without a reference, the estimates of each image's intensities by the others.
        ice: rings of the images that were measured so far; pixels on rings are not used.
    """

    stills: tuple[Still, ...]
    ref: Reference
    reader: ImageReader
    model: infer.Model
    settings: Settings
    candidates: tuple[np.ndarray, ...]
    crosswise: CrosswiseReference | None = None
    ice: IceRings = field(default_factory=IceRings)

    def few(self, images: np.ndarray) -> Run:
        """The run with some of its images."""
        return replace(
            self,
            stills=tuple(self.stills[i] for i in images),
            candidates=tuple(self.candidates[i] for i in images),
        )

    @property
    def size(self) -> int:
        """Images that a batch has room for."""
        return min(len(self.stills), BATCH)

    def batches(self) -> list[slice]:
        """The images of each batch."""
        n = len(self.stills)
        return [slice(i, min(i + BATCH, n)) for i in range(0, n, BATCH)]


def prepare_run(
    stills: Sequence[Still],
    ref: Reference | None,
    reader: ImageReader,
    model: infer.Model,
    priors: Priors,
    settings: Settings,
) -> Run:
    """A run to be fitted: its reference, or a first estimate in its place, and its candidates.

    Args:
        ref: None for a run whose images are to be each other's reference.

    Raises:
        InputError: the reference does not fit the crystals, or JAX computes in single precision.
    """
    if jnp.result_type(float) != jnp.float64:
        raise InputError(
            "a fit needs double precision: call jax.config.update('jax_enable_x64', True) first"
        )
    stills, learned = of_one_bandwidth(stills, priors), None
    if ref is None:
        crystal = stills[0].crystal
        d_min = 0.97 * settings.d_min  # the cells of stills differ a little
        learned = crosswise_reference.start(crystal.cell, crystal.space_group, d_min, len(stills))
        ref = learned.reference
    reference.check_fits(ref, [s.crystal for s in stills], "the experiments")
    candidates = _candidates(stills, ref, priors, settings)
    ice = IceRings(settings.read_noise)
    return Run(stills, ref, reader, model, settings, candidates, learned, ice)


def _candidates(stills, ref, priors, settings) -> tuple[np.ndarray, ...]:
    """For each still the reflections that may come near the sphere in any round."""
    cell = stills[0].crystal.cell
    hkl = predict.candidate_indices(cell, ref.space_group, settings.d_min)
    hkl = hkl[ref.lookup(hkl) != 0]  # systematically absent
    width = partiality_width({}, priors)
    far = 3 * settings.margin
    return tuple(
        predict.near_sphere(
            s, hkl, 0.98 * settings.d_min, lambda d, s=s: far * width(d, s.beam)
        ).astype(np.int16)  # a long list for each of many images
        for s in stills
    )
