"""The problem of a fit: stills, reference, reader, model, settings, candidate reflections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import infer
from ..geometry import predict
from ..geometry.experiments import Still
from ..infer.executor import IN_PROCESS, Executor
from ..infer.summary import Summary
from ..io.protocols import Images
from ..measuring.ice_rings import IceRings
from ..measuring.point_spread import PointSpread
from ..measuring.weights import Weights, score_weights
from ..physics import reference
from ..physics.priors import Priors
from ..physics.reference import Reference
from ..util.errors import InputError
from ..util.output import digest
from ..util.store import Store
from . import crosswise_reference
from .beams import of_one_cell
from .crosswise_reference import CrosswiseReference
from .state import Width, of_one_bandwidth, partiality_width
from .sweeps import in_sweeps

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

BATCH = 16  # images of a batch, and of the start of a run
# images of a batch in runs of four or more of such batches, and its reflections at most: of few
# reflections a call of a program costs 2 ms of its own, those of many do not stay in the cache
LARGER = {256: 4_096, 128: 4_096, 64: 16_384, 32: 16_384}
ON_A_CARD = (512, *LARGER)  # images of a batch on a GPU, all of them at a time
SLOT_BYTES = 2**16  # of a card's memory: twice what the largest program asks for a reflection
LOOKED_AT = 16  # stills whose reflections are counted
IMAGE_BYTES = 36  # a pixel, while an image is unpacked, searched for rings and cut
FAR = 3.0  # |ε_r| of candidates over that of reflections that are used
KEPT_CANDIDATES = 8192  # images whose candidates are kept, 100 MB


@dataclass(frozen=True)
class Settings:
    """How a run is fitted.

    Attributes:
        d_min: Å. rounds: of predict → measure → fit.
        margin: largest |ε_r| of reflections that are used, in R0_eff; at 2.4, p is 0.3 % and no
            spot is visible.
        free_fraction, seed: the free set (``reference.free_set``).
        read_noise: photons rms a pixel.
        weights: ``weights.score_weights`` or ``weights.moment_weights``.
        metadata: whether observations have ``Metadata``, for models that depend on them.
        point_spread: of spots over pixels beside them; None for Gaussian spots.
        sweeps: whether frames of one crystal share unknowns (``sweeps``); no image can be added to
            such a fit.
    """

    d_min: float = 2.0
    rounds: int = 3
    margin: float = 2.4
    free_fraction: float = 0.05
    seed: int = 0
    read_noise: float = 0.0
    weights: Weights = score_weights
    metadata: bool = False
    point_spread: PointSpread | None = None
    sweeps: bool = True

    def shown(self) -> dict[str, Any]:
        """The settings as plain numbers and words; of a point spread the SHA-256."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        found["weights"] = getattr(self.weights, "__name__", "")
        if (spread := found.pop("point_spread")) is not None:
            leaves = [np.asarray(x) for x in jax.tree.leaves(spread)]
            found["point_spread"] = digest(spread.nodes, leaves)
        return found


@dataclass(frozen=True)
class Work:
    """Where the work of a fit is done.

    Attributes:
        executor: does the work on batches. folder: of the statistics; None for a temporary one.
        made_of: inputs, options and versions that the fit depends on.
        checkpoint: saves the state after each round but the last; a fit begins at the saved state
            if there is one.
    """

    executor: Executor = IN_PROCESS
    folder: Path | None = None
    made_of: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None

    def store(self, name: str, size: int, made_of: Mapping[str, str]) -> Store:
        """A store of ``size`` objects in the folder for ``made_of``, which an earlier process may
        have filled.
        """
        if self.folder is None:
            return Store(size, None, made_of)
        key = digest(made_of, self.made_of)
        return Store(size, self.folder / f"{name}-{key[:16]}", {**made_of, "sha256": key})


class Candidates:
    """For a still the (·, 3) hkl that may come near the sphere in any round.

    Args:
        hkl: (m, 3) of all orientations, but for those that are systematically absent.
        d_min: Å. width: ``state.partiality_width`` before anything is known. margin: |ε_r| of
            reflections that are taken, in R0_eff.
    """

    def __init__(self, hkl: np.ndarray, d_min: float, width: Width, margin: float) -> None:
        self._hkl, self._d_min, self._width, self._far = hkl, d_min, width, FAR * margin
        self._found: dict[bytes, np.ndarray] = {}

    def of(self, still: Still) -> np.ndarray:
        """(·, 3) int16 hkl of a still as indexed; of the last few thousand they are kept."""
        key = still.crystal.A.tobytes()
        found = self._found.get(key)
        if found is None:
            far = lambda d: self._far * self._width(d, still.beam)  # noqa: E731
            found = predict.near_sphere(still, self._hkl, 0.98 * self._d_min, far)
            found = self._found[key] = found.astype(np.int16)
            if len(self._found) > KEPT_CANDIDATES:
                self._found.pop(next(iter(self._found)))
        return found

    def number_on(self, still: Still) -> float:
        """About how many of a still's reflections are near enough to the sphere to be used."""
        return len(self.of(still)) / FAR

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_found": {}}


