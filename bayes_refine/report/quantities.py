"""Names and display units of the numbers of a run."""

from __future__ import annotations

from typing import NamedTuple


class Quantity(NamedTuple):
    """A label, the factor from the stored to the shown number, and the unit shown."""

    label: str
    factor: float = 1.0
    unit: str = ""

    @property
    def axis(self) -> str:
        """The label of an axis."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


_KNOWN = {
    "n_reflections": Quantity("reflections"),
    "cc_model": Quantity("CC(J, J_model)"),
    "pull_rms": Quantity("rms residual", 1, "σ"),
    "G": Quantity("scale G", 1, "photons per unit I"),
    "B": Quantity("Debye–Waller B", 1, "Å²"),
    "R1": Quantity("spot width R1", 1e3, "10⁻³ Å⁻¹"),
    "R0": Quantity("partiality width R0", 1e4, "10⁻⁴ Å⁻¹"),
    "R0_inv_angstrom": Quantity("partiality width R0", 1e4, "10⁻⁴ Å⁻¹"),
    "mosaic_mrad": Quantity("mosaic spread η", 1, "mrad"),
    "mosaic_image_mrad": Quantity("mosaic spread η", 1, "mrad"),
    "model_error": Quantity("model error of J", 100, "%"),
    "model_error_fall": Quantity("fall of the model error with 1/d", 1, "Å"),
    "nu": Quantity("degrees of freedom ν, of J"),
    "nu_moments": Quantity("degrees of freedom ν, moments"),
    "speckle_variance": Quantity("speckle of p, 1/(mosaic blocks)"),
    "dispersion_angstrom": Quantity("dispersion bλ/√2", 1e3, "10⁻³ Å"),
    "student_t_nu": Quantity("degrees of freedom ν"),
    "sigma_factor": Quantity("factor of the file's σ"),
    "reference_log_k": Quantity("ln k of the reference's F"),
    "reference_B": Quantity("B over the reference's", 1, "Å²"),
    "solvent": Quantity("bulk solvent, −ln(1 − k_sol)"),
    "solvent_B": Quantity("bulk solvent's B", 1, "Å²"),
    "width": Quantity("width of the image's curve"),
    "shape_error": Quantity("model error of R1²", 100, "%"),
    "bandwidth": Quantity("bandwidth Δλ/λ, rms", 100, "%"),
    "position_error_radial_inv_angstrom": Quantity("centroid error, radial", 1e3, "10⁻³ Å⁻¹"),
    "position_error_tangential_inv_angstrom": Quantity(
        "centroid error, tangential", 1e3, "10⁻³ Å⁻¹"
    ),
    "position_error_fall_radial_angstrom": Quantity("fall of the radial error with 1/d", 1, "Å"),
    "position_error_fall_tangential_angstrom": Quantity(
        "fall of the tangential error with 1/d", 1, "Å"
    ),
}
_SUFFIXES = {
    "_inv_angstrom": (1e3, "10⁻³ Å⁻¹"),
    "_mrad": (1.0, "mrad"),
    "_mm": (1.0, "mm"),
    "_um": (1.0, "µm"),
    "_px": (1.0, "px"),
}


def quantity(name: str) -> Quantity:
    """The quantity of a column of ``images.csv`` or of a shared unknown, by name."""
    if name in _KNOWN:
        return _KNOWN[name]
    if name.startswith("strain_"):
        return Quantity(f"strain {name[7:]}", 1e3, "10⁻³")
    for suffix, (factor, unit) in _SUFFIXES.items():
        if name.endswith(suffix):
            label = name.removesuffix(suffix).replace("_", " ").replace("center", "centre")
            label = f"shift of {label}" if suffix == "_um" else label
            return Quantity(label.replace("rot ", "rotation "), factor, unit)
    return Quantity(name.replace("_", " "))
