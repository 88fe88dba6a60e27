"""The contract of a model of stills with the loop, and the table of unknowns known by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from ..util.errors import InputError

PRIOR, MEASURED, FOUND = "prior", "measured", "found on a few images"


class _Site(Protocol):
    """The part of ``infer.Site`` that is needed here; ``infer`` knows no crystallography."""

    @property
    def name(self) -> str: ...
    @property
    def per_image(self) -> bool: ...
    @property
    def size(self) -> int: ...


class Unknown(NamedTuple):
    """An unknown of a model, by the name of its site.

    Attributes:
        name: of the site; tables show exp of a site ``log_x``.
        number: name of one number of the site in tables, with the unit; ``{}`` stands for a label.
        axis: name of the site's last axis; labels: names along that axis, 1, 2, ... for None.
        of_image: True where each image has the unknown, False where the run shares it, None where
            the model may choose.
        size: how many numbers the site has; None where the crystal or the model decides.
        priors: fields of ``Priors`` that make up its prior.
        start: the value at which a fit begins: that of the prior, a measured one, or the one that
            the start of the run found on a few images.
    """

    name: str
    number: str
    axis: str = ""
    labels: tuple[str, ...] | None = None
    of_image: bool | None = None
    size: int | None = 1
    priors: tuple[str, ...] = ()
    start: str = PRIOR

    def numbers(self, size: int) -> list[str]:
        """Names of the unknown's ``size`` numbers in tables."""
        if not self.axis:
            return [self.number] if size == 1 else [f"{self.number}_{k + 1}" for k in range(size)]
        return [self.number.format(k) for k in self.labels or range(1, size + 1)]


_BOTH = "radial", "tangential"
_PLACE = "beam_center_x", "beam_center_y", "distance"
_OF_IMAGE: dict[str, Any] = {"of_image": True}
_SHARED: dict[str, Any] = {"of_image": False, "start": FOUND}
# In the order of the tables; unknowns that are not listed follow under their own names.
_ROWS: tuple[Unknown, ...] = (
    Unknown(
        "log_G",
        "G",
        **_OF_IMAGE,
        priors=("log_G_sd", "log_G_monitor_sd", "frame_log_G_sd", "log_frame_log_G_sd_sd"),
        start=MEASURED,
    ),
    Unknown("B", "B", **_OF_IMAGE, priors=("B_mean", "B_sd", "frame_B_sd")),
    Unknown("log_R1", "R1", **_OF_IMAGE, priors=("R1_px", "log_R1_sd"), start=MEASURED),
    Unknown(
        "rotation_mrad",
        "rot_{}_mrad",
        "axis",
        ("x", "y", "z"),
        **_OF_IMAGE,
        size=3,
        priors=("rotation_sd_mrad",),
    ),
    Unknown(
        "strain",
        "strain_{}",
        "strain_component",
        of_image=True,
        size=None,
        priors=("strain_sd", "frame_strain_sd"),
        start=FOUND,
    ),
    Unknown(
        "log_wavelength",
        "wavelength_angstrom",
        **_OF_IMAGE,
        priors=("wavelength_jitter",),
    ),
    Unknown("log_R0", "R0_inv_angstrom", **_SHARED, priors=("R0_inv_angstrom", "log_R0_sd")),
    Unknown(
        "detector_shift_mm",
        "{}_mm",
        "detector_axis",
        _PLACE,
        **_SHARED,
        size=3,
        priors=("beam_center_sd_mm", "distance_sd_mm"),
    ),
    *(
        Unknown(
            f"panel_{name}",
            f"panel_{{}}_{name}",
            "panel_group",
            of_image=False,
            size=None,
            priors=(prior,),
        )
        for name, prior in (
            ("x_px", "panel_shift_sd_px"),
            ("y_px", "panel_shift_sd_px"),
            ("turn_mrad", "panel_turn_sd_mrad"),
        )
    ),
    Unknown(
        "log_position_error",
        "position_error_{}_inv_angstrom",
        "direction",
        _BOTH,
        **_SHARED,
        size=2,
        priors=("position_error_px", "log_position_error_sd"),
    ),
    Unknown(
        "position_error_fall",
        "position_error_fall_{}_angstrom",
        "direction",
        _BOTH,
        **_SHARED,
        size=2,
        priors=("position_error_fall_sd_angstrom",),
    ),
    # the following have names of their own in tables, in alphabetical order
    Unknown(
        "uneven_blocks",
        "uneven_blocks",
        **_OF_IMAGE,
        size=None,
        priors=("uneven_blocks_sd", "log_uneven_blocks_sd_sd"),
    ),
    Unknown("log_bandwidth", "bandwidth", **_SHARED, priors=("bandwidth", "log_bandwidth_sd")),
    Unknown("log_g", "g", of_image=False, priors=("log_G_sd",)),
    Unknown(
        "log_model_error", "model_error", **_SHARED, priors=("model_error", "log_model_error_sd")
    ),
    Unknown(
        "log_mosaic_image_mrad",
        "mosaic_image_mrad",
        priors=("log_mosaic_image_sd", "frame_log_mosaic_sd"),
    ),
    Unknown(
        "log_mosaic_mrad",
        "mosaic_mrad",
        **_SHARED,
        priors=("mosaic_spread_mrad", "log_mosaic_spread_sd"),
    ),
    Unknown("log_nu", "nu", **_SHARED, priors=("student_t_nu", "log_student_t_nu_sd")),
    Unknown(
        "log_nu_moments", "nu_moments", **_SHARED, priors=("student_t_nu", "log_student_t_nu_sd")
    ),
    Unknown(
        "log_shape_error", "shape_error", **_SHARED, priors=("shape_error", "log_shape_error_sd")
    ),
    Unknown(
        "model_error_fall",
        "model_error_fall",
        **_SHARED,
        priors=("model_error_fall_sd_angstrom",),
    ),
    Unknown(
        "mosaic_shape",
        "mosaic_shape",
        **_OF_IMAGE,
        size=5,
        priors=("mosaic_shape_sd", "log_mosaic_shape_sd_sd", "frame_mosaic_shape_sd"),
    ),
    Unknown("curve_shape", "curve_shape", of_image=True, size=None),
    Unknown(
        "log_G_sweep",
        "G_sweep_{}",
        "sweep_knot",
        of_image=False,
        size=None,
        priors=("log_G_sd", "log_G_change_sd"),
    ),
    Unknown(
        "B_sweep",
        "B_sweep_{}",
        "sweep_knot",
        of_image=False,
        size=None,
        priors=("B_mean", "B_sd", "B_change_sd"),
    ),
    Unknown(
        "strain_sweep",
        "strain_sweep_{}",
        "sweep_strain",
        of_image=False,
        size=None,
        priors=("strain_sd",),
    ),
    Unknown(
        "log_mosaic_sweep",
        "mosaic_sweep_{}",
        "sweep",
        of_image=False,
        size=None,
        priors=("log_mosaic_image_sd",),
    ),
    Unknown(
        "mosaic_shape_sweep",
        "mosaic_shape_sweep_{}",
        "sweep_shape",
        of_image=False,
        size=None,
        priors=("mosaic_shape_sd",),
    ),
    Unknown(
        "speckle_variance",
        "speckle_variance",
        **_SHARED,
        priors=("speckle_variance", "speckle_variance_sd"),
    ),
    Unknown("stretch_diagonal", "stretch_diagonal", **_OF_IMAGE, priors=("stretch_sd",)),
    Unknown("stretch_fast", "stretch_fast", **_OF_IMAGE, priors=("stretch_sd",)),
)
UNKNOWNS = {unknown.name: unknown for unknown in _ROWS}

