"""What the loop asks of a model of stills, and what unknowns are called: one table of names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..util.errors import InputError


class Unknown(NamedTuple):
    """An unknown of a model, by the name of its site.

    Attributes:
        name: of the site; tables show exp of a site ``log_x``.
        number: name of one number of the site in tables, with the unit; ``{}`` stands for a label.
        axis: name of the site's last axis; labels: names along that axis, 1, 2, ... for None.
    """

    name: str
    number: str
    axis: str = ""
    labels: tuple[str, ...] | None = None

    def numbers(self, size: int) -> list[str]:
        """Names of the unknown's ``size`` numbers in tables."""
        if not self.axis:
            return [self.number] if size == 1 else [f"{self.number}_{k + 1}" for k in range(size)]
        return [self.number.format(k) for k in self.labels or range(1, size + 1)]


_BOTH = "radial", "tangential"
# In the order of the tables; unknowns that are not listed follow under their own names.
UNKNOWNS = {
    unknown.name: unknown
    for unknown in (
        Unknown("log_G", "G"),
        Unknown("B", "B"),
        Unknown("log_R1", "R1"),
        Unknown("rotation_mrad", "rot_{}_mrad", "axis", ("x", "y", "z")),
        Unknown("strain", "strain_{}", "strain_component"),
        Unknown("log_wavelength", "wavelength_angstrom"),
        Unknown("log_R0", "R0_inv_angstrom"),
        Unknown(
            "detector_shift_mm",
            "{}_mm",
            "detector_axis",
            ("beam_center_x", "beam_center_y", "distance"),
        ),
        *(
            Unknown(f"panel_{name}", f"panel_{{}}_{name}", "panel_group")
            for name in ("x_px", "y_px", "turn_mrad")
        ),
        Unknown("log_position_error", "position_error_{}_inv_angstrom", "direction", _BOTH),
        Unknown("position_error_fall", "position_error_fall_{}_angstrom", "direction", _BOTH),
    )
}

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
