"""A learned component as a value: its module, the run that trained it, and its file.

The file is one line of JSON, then the leaves of the parameters as equinox serialises them, then the
SHA-256 of all bytes before.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from ..fitting.problem import Settings
from ..geometry.experiments import Still
from ..util.errors import InputError
from .curve import Curve
from .factor import Factor, Frame
from .profile import Profile

FORMAT = "bayes_refine component 2"
MAX_BYTES = 1 << 30
SAME = 0.01  # fraction by which pixel size, distance and wavelength may differ


Module = Curve | Factor | Profile


class Family(StrEnum):
    """Which piece of the model a component replaces."""

    partiality = "partiality"
    correction = "correction"
    profile = "profile"


class Setup(msgspec.Struct, frozen=True):
    """Detector, distance and beam with which images were taken.

    Attributes:
        panels: how many. shape: (rows, columns) of a panel. pixel_mm, distance_mm: mm.
        wavelength: Å.
    """

    panels: int
    shape: tuple[int, int]
    pixel_mm: float
    distance_mm: float
    wavelength: float

    @classmethod
    def of(cls, stills: Sequence[Still]) -> Setup:
        """The setup of a run: its first detector, medians of distance and wavelength."""
        detector = stills[0].detector
        return cls(
            detector.n_panels,
            (detector.image_shape[1], detector.image_shape[2]),
            float(detector.pixel_size_mm[0, 0]),
            float(np.median(np.abs(np.sum(detector.origin_mm * detector.normal, axis=1)))),
            float(np.median([still.beam.wavelength for still in stills])),
        )

    def __str__(self) -> str:
        ny, nx = self.shape
        return (
            f"{self.panels} × {nx} × {ny} pixels of {self.pixel_mm:.4g} mm at "
            f"{self.distance_mm:.4g} mm and {self.wavelength:.4g} Å"
        )

    def like(self, other: Setup) -> bool:
        """Whether a component that was trained with one setup serves images of the other."""
        near = all(
            abs(a / b - 1) < SAME
            for a, b in (
                (self.pixel_mm, other.pixel_mm),
                (self.distance_mm, other.distance_mm),
                (self.wavelength, other.wavelength),
            )
        )
        return near and (self.panels, self.shape) == (other.panels, other.shape)


class Evidence(msgspec.Struct, frozen=True):
    """Held-out ln p of the component less that of the plain model.

    Attributes:
        nats: difference of ln p for each image, by a member that was trained without the image.
        epochs: of training.
    """

    nats: tuple[float, ...]
    epochs: int

    @property
    def total(self) -> float:
        """Sum over images, nats."""
        return float(np.sum(self.nats))

    @property
    def se(self) -> float:
        """Standard error of the sum, images taken as independent."""
        return float(np.sqrt(len(self.nats)) * np.std(self.nats, ddof=1))

    @property
    def recommended(self) -> bool:
        """Whether the component predicts better than the plain model by two standard errors."""
        return self.total > 2 * self.se

    def __str__(self) -> str:
        n = len(self.nats)
        said = "" if self.recommended else "; nothing to learn here: the plain model serves as well"
        return (
            f"held-out ln p {self.total / n:+.2f} ± {self.se / n:.2f} nats an image over "
            f"{n} images{said}"
        )


class Origin(msgspec.Struct, frozen=True):
    """The run that trained a component, and the versions of the programs that did."""

    setup: Setup
    n_images: int
    n_reflections: int
    d_min: float
    evidence: Evidence
    versions: dict[str, str]


class _Header(msgspec.Struct, frozen=True):
    format: str
    family: str
    members: int
    frame: tuple[float, ...] | None
    origin: Origin
    nodes: tuple[tuple[int, int], ...] = ()
    core_px: float = 1.0
    draws: int = 0
    own: float = 0.0


@dataclass(frozen=True)
class Component:
    """A learned piece of a model.

    Attributes:
        family: which piece. module: trained on all images.
        members: modules, each trained without some images.  Their spread times ``widen`` is the sd
            of the module from one set of images to another.
        draws: modules drawn from the posterior about ``module``; none for a module with many
            numbers.
    """

    family: Family
    module: Module
    members: tuple[Module, ...]
    origin: Origin
    draws: tuple[Module, ...] = ()

    @property
    def widen(self) -> float:
        """√(t/(K − t)) for K members, each trained on t = K − 2 of K parts of the images.

        The variance of a mean over K independent parts is t/(K − t) times the variance, from subset
        to subset, of means over t of the K parts.
        """
        K = len(self.members)
        return float(np.sqrt((K - 2) / 2))

    def band(self, function: Callable[[Any], jax.Array]) -> tuple[np.ndarray, np.ndarray]:
        """A function of the module, and its sd: the larger of the members' and the draws'.

        The members' spread measures the scatter between images.  Where no image says anything,
        all members agree on the prior's mean; the spread of the draws measures that ignorance.
        """
        value = np.asarray(function(self.module))
        values = np.stack([np.asarray(function(member)) for member in self.members])
        sd = self.widen * values.std(axis=0)
        if self.draws:
            away = np.stack([np.asarray(function(draw)) for draw in self.draws]) - value
            sd = np.maximum(sd, np.sqrt(np.mean(away**2, axis=0)))
        return value, sd

    def check_serves(self, stills: Sequence[Still], path: str | Path = "the component") -> None:
        """Check that a run was taken with the setup of the images that trained the component.

        Raises:
            InputError: detector, distance or wavelength differ.
        """
        here, there = Setup.of(stills), self.origin.setup
        if not here.like(there):
            raise InputError(
                f"{path}: was trained on {there}, and these images are {here}; train a component "
                "on them, or leave --component out"
            )

    def shown(self) -> dict[str, Any]:
        """The plain numbers of the component that a summary and a report show."""
        evidence = self.origin.evidence
        found: dict[str, Any] = {
            "family": str(self.family),
            "trained_on": msgspec.to_builtins(self.origin),
            "nats_an_image": evidence.total / len(evidence.nats),
            "nats_an_image_se": evidence.se / len(evidence.nats),
            "recommended": evidence.recommended,
        }
        if isinstance(self.module, Curve):
            x = np.linspace(-4.0, 4.0, 161)
            value, sd = self.band(lambda m: m.shape(jnp.asarray(x)))
            found["own"] = self.module.own
            arrays = {"x": x, "log_curve": value, "log_curve_sd": sd}
            return found | {name: a.tolist() for name, a in arrays.items()}
        if isinstance(self.module, Profile):
            return found | self._shown_profile(self.module)
        frame = self.module.frame
        side = np.linspace(-1.0, 1.0, 41) * frame.half_mm
        x_mm, y_mm = np.meshgrid(frame.x_mm + side, frame.y_mm + side)
        d_star = np.sqrt(frame.norm_q2 / 2)
        value, sd = self.band(lambda m: m.log_factor(x_mm, y_mm, d_star, 0.5))
        arrays = {"x_mm": frame.x_mm + side, "y_mm": frame.y_mm + side}
        arrays |= {"log_factor": value, "log_factor_sd": sd}
        return found | {name: a.tolist() for name, a in arrays.items()}

    def _shown_profile(self, module: Profile) -> dict[str, Any]:
        """Cuts through the profile in the middle of the detector, and maps at nine places."""
        frame, sd = module.frame, module.core_px
        reach = float(np.max(np.abs(module.nodes))) + 2 * sd
        r = np.linspace(-reach, reach, 61)

        def cut(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return self.band(lambda m: m.density(x, y, frame.x_mm, frame.y_mm))

        xx, yy, _ = module.moments_px2() + sd**2 * np.array([1.0, 1.0, 0.0])
        gaussian = np.exp(-0.5 * r**2 / np.array([[xx], [yy]])) / (2 * np.pi * np.sqrt(xx * yy))
        cuts = cut(r, 0 * r), cut(0 * r, r)
        side = np.linspace(-0.8, 0.8, 3) * frame.half_mm
        grid = np.meshgrid(np.linspace(-reach, reach, 31), np.linspace(-reach, reach, 31))
        maps = [
            [np.asarray(module.density(*grid, frame.x_mm + x, frame.y_mm + y)) for x in side]
            for y in side
        ]
        arrays = {"r_px": r, "gaussian": gaussian, "maps": np.array(maps)}
        arrays["cuts"], arrays["cuts_sd"] = (np.stack(x) for x in zip(*cuts, strict=True))
        return {"core_px": sd} | {name: a.tolist() for name, a in arrays.items()}


def write_component(path: str | Path, component: Component) -> None:
    """Write a component.

    Raises:
        InputError: the file cannot be written.
    """
    module = component.module
    header = _Header(
        FORMAT,
        str(component.family),
        len(component.members),
        None if isinstance(module, Curve) else tuple(module.frame),
        component.origin,
        *((module.nodes, module.core_px) if isinstance(module, Profile) else ((), 1.0)),
        len(component.draws),
        module.own if isinstance(module, Curve) else 0.0,
    )
    content = io.BytesIO(msgspec.json.encode(header) + b"\n")
    content.seek(0, io.SEEK_END)
    eqx.tree_serialise_leaves(content, (module, component.members, component.draws))
    try:
        Path(path).write_bytes(content.getvalue() + hashlib.sha256(content.getvalue()).digest())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


def read_component(path: str | Path) -> Component:
    """Read a component.

    Raises:
        InputError: the file is no component, has another format, or is damaged.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES)
        if FORMAT.encode() not in content[:100]:
            raise InputError(
                f"{path}: not a learned component; give a file that `bayes-refine train` wrote"
            )
        if hashlib.sha256(content[:-32]).digest() != content[-32:]:
            raise ValueError("its checksum is that of another content")
        leaves = io.BytesIO(content)
        header = msgspec.json.decode(leaves.readline(), type=_Header)
        family = Family(header.family)
        like = _skeleton(family, header)
        trees = like, (like,) * header.members, (like,) * header.draws
        module, members, draws = eqx.tree_deserialise_leaves(leaves, trees)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except InputError:
        raise
    except Exception as error:  # a damaged file can raise anything while its leaves are read
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: is damaged ({said}); train the component again") from None
    return Component(family, module, members, header.origin, draws)


