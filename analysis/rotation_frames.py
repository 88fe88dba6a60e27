"""Frames of a turning crystal: box summation, stills, or a partiality over the turn?

Reads finished fits of one simulated crystal that turns by 0.1° a frame (`foreign/rotation`), as
stills and with the partiality averaged over the turn:

    RUN=../shared/data/foreign/rotation
    bayes-refine fit $RUN/C5_indexed.expt --reference $RUN/C5_reference.mtz --d-min 2.3 \
        --images 0:40 --out fits/stills
    ... --oscillation 0.1 --spindle 1 0 0 --out fits/turning
    python analysis/rotation_frames.py fits/stills fits/turning --out rotation_frames.png

By resolution: R1(I) to the truth and 90 % intervals that hold it, of IMEAN and of boxes: photons of
a disc less the ring's background, summed over the frames of a crossing, over G·B_term·pol and the
time of the crossing.  By how long a reflection takes to cross: the bias of each.

Then both curves, with R0, η and a scale of their own, at the geometry and the scales of each fit: J
over what it would be at p = 1, over the curve, by |ε_r| and |v_r|.

The partialities of a reflection that crosses the sphere within the run must sum to √π R0/(2|v_r|),
and its photons to that times G·B_term·pol·I, v_r as in the theory, Frames of a turning crystal.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import gemmi
import matplotlib.pyplot as plt
import numpy as np
from known_run import SHARED, gauge
from scipy.optimize import minimize
from scipy.special import erf

import bayes_refine as br
from bayes_refine.geometry.detector import ray_to_pixel
from bayes_refine.geometry.miller import find, pack_hkl
from bayes_refine.geometry.predict import swept
from bayes_refine.geometry.symmetry import asu_map

OSCILLATION, SPINDLE = 0.1, (1.0, 0.0, 0.0)
SHELLS = np.array([25.0, 5.0, 4.0, 3.4, 3.0, 2.7, 2.5, 2.3])
PATHS = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 9.0]) * 1e-4  # Å⁻¹
EDGES = np.array([0.0, 1.5, 3.0, 4.5, 7.0, 20.0]) * 1e-4  # Å⁻¹, of |ε_r|
RADIUS, RING = 4.0, (6.0, 9.0)  # of a box and of its background, pixels
SLOWEST = 3e-5  # Å⁻¹ a frame: slower reflections take more than about 30 frames to cross


@dataclass(frozen=True)
class Frames:
    """Observations of a fit by their columns, with the path of each, and what was merged.

    Attributes:
        hkl: (n, 3) as indexed. key: (n,) of the asymmetric unit. path: (n,) |v_r| of a frame, Å⁻¹.
        across: (n,) |q| cosθ, Å⁻¹, what η smears along the ray. boxes, boxes_sd: (n,) photons by
            summation.
        merged: keys, IMEAN and SIGIMEAN.
    """

    R0: float
    columns: dict[str, np.ndarray]
    hkl: np.ndarray
    key: np.ndarray
    path: np.ndarray
    across: np.ndarray
    boxes: np.ndarray
    boxes_sd: np.ndarray
    merged: tuple[np.ndarray, np.ndarray, np.ndarray]


def read_fit(folder: Path) -> Frames:
    mtz = gemmi.read_mtz_file(str(folder / "unmerged.mtz"))
    group = mtz.spacegroup
    mtz.switch_to_original_hkl()
    table = np.array(mtz.array)
    columns = {column.label: table[:, k] for k, column in enumerate(mtz.columns)}
    hkl = table[:, :3].astype(int)
    stills = br.exposed(br.read_experiments(folder / "refined.expt"), OSCILLATION, SPINDLE).stills
    boxes, (path, norm_q, cosine) = np.full((2, len(hkl)), np.nan), np.zeros((3, len(hkl)))
    with br.ImageReader() as reader:
        for i, still in enumerate(stills):
            mine = columns["BATCH"] == i + 1
            image, valid = reader.read(still)
            q = hkl[mine] @ still.crystal.A.T
            ray = still.beam.s0 + q
            ray /= np.linalg.norm(ray, axis=1, keepdims=True)
            xy = ray_to_pixel(still.detector, ray)[1]
            boxes[:, mine] = summed(np.where(valid, image, np.nan)[0], xy)
            path[mine] = swept(still, q)
            norm_q[mine] = np.linalg.norm(q, axis=1)
            cosine[mine] = np.sqrt(1 - (norm_q[mine] * still.beam.wavelength / 2) ** 2)
    summary = json.loads((folder / "summary.json").read_text())
    R0 = summary["globals"]["R0_inv_angstrom"]["value"]
    key = pack_hkl(asu_map(hkl, group)[0])
    return Frames(
        R0, columns, hkl, key, path, norm_q * cosine, *boxes, merged_of(folder / "merged.mtz")
    )


def summed(image: np.ndarray, xy_px: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Photons (n,) within RADIUS of places (n, 2), less the ring's background, and their sd."""
    half = int(np.ceil(RING[1])) + 1
    padded = np.pad(image.astype(float), half, constant_values=np.nan)
    dy, dx = np.mgrid[-half : half + 1, -half : half + 1]
    out = np.empty((2, len(xy_px)))
    for k, (x, y) in enumerate(xy_px):
        column, row = int(x), int(y)
        box = padded[row : row + 2 * half + 1, column : column + 2 * half + 1]
        r = np.hypot(dx + column + 0.5 - x, dy + row + 0.5 - y)
        disc, ring = box[r < RADIUS], box[(r > RING[0]) & (r < RING[1])]
        background = np.nanmean(np.clip(ring, None, np.nanquantile(ring, 0.95)))
        variance = disc.sum() + len(disc) ** 2 * background / len(ring)
        out[:, k] = np.sum(disc - background), np.sqrt(max(variance, 1.0))
    return out[0], out[1]


