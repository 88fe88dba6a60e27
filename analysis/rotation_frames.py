"""Frames of a turning crystal: box summation, stills, or a partiality over the turn?

One simulated crystal that turns by 0.1° a frame (`foreign/rotation`), fitted as stills and with
the partiality averaged over the turn, with and without a reference.  By resolution, R1(I) to the
truth, 90 % intervals that hold it, and the bias by how long a reflection takes to cross the sphere:

- boxes: photons of a disc less the ring's background, summed over the frames, over G·B_term·pol
  and the time of crossing, of reflections that cross within the run;
- IMEAN of both fits.

The partialities of a reflection that crosses the sphere within the run must sum to
√π R0/(2|v_r|), and its photons to that times G·B_term·pol·I.

    python analysis/rotation_frames.py --frames 40 --work fits --out rotation_frames.png

``--work`` keeps the fits' files, by which another script can score them; fits that are there are
read again.
"""

from __future__ import annotations

import argparse
import pickle
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gemmi
import h5py
import jax
import matplotlib.pyplot as plt
import numpy as np
from lysosim import SHARED, gauge

import bayes_refine as br
from bayes_refine.fitting import posterior_draws
from bayes_refine.geometry.miller import find, pack_hkl
from bayes_refine.geometry.predict import swept
from bayes_refine.geometry.symmetry import asu_map

D_MIN, OSCILLATION, SPINDLE = 2.3, 0.1, (1.0, 0.0, 0.0)
SHELLS = np.array([25.0, 5.0, 4.0, 3.4, 3.0, 2.7, 2.5, 2.3])
RADIUS, RING = 4.0, (6.0, 9.0)  # of a box and of its background, pixels
SLOWEST = 3e-5  # Å⁻¹ a frame: slower reflections take more than about 30 frames to cross
PATHS = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 9.0]) * 1e-4  # Å⁻¹
NAMES = ("stills", "turning", "stills, no reference", "turning, no reference")


@dataclass(frozen=True)
class Frames:
    """One fit: reflections with the half path of their relps along the ray, and merged intensities.

    Attributes:
        R0: Å⁻¹. reflections: of ``RunFit``. path: (N,) |v_r| of a frame, Å⁻¹.
        boxes: (N,) photons by box summation.
        merged: keys (m,), IMEAN and SIGIMEAN.
    """

    R0: float
    reflections: object
    path: np.ndarray
    boxes: np.ndarray
    merged: tuple[np.ndarray, np.ndarray, np.ndarray]


def fitted(folder: Path, out: Path, name: str, frames: int) -> Frames:
    """One of the fits, written to ``out``; read from there if it was made before."""
    kept = out / "frames.pkl"
    if kept.exists():
        return pickle.loads(kept.read_bytes())
    prefix = next(folder.glob("*_truth.h5")).name.removesuffix("_truth.h5")
    found = br.read_experiments(folder / f"{prefix}_indexed.expt")
    found = br.Experiments(found.stills[:frames], found.path, found.document)
    turning = br.exposed(found, OSCILLATION, SPINDLE)
    ref = None if "no" in name else br.read_reference(folder / f"{prefix}_reference.mtz")
    with br.ImageReader() as reader:
        prepared = br.prepare(
            turning if "turning" in name else found, reader, ref, d_min=D_MIN, bandwidth=1e-4
        )
        run = br.fit(prepared, br.load_model("still"), progress=print)
        few = partial(posterior_draws.laplace, n_draws=10)
        br.write_results(out, run, prepared, method=few, pictures=False)
        r = run.reflections
        boxes, path = np.zeros(len(r)), np.zeros(len(r))
        for i, still in enumerate(run.stills):
            mine = r.image == i
            image, valid = reader.read(still)
            boxes[mine] = summed(np.where(valid, image, np.nan)[0], r.xy_px[mine])
            path[mine] = swept(turning.stills[i], r.hkl[mine] @ still.crystal.A.T)
    R0 = float(np.exp(run.fit.values()["log_R0"]))
    result = Frames(R0, r, path, boxes, merged_of(out / "merged.mtz"))
    kept.write_bytes(pickle.dumps(result))
    return result


