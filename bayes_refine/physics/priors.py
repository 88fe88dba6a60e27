"""Priors: numbers with units in one frozen dataclass, overridable from TOML."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

import jax

from ..loading import load_file
from ..util.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


MAX_BYTES = 1 << 20  # of a file of priors


def number(default: float, low: float, high: float, unit: str = "") -> Any:
    """A field of priors: its default, its range and its unit.

    A value outside the range must be a mistake: the range is what the quantity itself can be (a
    mosaic block of 10 Å to 1 mm, a B of up to 10⁴ Å²).  For the sd of a logarithm the range goes
    from "fixed" to "nothing is known".
    """
    return field(default=default, metadata={"range": (low, high, unit)})


@dataclass(frozen=True)
class Priors:
    """Priors of the models (docs/theory.md, Priors).

    A field ``x`` with a field ``log_x_sd`` is the median of a prior that is normal in ln x.

    Each field states the range of values that :func:`check` lets pass.

        priors = Priors(mosaic_spread_mrad=0.2, student_t_nu=math.inf)

    Attributes:
        R0_inv_angstrom, log_R0_sd: partiality width (reciprocal size of a mosaic block), shared.
        bandwidth, log_bandwidth_sd: rms Δλ/λ, shared; Δd/d within a crystal looks the same.
            ``bandwidth`` is the median where no file states one.
        mosaic_spread_mrad, log_mosaic_spread_sd: η, in the exp(−x²/η²) convention, shared.
        log_mosaic_image_sd: of ln η from crystal to crystal.
        mosaic_shape_sd, log_mosaic_shape_sd_sd: sd of ln of the ratios of η about different axes;
            estimated from the run (``fitting.learned_priors``).
        uneven_blocks_sd, log_uneven_blocks_sd_sd: 1/√(mosaic blocks of a crystal), the sd of the
            coefficients that say how unevenly the blocks are spread; estimated from the run
            (``fitting.few_blocks``); 0: blocks are spread as a normal distribution.
        rotation_sd_mrad: orientation about the indexed one, each axis.
        strain_sd: cell strain about the indexed cell, each allowed component.
        distance_sd_mm, beam_center_sd_mm: detector about its nominal place, shared.
        panel_shift_sd_px, panel_turn_sd_mrad: shift of a panel (or group) along each of its axes,
            and turn about its normal, where a detector has several; 0 px: they stay in place.
        wavelength_jitter: sd of ln λ from shot to shot, the wavelength of each shot then being an
            unknown; 0: λ is as the files state.
        log_G_sd: ln G of an image about the run's first estimate.
        log_G_monitor_sd: ln G of an image about ln g + ln E where the pulse energy E is known.
        B_mean, B_sd: Debye–Waller B relative to the reference's, Å².
        R1_px, log_R1_sd: spot width in pixels (beyond the pixel's own size) and its spread.
        log_G_change_sd, B_change_sd: change of ln G and B (Å²) from knot to knot along a sweep,
            about ten frames: absorption and the illuminated volume change by tens of percent; a
            dose of 1 MGy raises B by about 1 Å².
        frame_log_G_sd, log_frame_log_G_sd_sd: ln G of a frame about the smooth one of its sweep;
            estimated from the run (``fitting.learned_priors``).
        frame_B_sd, frame_strain_sd, frame_log_mosaic_sd, frame_mosaic_shape_sd: B, strain, ln η and
            mosaic shape of a frame about those of its sweep.
        stretch_sd: ln of the ratio of a spot's widths, each of two components (model tensor).
        model_error, log_model_error_sd: fractional error of J_model at d = 4 Å, shared.
        model_error_fall_sd_angstrom: sd about 0 of how fast ln model_error falls with 1/d, Å.
        speckle_variance, speckle_variance_sd: 1/(mosaic blocks in the beam), shared; the fewer
            blocks, the more p varies from spot to spot.  The prior is normal; below zero the tails
            of the curve vary less than model_error says.
        position_error_px, log_position_error_sd: centroid error beyond counting at d = 4 Å,
            radial and tangential, shared.
        position_error_fall_sd_angstrom: sd about 0 of how fast ln of these errors falls with 1/d.
        shape_error, log_shape_error_sd: fractional error of R1² beyond counting, shared.
        student_t_nu, log_student_t_nu_sd: degrees of freedom of the residuals of totals, and of
            moments apart, each shared by the run; infinite for normal residuals.
    """

    R0_inv_angstrom: float = number(5e-4, 1e-7, 0.1, "Å⁻¹")
    log_R0_sd: float = number(0.7, 1e-4, 20)
    bandwidth: float = number(5e-4, 1e-7, 0.5)
    log_bandwidth_sd: float = number(0.5, 1e-4, 20)
    mosaic_spread_mrad: float = number(0.5, 1e-4, 1e3, "mrad")
    log_mosaic_spread_sd: float = number(1.0, 1e-4, 20)
    log_mosaic_image_sd: float = number(0.2, 1e-4, 20)
    mosaic_shape_sd: float = number(0.2, 1e-4, 10)
    log_mosaic_shape_sd_sd: float = number(0.7, 1e-4, 20)
    uneven_blocks_sd: float = number(0.1, 0.0, 10)
    log_uneven_blocks_sd_sd: float = number(1.0, 1e-4, 20)
    rotation_sd_mrad: float = number(3.0, 1e-4, 1e3, "mrad")
    strain_sd: float = number(3e-3, 1e-7, 0.5)
    distance_sd_mm: float = number(0.5, 1e-5, 1e4, "mm")
    beam_center_sd_mm: float = number(0.1, 1e-5, 1e3, "mm")
    panel_shift_sd_px: float = number(0.2, 0.0, 1e3, "px")
    panel_turn_sd_mrad: float = number(0.35, 1e-6, 1e3, "mrad")
    wavelength_jitter: float = number(0.0, 0.0, 0.1)
    log_G_monitor_sd: float = number(0.5, 1e-4, 20)
    log_G_sd: float = number(2.0, 1e-4, 20)
    B_mean: float = number(0.0, -1e3, 1e3, "Å²")
    B_sd: float = number(20.0, 0.001, 1e4, "Å²")
    log_G_change_sd: float = number(0.3, 1e-4, 20)
    B_change_sd: float = number(1.0, 1e-4, 1e4, "Å²")
    frame_log_G_sd: float = number(0.05, 1e-4, 20)
    log_frame_log_G_sd_sd: float = number(1.0, 1e-4, 20)
    frame_B_sd: float = number(0.3, 1e-4, 1e4, "Å²")
    frame_strain_sd: float = number(1e-4, 1e-7, 0.5)
    frame_log_mosaic_sd: float = number(0.03, 1e-4, 20)
    frame_mosaic_shape_sd: float = number(0.03, 1e-4, 10)
    R1_px: float = number(0.8, 0.001, 1e3, "px")
    log_R1_sd: float = number(0.7, 1e-4, 20)
    stretch_sd: float = number(0.3, 1e-4, 10)
    model_error: float = number(0.1, 1e-5, 10)
    log_model_error_sd: float = number(1.0, 1e-4, 20)
    model_error_fall_sd_angstrom: float = number(5.0, 1e-4, 1e3, "Å")
    speckle_variance: float = number(0.02, 0.0, 10)
    speckle_variance_sd: float = number(0.05, 1e-6, 10)
    position_error_px: float = number(0.05, 1e-5, 100, "px")
    log_position_error_sd: float = number(1.0, 1e-4, 20)
    position_error_fall_sd_angstrom: float = number(3.0, 1e-4, 1e3, "Å")
    shape_error: float = number(0.1, 1e-5, 10)
    log_shape_error_sd: float = number(1.0, 1e-4, 20)
    student_t_nu: float = number(6.0, 0.5, math.inf)
    log_student_t_nu_sd: float = number(0.5, 1e-4, 20)


def _register(cls: type[Priors]) -> None:
    """Make priors data of a compiled model, but for ``student_t_nu``: the density's form depends on
    whether it is infinite."""
    names = [f.name for f in fields(cls) if f.name != "student_t_nu"]
    jax.tree_util.register_dataclass(cls, data_fields=names, meta_fields=["student_t_nu"])


_register(Priors)

SomePriors = TypeVar("SomePriors", bound=type[Priors])


@dataclass_transform(frozen_default=True, field_specifiers=(number,))
def declare_priors(cls: SomePriors) -> SomePriors:
    """Decorate a class that adds priors of one's own model to those of ``Priors``.

        @declare_priors
        class Priors(bayes_refine.Priors):
            lorentzian_share_b: float = number(3.0, 0.1, 100.0)

    Raises:
        InputError: the class does not extend ``bayes_refine.Priors``, or a field has no default.
    """
    if not (isinstance(cls, type) and issubclass(cls, Priors)):
        raise InputError("priors of a model extend bayes_refine.Priors: class Priors(br.Priors)")
    try:
        dataclass(frozen=True)(cls)
    except TypeError as error:
        raise InputError(f"priors of a model: {error}; give each field number(...)") from None
    _register(cls)
    return cls


def load_priors(name_or_path: str | Path) -> Priors:
    """The default priors of a model: of the class ``Priors`` of its file, or of the package.

        priors = br.load_priors("my_model.py")
        run = br.fit(prepared, br.load_model("my_model.py"), priors)

    Raises:
        InputError: as of ``load_model``; the file's ``Priors`` was not made by ``declare_priors``.
    """
    declared = getattr(load_file(name_or_path), "Priors", Priors)
    if not (isinstance(declared, type) and issubclass(declared, Priors)):
        return Priors()  # the file is of another kind of model, or has no priors
    if declared.__dict__.get("__dataclass_fields__") is None:
        raise InputError(f"{name_or_path}: write @declare_priors above class Priors")
    return declared()


AnyPriors = TypeVar("AnyPriors", bound="DataclassInstance")


def check(priors: AnyPriors) -> AnyPriors:
    """Return the priors; InputError where one is not a number, or is outside its field's range."""
    for item in fields(priors):
        value = getattr(priors, item.name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            said = repr(value)[:60] if isinstance(value, str | bool | float) else "something else"
            raise InputError(f"prior {item.name} must be a number, not {said}")
        low, high, unit = item.metadata.get("range", (0.0, math.inf, ""))
        if not low <= value <= high:
            limits = f"from {low:g} to {high:g}" if high < math.inf else f"{low:g} or more"
            shown = f"{value:g}" if abs(value) < 1e308 or value == math.inf else "a huge number"
            wanted = f"{limits} {unit}".rstrip()
            raise InputError(f"prior {item.name} must be {wanted}, not {shown}")
    return priors


def read_priors(path: str | Path, defaults: AnyPriors) -> AnyPriors:
    """Priors from a TOML file of ``name = number`` lines; names not given keep their default.

        priors = read_priors("priors.toml", Priors())

    Args:
        defaults: a dataclass of numbers, ``Priors()`` or ``merging.observations.ScalingPriors()``.

    Raises:
        InputError: no such file, not TOML, an unknown name, a value that is no number or
            outside the range of its prior (:func:`number`).
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: not a file; give a TOML file of priors")
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: {path.stat().st_size} bytes are no file of priors")
        values = tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read the priors ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        said = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: not a TOML file ({said}); write lines such as R0_inv_angstrom = 5e-4"
        ) from None
    known = {item.name for item in fields(defaults)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise InputError(
            f"{path}: unknown prior {unknown[0][:60]!r}; known are {', '.join(sorted(known))}"
        )
    try:
        checked = check(replace(defaults, **values))
        return replace(checked, **{name: float(getattr(checked, name)) for name in values})
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