REQUIRED = {
    "scale": "G·B_term·p, (n, m)",
    "partiality": "p, (n, m)",
    "excitation_error": "ε_r in Å⁻¹, (n, m)",
    "spot_moment": "M11, M22, M12 in Å⁻², (n, 3, m)",
}


def unknown(site: str) -> Unknown:
    """The row of a site; where the table has none, a row of the site's name without ``log_``."""
    return UNKNOWNS.get(site) or Unknown(site, site.removeprefix("log_"))


def order(site: str) -> tuple[int, str]:
    """Key that sorts sites as in the table, and other sites by name after those."""
    names = list(UNKNOWNS)
    return (names.index(site) if site in names else len(names), site)


def check_unknowns(sites: Iterable[_Site]) -> None:
    """Check a model's unknowns against the table: of each image or shared, and of what size.

    Raises:
        InputError: a site of a known name is shared where each image should have one, or the other
            way round, or has another number of components.
    """
    for site in sites:
        row = UNKNOWNS.get(site.name)
        if row is None:
            continue
        if row.of_image is not None and site.per_image != row.of_image:
            where = "in the plate 'image'" if row.of_image else "outside the plate 'image'"
            raise InputError(f"the model's site {site.name!r} must be sampled {where}")
        if row.size is not None and site.size != row.size:
            raise InputError(
                f"the model's site {site.name!r} has {site.size} numbers, not {row.size}; "
                "correct its shape, or give it another name"
            )


def check_deterministic(sites: Iterable[str]) -> None:
    """Check that a model has the deterministic sites that the loop measures with.

    Args:
        sites: names of the model's deterministic sites.

    Raises:
        InputError: one of ``REQUIRED`` is missing.
    """
    known = set(sites)
    missing = [f"{name} ({what})" for name, what in REQUIRED.items() if name not in known]
    if missing:
        raise InputError(
            f"the model has no deterministic site {', '.join(missing)}, which a fit of stills "
            "measures with; add numpyro.deterministic(name, value)"
        )