def summed(image: np.ndarray, xy_px: np.ndarray) -> np.ndarray:
    """(n,) photons within RADIUS of places (n, 2), less the median of the ring; NaN of bad ones."""
    half = int(np.ceil(RING[1])) + 1
    padded = np.pad(image.astype(float), half, constant_values=np.nan)
    dy, dx = np.mgrid[-half : half + 1, -half : half + 1]
    out = np.empty(len(xy_px))
    for k, (x, y) in enumerate(xy_px):
        column, row = int(x), int(y)
        box = padded[row : row + 2 * half + 1, column : column + 2 * half + 1]
        r = np.hypot(dx + column + 0.5 - x, dy + row + 0.5 - y)
        disc, ring = box[r < RADIUS], box[(r > RING[0]) & (r < RING[1])]
        out[k] = np.sum(disc - np.nanmean(np.clip(ring, None, np.nanquantile(ring, 0.95))))
    return out


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
    """Intensities of unique reflections by key, the cell and the space group."""

    key: np.ndarray
    intensity: np.ndarray
    d: np.ndarray
    space_group: gemmi.SpaceGroup

    def of(self, key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """True intensity (NaN where unknown) and d."""
        at, known = find(key, self.key)
        return np.where(known, self.intensity[at], np.nan), self.d[at]


def truth_of(folder: Path) -> Truth:
    ref = br.read_reference(next(folder.glob("*_reference.mtz")))
    key = pack_hkl(asu_map(ref.hkl, ref.space_group)[0])
    order = np.argsort(key)
    return Truth(key[order], ref.intensity[order], ref.d[order], ref.space_group)


@dataclass(frozen=True)
class Crossings:
    """Reflections (as indexed, not unique) that cross the sphere within the run, summed over it.

    Attributes:
        key: of the asymmetric unit. path: |v_r| of a frame, Å⁻¹.
        partiality: Σ p. expected: √π R0/(2|v_r|). boxes, J: Σ over G·B_term·pol of the fit.
        boxes_sd: of counting, roughly.
    """

    key: np.ndarray
    path: np.ndarray
    partiality: np.ndarray
    expected: np.ndarray
    boxes: np.ndarray
    J: np.ndarray
    boxes_sd: np.ndarray


def crossings(fit: Frames, space_group: gemmi.SpaceGroup, last: int) -> Crossings:
    r = fit.reflections
    each, row = np.unique(pack_hkl(r.hkl), return_inverse=True)
    scale = r.scale / r.partiality  # G·B_term·pol
    with np.errstate(invalid="ignore"):
        fine = r.measured & np.isfinite(fit.boxes)
    inside = np.ones(len(each), bool)  # all frames that see it, and one more to either side
    np.logical_and.at(inside, row, fine & (r.image > 0) & (r.image < last))
    wide = np.bincount(row, fit.path) / np.bincount(row)
    keep = inside & (wide > SLOWEST)
    total = partial(np.bincount, row)
    first = np.unique(row, return_index=True)[1]
    key = pack_hkl(asu_map(r.hkl[first], space_group)[0])
    columns = (
        key,
        wide,
        total(r.partiality),
        np.sqrt(np.pi) * fit.R0 / (2 * wide),
        total(np.where(fine, fit.boxes, 0.0) / scale),
        total(np.where(fine, r.J, 0.0) / scale),
        np.sqrt(total((np.abs(fit.boxes) + 50 * r.background) / scale**2)),
    )
    return Crossings(*(np.asarray(c)[keep] for c in columns))


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=SHARED / "foreign" / "rotation")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--work", type=Path, default=Path("rotation_frames"))
    parser.add_argument("--out", type=Path, default=Path("rotation_frames.png"))
    parser.add_argument("--fits", nargs="*", default=list(NAMES), choices=NAMES)
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    truth = truth_of(args.data)
    args.work.mkdir(parents=True, exist_ok=True)
    fits = {
        name: fitted(args.data, args.work / name.replace(", ", "-").replace(" ", "-"), name, n)
        for name in args.fits
        for n in [args.frames]
    }
    with h5py.File(next(args.data.glob("*_truth.h5"))) as file:
        print(f"true R0 {file.attrs['R0']} Å⁻¹")
    rows, bias = {}, {}
    for name, fit in fits.items():
        found = crossings(fit, truth.space_group, args.frames - 1)
        intensity, d = truth.of(found.key)
        strong = intensity > np.nanmedian(intensity)
        sums = np.median(found.partiality / found.expected)
        print(f"{name}: R0 {fit.R0:.3e} Å⁻¹; {len(d)} reflections cross")
        print(f"  Σ p over √π R0/(2|v_r|), median: {sums:.3f}")
        for what, total in (("boxes", found.boxes), ("J", found.J)):
            ratio = (total / found.expected / intensity)[strong]
            line = " ".join(f"{x:6.3f}" for x in by_shell(d[strong], ratio / np.median(ratio)))
            print(f"  Σ {what} over truth, strong half, medians in shells: {line}")
        if name == "turning":
            known = np.isfinite(intensity)
            columns = found.boxes / found.expected, found.boxes_sd / found.expected, intensity, d
            columns = [x[known] for x in columns]
            rows["boxes"] = against_truth(*columns)
            bias["boxes"] = found.path[known], *columns
        key, mean, sd = fit.merged
        intensity, d = truth.of(key)
        widest = np.zeros(len(key))
        at, seen = find(pack_hkl(asu_map(fit.reflections.hkl, truth.space_group)[0]), key)
        np.maximum.at(widest, at[seen], fit.path[seen])
        known = np.isfinite(intensity)
        columns = [x[known] for x in (mean, sd, intensity, d)]
        rows[name] = against_truth(*columns)
        bias[name] = widest[known], *columns
    for what in ("n", "R1 %", "in 90 %"):
        print(f"{what:24s}" + "".join(f"{x:7.1f} Å" for x in SHELLS[1:]) + "      all")
        for name, found in rows.items():
            print(f"{name:24s}" + "".join(f"{x:9.1f}" for x in found[what]))
    draw(rows, bias, args.out)