def merged_of(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys of the asymmetric unit, IMEAN and SIGIMEAN of a merged.mtz, blank ones left out."""
    mtz = gemmi.read_mtz_file(str(path))
    labels = [column.label for column in mtz.columns]
    rows = np.array(mtz.array)[:, [0, 1, 2, labels.index("IMEAN"), labels.index("SIGIMEAN")]]
    rows = rows[np.isfinite(rows).all(1) & (rows[:, 4] > 0)]
    keys = pack_hkl(asu_map(rows[:, :3].astype(int), mtz.spacegroup)[0])
    order = np.argsort(keys)
    return keys[order], rows[order, 3], rows[order, 4]


@dataclass(frozen=True)
class Truth:
    """Intensities and d of unique reflections by key, ascending."""

    key: np.ndarray
    intensity: np.ndarray
    d: np.ndarray

    def of(self, key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """True intensity (NaN where unknown) and d."""
        at, known = find(key, self.key)
        return np.where(known, self.intensity[at], np.nan), self.d[at]


def truth_of(folder: Path) -> Truth:
    ref = br.read_reference(next(folder.glob("*_reference.mtz")))
    key = pack_hkl(asu_map(ref.hkl, ref.space_group)[0])
    order = np.argsort(key)
    return Truth(key[order], ref.intensity[order], ref.d[order])


@dataclass(frozen=True)
class Crossings:
    """Reflections as indexed that cross the sphere within the run; sums over their frames.

    Attributes:
        key: of the asymmetric unit. path: |v_r| of a frame, Å⁻¹.
        partiality: Σ p. expected: √π R0/(2|v_r|).
        boxes, boxes_sd, J: Σ over G·B_term·pol of the fit.
    """

    key: np.ndarray
    path: np.ndarray
    partiality: np.ndarray
    expected: np.ndarray
    boxes: np.ndarray
    boxes_sd: np.ndarray
    J: np.ndarray


def crossings(fit: Frames) -> Crossings:
    c = fit.columns
    last = c["BATCH"].max()
    _, first, row = np.unique(pack_hkl(fit.hkl), return_index=True, return_inverse=True)
    scale = c["SCALE"] / c["PARTIALITY"]
    fine = np.isfinite(fit.boxes) & (c["BATCH"] > 1) & (c["BATCH"] < last)
    inside = np.ones(len(first), bool)  # all frames that see it, and more to either side
    np.logical_and.at(inside, row, fine)
    wide = np.bincount(row, fit.path) / np.bincount(row)
    keep = inside & (wide > SLOWEST)
    with np.errstate(divide="ignore"):
        columns = (
            fit.key[first],
            wide,
            np.bincount(row, c["PARTIALITY"]),
            np.sqrt(np.pi) * fit.R0 / (2 * wide),
            np.bincount(row, np.nan_to_num(fit.boxes) / scale),
            np.sqrt(np.bincount(row, (np.nan_to_num(fit.boxes_sd) / scale) ** 2)),
            np.bincount(row, c["I"] / scale),
        )
    return Crossings(*(x[keep] for x in columns))


def curve(fit: Frames, R0: float, eta_mrad: float, turning: bool) -> np.ndarray:
    """p (n,) of a still or over the turn, without bandwidth."""
    x = fit.columns["EPSILON_R"]
    width = np.sqrt(R0**2 + (1e-3 * eta_mrad * fit.across) ** 2)
    if not turning:
        return R0 / width * np.exp(-((x / width) ** 2))
    half = np.maximum(fit.path, 1e-8)
    box = erf((x + half) / width) - erf((x - half) / width)
    return R0 * np.sqrt(np.pi) / (4 * half) * box


def compare_curves(fit: Frames, truth: Truth) -> dict[str, np.ndarray]:
    """Fit both curves, print J over each, and return it near the sphere by path, (k, 2) by name."""
    c = fit.columns
    full = c["SCALE"] / c["PARTIALITY"] * truth.of(fit.key)[0]  # J at p = 1
    J, sd = c["I"] / full, np.hypot(c["SIGI"] / full, 0.02)
    use = np.isfinite(J) & (sd < 0.15)
    found = {}
    for turning, name in ((False, "curve of a still"), (True, "curve over the turn")):

        def model(x, turning=turning):
            return np.exp(x[0]) * curve(fit, 1e-4 * np.exp(x[1]), np.exp(x[2]), turning)

        def lost(x, model=model):
            return np.sum((((J - model(x)) / sd)[use]) ** 2)

        best = minimize(lost, [0.0, np.log(3.0), 0.0], method="Nelder-Mead")
        p, off, points = model(best.x), np.abs(c["EPSILON_R"]), []
        print(
            f"  {name}: R0 {np.exp(best.x[1]):.2f}e-4 Å⁻¹, η {np.exp(best.x[2]):.3f} mrad, χ² a"
            f" reflection {best.fun / use.sum():.3f} of {use.sum()}; J over it by |ε_r|:"
        )
        for low, high in pairwise(PATHS):
            line = []
            for near, far in pairwise(EDGES):
                k = use & (fit.path >= low) & (fit.path < high) & (off >= near) & (off < far)
                line.append(np.sum((J * p / sd**2)[k]) / np.sum((p / sd)[k] ** 2))
            points.append((np.median(fit.path[(fit.path >= low) & (fit.path < high)]), line[0]))
            print(f"    |v_r| from {1e4 * low:.1f}e-4 Å⁻¹ " + "".join(f"{x:8.3f}" for x in line))
        found[name] = np.array(points)
    return found


def by_shell(d: np.ndarray, value, of=np.median) -> list[float]:
    """``of`` the values in each shell, and of all."""
    shell = np.digitize(-d, -SHELLS) - 1
    parts = [value[shell == k] for k in range(len(SHELLS) - 1)]
    return [float(of(x)) if len(x) else np.nan for x in [*parts, value]]


def against_truth(mean, sd, truth, d) -> dict[str, list[float]]:
    """R1 and coverage in shells, on a scale and a B of its own."""
    scaled = gauge(mean, sd, truth, d) * truth
    off, sums = by_shell(d, np.abs(mean - scaled), np.sum), by_shell(d, scaled, np.sum)
    return {
        "n": by_shell(d, d, len),
        "R1 %": [100 * x / y for x, y in zip(off, sums, strict=True)],
        "in 90 %": by_shell(d, 100.0 * (np.abs(mean - scaled) < 1.645 * sd), np.mean),
    }


def by_path(path, mean, sd, truth, d) -> np.ndarray:
    """(k, 2) median path of a frame and median of I over truth, of the strong half, in bins."""
    scaled = gauge(mean, sd, truth, d) * truth
    strong = truth > np.median(truth)
    bins = np.digitize(path, PATHS)
    groups = [strong & (bins == k) for k in range(1, len(PATHS))]
    return np.array(
        [(np.median(path[g]), np.median(mean[g] / scaled[g])) for g in groups if g.sum() > 10]
    )


def of_sums(found: Crossings, total: np.ndarray, truth: Truth):
    """Path, intensity, sd of boxes, truth and d of sums over crossings."""
    intensity, d = truth.of(found.key)
    columns = found.path, total / found.expected, found.boxes_sd / found.expected
    return [x[np.isfinite(intensity)] for x in (*columns, intensity, d)]


def of_merged(fit: Frames, truth: Truth):
    """As :func:`of_sums`, of IMEAN; the path is that of its observation of the largest p."""
    key, mean, sd = fit.merged
    intensity, d = truth.of(key)
    at, seen = find(fit.key, key)
    order = np.argsort(fit.columns["PARTIALITY"])
    order = order[seen[order]]
    path = np.zeros(len(key))
    path[at[order]] = fit.path[order]
    return [x[np.isfinite(intensity)] for x in (path, mean, sd, intensity, d)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fits", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, default=SHARED / "foreign" / "rotation")
    parser.add_argument("--out", type=Path, default=Path("rotation_frames.png"))
    args = parser.parse_args()
    truth = truth_of(args.data)
    found, near = {}, {}
    for folder in args.fits:
        fit = read_fit(folder)
        crossed = crossings(fit)
        sums = crossed.partiality / crossed.expected
        print(f"{folder.name}: R0 {fit.R0:.3e} Å⁻¹; {len(sums)} reflections cross within the run")
        print(f"  Σ p over √π R0/(2|v_r|): median {np.median(sums):.3f}, sd {np.std(sums):.3f}")
        near |= {f"{folder.name}, {k}": v for k, v in compare_curves(fit, truth).items()}
        found[f"{folder.name}, Σ boxes"] = of_sums(crossed, crossed.boxes, truth)
        found[f"{folder.name}, Σ J"] = of_sums(crossed, crossed.J, truth)
        found[folder.name] = of_merged(fit, truth)
    rows = {name: against_truth(*columns[1:]) for name, columns in found.items()}
    for what in ("n", "R1 %", "in 90 %"):
        print(f"{what:28s}" + "".join(f"{x:7.1f} Å" for x in SHELLS[1:]) + "      all")
        for name, row in rows.items():
            print(f"{name:28s}" + "".join(f"{x:9.1f}" for x in row[what]))
    print("median of I over truth by |v_r| (10⁻⁴ Å⁻¹), strong half")
    bias = {name: by_path(*columns) for name, columns in found.items()}
    for name, points in bias.items():
        print(f"{name:28s}" + "  ".join(f"{1e4 * x:.2f}: {y:.3f}" for x, y in points))
    draw(rows, bias, near, args.out)


def draw(rows, bias, near, out: Path) -> None:
    """R1 by resolution; bias of intensities, and of J on the sphere over both curves, by path."""
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for name, row in rows.items():
        left.plot(SHELLS[1:] ** -2, row["R1 %"][:-1], "o-", label=name)
        middle.plot(*(bias[name].T * np.array([[1e4], [1]])), "o-", label=name)
    left.set(xlabel="1/d² (Å⁻²)", ylabel="R1(I) to the truth (%)", yscale="log")
    middle.set(xlabel="|v_r| of a frame (10⁻⁴ Å⁻¹)", ylabel="median of I over truth")
    for name, points in near.items():
        right.plot(*(points.T * np.array([[1e4], [1]])), "o-", label=name)
    right.set(xlabel="|v_r| of a frame (10⁻⁴ Å⁻¹)", ylabel="J over the curve, |ε_r| < 1.5·10⁻⁴ Å⁻¹")
    for axes in (middle, right):
        axes.axhline(1, color="0.7", lw=1)
    for axes in (left, right):
        axes.legend(fontsize=8)
    fig.savefig(out, dpi=150)


if __name__ == "__main__":
    main()