@dataclass(frozen=True)
class Run:
    """The problem of a fit.

    Attributes:
        ref: reference intensities; without a reference, the estimate of all images together.
        candidates: (·, 3) hkl of each still that may come near the sphere.
        crosswise: without a reference, the estimates of each image's intensities by the others.
        ice: rings of the images that were measured so far; pixels on rings are not used.
        work: who works on batches, and where their statistics are.
        size: images that a batch has room for.
        panel_groups: number of groups of panels that move; 0 if panels are held in place.
        monitored: whether the pulse energy of any shot is known.
        earlier: what other images say of the shared unknowns; None where there are none.
    """

    stills: tuple[Still, ...]
    ref: Reference
    reader: Images
    model: infer.Model
    settings: Settings
    candidates: Candidates
    crosswise: CrosswiseReference | None = None
    ice: IceRings = field(default_factory=IceRings)
    work: Work = field(default_factory=Work)
    size: int = BATCH
    panel_groups: int = 0
    monitored: bool = False
    earlier: Summary | None = None

    def few(self, images: np.ndarray) -> Run:
        """The run with some of its images, in batches of the same size."""
        learned = self.crosswise
        if learned is not None:
            learned = replace(learned, fold=learned.fold[images])
        stills = tuple(self.stills[i] for i in images)
        return replace(self, stills=stills, crosswise=learned)

    def batches(self) -> list[slice]:
        """The images of each batch."""
        n = len(self.stills)
        return [slice(i, min(i + self.size, n)) for i in range(0, n, self.size)]


def prepare_run(
    stills: Sequence[Still],
    ref: Reference | None,
    reader: Images,
    model: infer.Model,
    priors: Priors,
    settings: Settings,
    work: Work | None = None,
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
    if priors.wavelength_jitter > 0:
        stills = of_one_cell(stills)
    if settings.sweeps:
        stills = in_sweeps(stills)
    if settings.metadata:
        n = len(stills)
        stills = tuple(replace(still, order=(i + 0.5) / n) for i, still in enumerate(stills))
    if ref is None:
        crystal = stills[0].crystal
        d_min = 0.97 * settings.d_min  # the cells of stills differ a little
        learned = crosswise_reference.start(crystal.cell, crystal.space_group, d_min, len(stills))
        ref = learned.reference
    reference.check_fits(ref, [s.crystal for s in stills], "the experiments")
    candidates = _candidates(stills, ref, priors, settings)
    ice, panels = IceRings(settings.read_noise), _moving_groups(stills, priors)
    known = bool(np.isfinite([still.log_pulse_energy for still in stills]).any())
    what = (stills, ref, reader, model, settings, candidates, learned, ice, work or Work())
    size = batch_size(stills, candidates)
    return Run(*what, size=size, panel_groups=panels, monitored=known)


def batch_size(stills: Sequence[Still], candidates: Candidates) -> int:
    """Images of a batch: so many that its programs have enough to do, in little memory."""
    n = len(stills)
    some = [stills[i] for i in np.linspace(0, n - 1, min(n, LOOKED_AT)).astype(int)]
    reflections = max(candidates.number_on(still) for still in some)
    larger, batches = LARGER, 4
    if jax.default_backend() != "cpu":
        memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
        slots = max(*LARGER.values(), memory // SLOT_BYTES)
        larger, batches = dict.fromkeys(ON_A_CARD, slots), 1
    fits = (k for k, most in larger.items() if n >= batches * k and k * reflections <= most)
    return next(fits, min(n, BATCH))


def _moving_groups(stills: Sequence[Still], priors: Priors) -> int:
    """How many groups of panels move: all of a detector that has several, and the same on all
    images."""
    detectors = {id(s.detector): s.detector for s in stills}
    groups = {tuple(detector.group) for detector in detectors.values()}
    count = max(groups.pop()) + 1
    return 0 if groups or priors.panel_shift_sd_px == 0 or count == 1 else count


def _candidates(stills, ref, priors, settings) -> Candidates:
    hkl = predict.candidate_indices(stills[0].crystal.cell, ref.space_group, settings.d_min)
    hkl = hkl[ref.lookup(hkl) != 0]  # systematically absent
    return Candidates(hkl, settings.d_min, partiality_width({}, priors), settings.margin)
