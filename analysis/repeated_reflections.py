"""Do scaled intensities of one reflection in different frames differ by their σ?

Six stills of one thaumatin crystal, fitted without any reference.  J_1/g_1 − J_2/g_2 of each pair
of frames is held against what the likelihood says of it, the difference of two Student-t errors of
the learned ν and expected scales s/g (s with the learned errors and that of g): its pull is
Φ⁻¹ of its cumulative probability.  Beside it the sd of plain pulls, difference over the sd of such
errors, which the few largest make what it is.

    python analysis/repeated_reflections.py --out repeated_reflections.png
"""

from __future__ import annotations

import argparse
from itertools import combinations, pairwise
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from known_run import SHARED
from scipy.stats import norm
from scipy.stats import t as student_t

import bayes_refine as br
from bayes_refine.fitting.state import tails
from bayes_refine.geometry.miller import pack_hkl
from bayes_refine.geometry.symmetry import asu_map

SHARES = (0.5, 0.9, 0.95)


def pulls_of(run: br.RunFit) -> dict[str, np.ndarray]:
    """Pulls of all pairs of frames, with I, d, the smaller partiality, the larger |ε_r| (Å⁻¹) and
    the frames of each."""
    r = run.reflections
    nu = tails(run.fit.values(), br.Priors())
    use = r.informs & r.measured
    key = pack_hkl(asu_map(r.hkl, run.reference.space_group)[0])
    expected, g = run.reference.lookup(r.hkl), r.scale
    log_G_sd = run.fit.sd("log_G")[:, 0][r.image]
    s = np.sqrt(r.variance_at(expected) + (log_G_sd * g * expected) ** 2) / g
    found = []
    for one, two in combinations(range(len(run.stills)), 2):
        a, b = (np.flatnonzero(use & (r.image == i)) for i in (one, two))
        # a reflection may come twice to an image, as mates: the one nearer to the sphere
        a, b = (rows[np.argsort(-r.partiality[rows], kind="stable")] for rows in (a, b))
        a, b = (rows[np.unique(key[rows], return_index=True)[1]] for rows in (a, b))
        _, at_a, at_b = np.intersect1d(key[a], key[b], return_indices=True)
        a, b = a[at_a], b[at_b]
        difference = r.J[a] / g[a] - r.J[b] / g[b]
        pull = pull_of(difference, s[a], s[b], nu)
        plain = difference / np.hypot(s[a], s[b]) / np.sqrt(nu / (nu - 2))
        p = np.minimum(r.partiality[a], r.partiality[b])
        frames = np.repeat([[one, two]], len(a), axis=0)
        signal = expected[a] / np.hypot(s[a], s[b])
        far = np.maximum(np.abs(r.excitation_error[a]), np.abs(r.excitation_error[b]))
        found.append((pull, plain, expected[a], signal, r.d[a], p, far, frames, key[a]))
    names = ("pull", "plain", "intensity", "signal", "d", "partiality", "far")
    names += ("frames", "reflection")
    return dict(zip(names, map(np.concatenate, zip(*found, strict=True)), strict=True))


def pull_of(difference: np.ndarray, s1: np.ndarray, s2: np.ndarray, nu: float) -> np.ndarray:
    """Φ⁻¹ F(difference), (n,), F that of s1·t − s2·t′ with Student-t t and t′."""
    share = (np.arange(400) + 0.5) / 400
    beyond = (np.abs(difference)[:, None] + s2[:, None] * student_t.ppf(share, nu)) / s1[:, None]
    return np.sign(difference) * norm.isf(np.minimum(student_t.sf(beyond, nu).mean(1), 0.5))


def error_of_spread(pull: np.ndarray, reflection: np.ndarray) -> float:
    """Standard error of the sd of pulls; those of one reflection are not independent."""
    code = np.unique(reflection, return_inverse=True)[1]
    excess = np.bincount(code, pull**2 - np.mean(pull**2))
    return np.sqrt(np.sum(excess**2)) / len(pull) / (2 * np.std(pull))


