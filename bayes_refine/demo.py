"""Errors of a fit of a simulated run against the truth, for the demonstration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from .fitting.loop import RunFit
from .fitting.tables import beam_place, image_table, shared_values, usable_images
from .geometry.crystal import rotation_part


@dataclass(frozen=True)
class Error:
    """The error of one quantity: rms before and after the fit, and rms of error/sd.

    The last, ``pull``, is 1 if the sd is right.  ``before`` and ``pull`` are None if unknown.
    """

    name: str
    before: float | None
    after: float
    pull: float | None


def errors(run: RunFit, truth_path: str | Path) -> list[Error]:
    """Errors of the usable images and of the detector, against ``truth.h5`` of a simulated run."""
    with h5py.File(truth_path, "r") as file:
        truth = {name: file[name][()] for name in file}
        truth |= {name: truth[name][[still.frame for still in run.stills]] for name in "AGB"}
        size = float(file.attrs["pixel_size_mm"])
    good = np.flatnonzero(usable_images(run))
    n, shared = len(run.stills), shared_values(run)
    table = {name: column[:n] for name, column in image_table(run).items()}
    before = [_misorientation_deg(run.indexed[i].crystal.A, truth["A"][i]) for i in good]
    after = [_misorientation_deg(run.stills[i].crystal.A, truth["A"][i]) for i in good]
    found = [
        Error("orientation (deg)", _rms(before), _rms(after), None),
        Error(
            "excitation error (1e-5 Å⁻¹)",
            excitation_rms(run, run.indexed, truth["A"], good),
            excitation_rms(run, run.stills, truth["A"], good),
            None,
        ),
    ]
    for name, label, value, sd in (
        ("G", "ln G", np.log(table["G"]) - np.log(truth["G"]), table["G_sd"] / table["G"]),
        ("B", "B (Å²)", table["B"] - truth["B"], table["B_sd"]),
    ):
        spread = _rms(np.log(truth["G"][good])) if name == "G" else _rms(truth["B"][good])
        found.append(Error(label, spread, _rms(value[good]), _rms((value / sd)[good])))
    nominal = beam_place(run.indexed[0])
    names = ("distance", "beam_center_x", "beam_center_y")
    for name, mm in zip(
        names, (truth["distance_mm"], *truth["beam_center_px"] * size), strict=True
    ):
        now = shared[f"{name}_mm"]
        error = now["value"] - float(mm)
        label = f"{name.replace('_', ' ').replace('center', 'centre')} (mm)"
        found.append(
            Error(label, abs(nominal[name] - float(mm)), abs(error), abs(error) / now["sd"])
        )
    return found


def _rms(values) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _misorientation_deg(A: np.ndarray, truth: np.ndarray) -> float:
    """Angle of the rotation in A·A_true⁻¹, from its polar decomposition."""
    R = rotation_part(A @ np.linalg.inv(truth))
    sine = np.linalg.norm([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]]) / 2
    return float(np.degrees(np.arctan2(sine, (np.trace(R) - 1) / 2)))


def excitation_rms(run: RunFit, stills, A_true: np.ndarray, images: np.ndarray) -> float:
    """rms error of ε_r over the measured reflections, 1e-5 Å⁻¹."""
    errors_ = []
    for i in images:
        beam, hkl = stills[i].beam, run.reflections.hkl[run.reflections.image == i]
        length = [
            np.linalg.norm(beam.s0 + hkl @ A.T, axis=1) for A in (stills[i].crystal.A, A_true[i])
        ]
        errors_.append(length[0] - length[1])
    return 1e5 * _rms(np.concatenate(errors_))
