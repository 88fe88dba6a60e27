"""Simulated runs of independent simulators and what is known of them, for the scripts beside this.

`foreign/plain` is sampled finely enough to judge by; `lysosim` is for comparison with older
numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
from scipy.optimize import least_squares

import bayes_refine as br
from bayes_refine.geometry.crystal import rotation_vector_mrad
from bayes_refine.io.images import read_bandwidth
from bayes_refine.merging.agreement import pearson

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
PLAIN, LYSOSIM = "foreign/plain", "lysosim"


@dataclass(frozen=True)
class Truth:
    """A (n, 3, 3), G (n,), B (n,), and beam centre x, y and distance from nominal (3,), mm."""

    A: np.ndarray
    G: np.ndarray
    B: np.ndarray
    shift_mm: np.ndarray


def load(data: Path, n: int, run: str = PLAIN):
    """Stills with their bandwidth, reference and truth of the first ``n`` images of a run."""
    folder, name = data / run, Path(run).name
    stills = br.read_experiments(folder / f"{name}_indexed.expt").stills[:n]
    bandwidth = read_bandwidth(stills[0]) or 0.0
    stills = [replace(s, beam=replace(s.beam, bandwidth=bandwidth)) for s in stills]
    with h5py.File(folder / f"{name}_truth.h5") as f:
        detector = stills[0].detector
        nominal_px = -detector.origin_mm[0, :2] / detector.pixel_size_mm[0]
        centre = (f["beam_center_px"][()] - nominal_px) * detector.pixel_size_mm[0]
        distance = f["distance_mm"][()] - detector.origin_mm[0, 2]
        truth = Truth(f["A"][:n], f["G"][:n], f["B"][:n], np.append(centre, distance))
    return stills, br.read_reference(folder / f"{name}_reference.mtz"), truth


def excitation_error(A: np.ndarray, hkl: np.ndarray, s0: np.ndarray) -> np.ndarray:
    """ε_r (n,) of hkl (n, 3) for one setting matrix."""
    return np.linalg.norm(s0 + hkl @ A.T, axis=1) - np.linalg.norm(s0)


def errors(run: br.RunFit, truth: Truth, near: float = 3e-4) -> dict[str, np.ndarray]:
    """By image: rms error of ε_r as indexed and refined (|true ε_r| < near), and CC(J, J_model)."""
    rows, r = [], run.reflections
    for i, (still, indexed) in enumerate(zip(run.stills, run.indexed, strict=True)):
        mine = r.image == i
        hkl, s0 = r.hkl[mine], still.beam.s0
        true = excitation_error(truth.A[i], hkl, s0)
        use = np.abs(true) < near
        rms = [
            np.sqrt(np.mean((excitation_error(x.crystal.A, hkl, s0) - true)[use] ** 2))
            for x in (indexed, still)
        ]
        J, J_model = r.J[mine], r.J_model[mine]
        known = np.isfinite(J_model) & r.measured[mine]
        rows.append((*rms, pearson(J[known], J_model[known])))
    return dict(zip(("indexed", "refined", "cc"), np.array(rows).T, strict=True))


def rotation_error_mrad(run: br.RunFit, truth: Truth) -> np.ndarray:
    """(n, 3) rotation, lab axes, from the true to the refined orientation."""
    pairs = zip(run.stills, truth.A, strict=True)
    return np.array([rotation_vector_mrad(s.crystal.A @ np.linalg.inv(A)) for s, A in pairs])


def robust_sd(x: np.ndarray) -> float:
    """1.4826 times the median distance from the median."""
    return 1.4826 * float(np.median(np.abs(x - np.median(x))))


def gauge(mean: np.ndarray, sd: np.ndarray, truth: np.ndarray, d: np.ndarray) -> np.ndarray:
    """(n,) k·exp(−B/2d²) that brings true intensities to the scale of ``mean`` ± ``sd``.

    A fit without a reference knows neither a common factor nor a common B.  Robust least squares.
    """

    def factor(p):
        return np.exp(p[0] - p[1] / (2 * d**2))

    start = [np.log((mean @ truth) / (truth @ truth)), 0.0]
    found = least_squares(lambda p: (factor(p) * truth - mean) / sd, start, loss="soft_l1")
    return factor(found.x)