def line(name: str, found: dict[str, np.ndarray], here: np.ndarray | slice = slice(None)) -> str:
    """Spread and coverage of some pulls."""
    pull = found["pull"][here]
    robust = np.diff(np.quantile(pull, norm.cdf([-1, 1])))[0] / 2
    held = "".join(f"{100 * np.mean(np.abs(pull) < norm.ppf((1 + s) / 2)):8.1f}" for s in SHARES)
    error = error_of_spread(pull, found["reflection"][here])
    spread = f"{np.mean(pull):8.3f}{np.std(pull):8.3f} ± {error:.3f}{robust:8.3f}"
    return f"{name:20s}{len(pull):7d}{spread}{held}{np.std(found['plain'][here]):8.3f}"


def thirds(by: np.ndarray) -> list[np.ndarray]:
    edges = np.quantile(by, [1 / 3, 2 / 3])
    return [np.searchsorted(edges, by) == k for k in range(3)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--d-min", type=float, default=2.5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--out", type=Path, default=Path("repeated_reflections.png"))
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    stills = br.read_experiments(options.data / "thaumatin_grid" / "thaumatin_grid.expt").stills
    with br.ImageReader() as reader:
        noise = br.noise_for(reader, stills)
        reader.gain = noise.gain
        settings = br.Settings(
            d_min=options.d_min, rounds=options.rounds, read_noise=noise.read_noise
        )
        model = br.load_model("still")
        run = br.fit_run(stills, None, reader, model, br.Priors(), settings, br.Listener(print))
    for name, value in br.shared_values(run).items():
        print(f"{name}: {value['value']:.4g} ± {value['sd']:.2g}")
    for still, status in zip(run.stills, run.status, strict=True):
        print(status, *(f"{x:.2f}" for x in still.crystal.cell.parameters))

    found = pulls_of(run)
    held = [f"{100 * s:.0f} %" for s in SHARES]
    heads = "".join(f"{h:>8s}" for h in ("16–84 %", *held, "plain"))
    print(f"{'':20s}{'pairs':>7s}{'mean':>8s}{'sd':>8s}{'':8s}{heads}")
    print(line("all", found))
    for quantity in ("intensity", "signal", "d", "partiality"):
        for name, here in zip(("low", "middle", "high"), thirds(found[quantity]), strict=True):
            print(line(f"{name} {quantity}", found, here))
    for i, still in enumerate(stills):
        print(line(f"with {still.identifier}", found, (found["frames"] == i).any(1)))
    draw(run, found).savefig(options.out, dpi=110)


def draw(run: br.RunFit, found: dict[str, np.ndarray]) -> plt.Figure:
    """Distribution of the pulls, and their spread by intensity and resolution."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    pull = found["pull"]
    x = np.linspace(-5, 5, 101)
    left.hist(np.clip(pull, -5, 5), x, density=True, color="0.8", label=f"{len(pull)} pairs")
    left.plot(x, norm.pdf(x), "k", label="standard normal")
    left.set(xlabel="pull", yscale="log", ylim=(1e-4, 1), ylabel="density")
    left.legend(frameon=False)
    for ax, by, label in (
        (middle, np.log10(np.maximum(found["signal"], 1e-3)), "log₁₀ I/σ of the difference"),
        (right, 1 / found["d"], "1/d, Å⁻¹"),
    ):
        edges = np.quantile(by, np.linspace(0, 1, 13))
        bins = [(by >= a) & (by <= b) for a, b in pairwise(edges)]
        centre = [np.median(by[k]) for k in bins]
        ax.plot(centre, [np.std(pull[k]) for k in bins], "o-", label="sd")
        robust = [np.diff(np.quantile(pull[k], norm.cdf([-1, 1])))[0] / 2 for k in bins]
        ax.plot(centre, robust, "s--", label="half of 16–84 %")
        ax.axhspan(0.9, 1.1, color="0.9")
        ax.set(xlabel=label, ylabel="spread of pulls", ylim=(0, 1.6))
        ax.legend(frameon=False)
    figure.suptitle(f"{len(run.stills)} stills of one crystal, no reference")
    return figure


if __name__ == "__main__":
    main()