def by_path(path, mean, sd, truth, d) -> np.ndarray:
    """(k, 2) median path of a frame and median of I over truth, of the strong half, in bins."""
    scaled = gauge(mean, sd, truth, d) * truth
    strong = truth > np.median(truth)
    bins = np.digitize(path, PATHS)
    groups = [strong & (bins == k) for k in range(1, len(PATHS))]
    return np.array(
        [(np.median(path[g]), np.median(mean[g] / scaled[g])) for g in groups if g.sum() > 10]
    )


def draw(rows, bias, out: Path) -> None:
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name, found in rows.items():
        left.plot(SHELLS[1:] ** -2, found["R1 %"][:-1], "o-", label=name)
    left.set(xlabel="1/d² (Å⁻²)", ylabel="R1(I) to the truth (%)", yscale="log")
    left.legend(fontsize=8)
    print("median of I over truth by |v_r| (10⁻⁴ Å⁻¹), strong half")
    for name, columns in bias.items():
        points = by_path(*columns)
        print(f"{name:24s}" + "  ".join(f"{1e4 * x:.2f}: {y:.3f}" for x, y in points))
        right.plot(1e4 * points[:, 0], points[:, 1], "o-", label=name)
    right.axhline(1, color="0.7", lw=1)
    right.set(xlabel="|v_r| of a frame (10⁻⁴ Å⁻¹)", ylabel="median of I over truth")
    fig.savefig(out, dpi=150)


if __name__ == "__main__":
    main()
