"""Priors: numbers with units in one frozen dataclass, overridable from TOML."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import jax

from ..util.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class Priors:
    """Priors of the models (SPEC section 5).  ``log`` priors: normal in ln, median given.

    Attributes:
        R0_inv_angstrom, log_R0_sd: partiality width (reciprocal size of a mosaic block), shared.
        bandwidth, log_bandwidth_sd: rms Δλ/λ, and Δd/d within a crystal, which looks the same;
            shared; ``bandwidth`` is the median where nothing states one.
        mosaic_spread_mrad, log_mosaic_spread_sd: η, in the exp(−x²/η²) convention, shared.
        log_mosaic_image_sd: of ln η from crystal to crystal.
        mosaic_shape_sd: of what tells η about one axis from η about another, ln of ratios.
        rotation_sd_mrad: orientation about the indexed one, each axis.
        strain_sd: cell strain about the indexed cell, each allowed component.
        distance_sd_mm, beam_center_sd_mm: detector about its nominal place, shared.
        log_G_sd: ln G of an image about the run's first estimate.
        B_mean, B_sd: Debye–Waller B relative to the reference's, Å².
        R1_px, log_R1_sd: spot width in pixels (beyond the pixel's own size) and its spread.
        stretch_sd: ln of the ratio of a spot's widths, each of two components (model tensor).
        model_error, log_model_error_sd: fractional error of J_model at d = 4 Å, shared.
        model_error_fall_sd_angstrom: how fast ln of it falls with 1/d, about not at all, Å.
        speckle, speckle_sd: 1/√(mosaic blocks that share the beam), the fewer the more uneven p
            is, shared; normal, cut at zero.
        position_error_px, log_position_error_sd: centroid error beyond counting at d = 4 Å,
            radial and tangential, shared; position_error_fall_sd_angstrom: of ln of them with 1/d.
        shape_error, log_shape_error_sd: fractional error of R1² beyond counting, shared.
        student_t_nu, log_student_t_nu_sd: degrees of freedom of the residuals, shared by
            intensities and by moments; infinite for normal ones.
    """

    R0_inv_angstrom: float = 5e-4
    log_R0_sd: float = 0.7
    bandwidth: float = 5e-4
    log_bandwidth_sd: float = 0.5
    mosaic_spread_mrad: float = 0.5
    log_mosaic_spread_sd: float = 1.0
    log_mosaic_image_sd: float = 0.2
    mosaic_shape_sd: float = 0.2
    rotation_sd_mrad: float = 3.0
    strain_sd: float = 3e-3
    distance_sd_mm: float = 0.5
    beam_center_sd_mm: float = 0.1
    log_G_sd: float = 2.0
    B_mean: float = 0.0
    B_sd: float = 20.0
    R1_px: float = 0.8
    log_R1_sd: float = 0.7
    stretch_sd: float = 0.3
    model_error: float = 0.1
    log_model_error_sd: float = 1.0
    model_error_fall_sd_angstrom: float = 5.0
    speckle: float = 0.1
    speckle_sd: float = 0.2
    position_error_px: float = 0.05
    log_position_error_sd: float = 1.0
    position_error_fall_sd_angstrom: float = 3.0
    shape_error: float = 0.1
    log_shape_error_sd: float = 1.0
    student_t_nu: float = 6.0
    log_student_t_nu_sd: float = 0.5


# Numbers are data to a compiled model; only what changes the form of a density is not.
jax.tree_util.register_dataclass(
    Priors,
    data_fields=[f.name for f in fields(Priors) if f.name != "student_t_nu"],
    meta_fields=["student_t_nu"],
)


AnyPriors = TypeVar("AnyPriors", bound="DataclassInstance")


def check(priors: AnyPriors) -> AnyPriors:
    """The same priors; InputError where one is no number, or not positive (B_mean may be)."""
    for name, value in asdict(priors).items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise InputError(f"prior {name} must be a number, not {value!r}")
        if name != "B_mean" and value <= 0:
            raise InputError(f"prior {name} must be positive, not {value!r}")
    return priors


def read_priors(path: str | Path, defaults: AnyPriors) -> AnyPriors:
    """Priors from a TOML file of ``name = number`` lines; names not given keep their default.

    Args:
        defaults: a dataclass of numbers, ``Priors()`` or ``merging.observations.ScalingPriors()``.

    Raises:
        InputError: no such file, not TOML, an unknown name or a value that is no number.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot read the priors ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: not a TOML file ({error}); write lines such as R0_inv_angstrom = 5e-4"
        ) from None
    known = {field.name for field in fields(defaults)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise InputError(
            f"{path}: unknown prior {unknown[0]!r}; known are {', '.join(sorted(known))}"
        )
    try:
        return check(replace(defaults, **values))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