def _skeleton(family: Family, header: _Header) -> Module:
    key = jax.random.key(0)
    if family is Family.partiality:
        return Curve.start(key, header.own)
    frame = Frame(*(header.frame or ()))
    if family is Family.profile:
        return Profile.start(key, header.nodes, header.core_px, frame)
    return Factor.start(key, frame)


def with_components(model: Callable[..., None], components: Sequence[Component]):
    """The model with each component in place of the piece that the component replaces.

    Raises:
        InputError: two components are of one family.
    """
    families = [c.family for c in components]
    for family in families:
        if families.count(family) > 1:
            raise InputError(f"two components of the family {family}; give one of them")
    pieces: dict[str, Any] = {}
    for component in components:
        pieces |= component.module.pieces()
    return partial(model, **pieces) if pieces else model


def settings_with(settings: Settings, components: Iterable[Component]) -> Settings:
    """Settings of a fit with components: the margin that a learned curve needs, its point spread,
    and metadata where a component depends on them."""
    for component in components:
        module = component.module
        if isinstance(module, Curve):
            settings = replace(settings, margin=max(settings.margin, module.reach()))
        if isinstance(module, Profile):
            settings = replace(settings, point_spread=module)
        settings = replace(settings, metadata=settings.metadata or module.needs_metadata)
    return settings
