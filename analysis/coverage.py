"""Do credible intervals cover the truth on stills whose physics is not this model's?

Central 50, 90 and 95 % intervals on `foreign/plain`: orientation and scale of each image from the
whole run, the detector from each image alone (or from groups).

    python analysis/coverage.py --images 60 --replicas 48 --out coverage.png

The truth of `lysosim` (`--run lysosim`) holds the nominal orientation of a crystal of ten mosaic
blocks, spots show the blocks' mean: what their finite number adds is drawn from the posterior of
the mosaic spread and of the number of blocks.  That of `foreign/plain` is the mean of 16 blocks.
"""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from known_run import LYSOSIM, PLAIN, SHARED, load, robust_sd, rotation_error_mrad

import bayes_refine as br
from bayes_refine import infer, physics
from bayes_refine.physics.observations import SpotStatistics

LEVELS = (0.5, 0.9, 0.95)
N_DRAWS = 1000
NOT_BY_IMAGE = {"bandwidth", "log_G0", "pixel_inv_angstrom"}


def central(draws: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """2|F(truth) − ½|, the level of the smallest central interval that holds the truth."""
    below = (draws < truth).mean(0)
    return np.abs(2 * below - 1)


def coverage(levels: np.ndarray) -> list[float]:
    """Share of truths inside each of LEVELS."""
    return [float(np.mean(levels <= p)) for p in LEVELS]


def few(obs: SpotStatistics, images) -> SpotStatistics:
    """The observations of some of the images."""
    names = [f.name for f in fields(obs) if getattr(obs, f.name) is not None]
    some = {n: getattr(obs, n)[np.asarray(images)] for n in names if n not in NOT_BY_IMAGE}
    return replace(obs, **some)


def mean_orientation(draws, rng: np.random.Generator, blocks=None) -> np.ndarray:
    """Mean of the blocks' rotations about nominal, (d, n, 3) mrad: N(0, η²LLᵀ/2N)."""
    mosaic_mrad, shape = np.exp(draws["log_mosaic_image_mrad"]), draws["mosaic_shape"]
    covariance = physics.mosaic_covariance(mosaic_mrad.reshape(-1), shape.reshape(-1, 5))
    lower = np.linalg.cholesky(covariance).reshape(*mosaic_mrad.shape[:2], 3, 3)
    of_run = np.sqrt(np.maximum(draws["speckle_variance"], 0))[:, None, None]
    speckle = of_run if blocks is None else blocks**-0.5
    white = rng.standard_normal((*mosaic_mrad.shape[:2], 3))
    return np.einsum("dnij,dnj->dni", lower, white) * speckle / np.sqrt(2)


def of_blocks(obs: SpotStatistics, values, n_blocks: int, rng: np.random.Generator) -> np.ndarray:
    """(n, 6, m) statistics that crystals of ``n_blocks`` mosaic blocks would have given.

    p is the mean over blocks of their own curves, blocks rotated by N(0, η²/2) an axis about the
    refined orientation; counting noise; nothing else is wrong.
    """
    R0 = jnp.exp(values["log_R0"])
    mosaic_mrad, bandwidth = jnp.exp(values["log_mosaic_mrad"]), jnp.exp(values["log_bandwidth"])
    R1 = jnp.exp(values["log_R1"])
    where = values["rotation_mrad"][:, 0], values["strain"][:, 0], values["detector_shift_mm"]
    spread = jnp.tile(mosaic_mrad**2 * jnp.eye(3), (len(R1), 1, 1))
    round_spot = R1**2 / 2, R1**2 / 2, 0.0
    place = physics.place_on_detector(obs, *where)
    curve = physics.gaussian
    spot = physics.smeared_spot(obs, place, R0, bandwidth, spread, round_spot, curve)
    G = jnp.exp(values["log_G"]) * physics.debye_waller(values["B"], obs.norm_q)
    smooth = curve(spot.excitation_error, R0, spot.R0_eff)
    turned = 1e-3 * float(mosaic_mrad) / np.sqrt(2) * rng.standard_normal((n_blocks, len(R1), 3))
    lever = jnp.cross(obs.q, obs.s_hat, axis=1)
    R_k = jnp.sqrt(R0**2 + physics.bandwidth_width(obs, bandwidth) ** 2)
    p = 0.0
    for block in turned:  # (n, 3)
        moved = spot.excitation_error + jnp.einsum("ni,nim->nm", block, lever)
        p += curve(moved, R0, R_k) / n_blocks
    J = G * smooth * obs.intensity_reference
    scatter = jnp.exp(2 * values["log_shape_error"])
    mean = J[:, None] * physics.profile_statistics(obs, spot, 6, scatter)
    # the profile is the smooth one's, as bright as the blocks make it
    ratio = (p / jnp.maximum(smooth, 1e-30))[:, None]
    noise = jnp.sqrt(obs.variance_background + (J[:, None] * ratio) * obs.variance_signal)
    return np.asarray(mean * ratio + noise * rng.standard_normal(noise.shape))


def block_replica(run: br.RunFit, model, priors, n_blocks: int, images: int, seed: int = 0):
    """ln G fitted to statistics of crystals of a few blocks, less the true one, and its sd."""
    rng, values = np.random.default_rng(seed), run.fit.values()
    obs = few(run.observations, np.arange(images))
    start = {k: v[:images] if v.shape[:1] == run.status.shape else v for k, v in values.items()}
    again = replace(obs, statistics=jnp.asarray(of_blocks(obs, start, n_blocks, rng)))
    fit = br.map_fit(model, again, priors, init=start)
    off = fit.values()["log_G"][:, 0] - start["log_G"][:, 0]
    draws = br.laplace_draws(fit, N_DRAWS, rng=rng)["log_G"][..., 0]
    sd = (draws - draws.mean(1, keepdims=True)).std(0)
    return off - off.mean(), sd, fit


def disagreement(run: br.RunFit, model, priors, images: int, seed: int = 0) -> dict[str, float]:
    """How far ln G and B of two random halves of every image's reflections differ, in sd.

    One if the noise of a reflection is what the likelihood says; needs no truth.  R0 is held.
    """
    rng, values = np.random.default_rng(seed), run.fit.values()
    held = replace(priors, R0_inv_angstrom=float(np.exp(values["log_R0"])), log_R0_sd=1e-3)
    obs = few(run.observations, np.arange(images))
    start = {k: v[:images] if v.shape[:1] == run.status.shape else v for k, v in values.items()}
    half = rng.random(obs.fit.shape) < 0.5
    a, b = (
        br.map_fit(model, replace(obs, fit=obs.fit & side), held, init=start)
        for side in (half, ~half)
    )
    found = {}
    for name in ("log_G", "B"):
        apart = (a.values()[name] - b.values()[name]) / np.hypot(a.sd(name), b.sd(name))
        found[name] = float(np.std(apart))
    return found


def draw(rows: dict[str, np.ndarray], out: Path) -> None:
    """Share of truths inside each central interval: orientation, scale and B, detector."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 5), layout="constrained", sharey=True)
    grid = np.linspace(0, 1, 101)
    for name, x in rows.items():
        k = 0 if name.startswith("ω") else 1 if name.startswith(("ln G", "B")) else 2
        style = "--" if "fitted blocks" in name else ":" if "ten blocks" in name else "-"
        axes[k].plot(grid, [np.mean(x <= g) for g in grid], style, lw=1.3, label=name)
    for axis, title in zip(axes, ("orientation", "scale and B", "detector"), strict=True):
        axis.fill_between(grid, grid - 0.05, grid + 0.05, color="0.85", lw=0)
        axis.set(xlabel="central interval", xlim=(0, 1), ylim=(0, 1), title=title)
        axis.legend(fontsize=7)
    axes[0].set(ylabel="share of truths inside")
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--d-min", type=float, default=2.3)
    parser.add_argument("--replicas", type=int, default=96, help="images of the block replica")
    parser.add_argument("--group", type=int, default=1, help="images a fit of the detector")
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--run", choices=[PLAIN, LYSOSIM], default=PLAIN)
    parser.add_argument("--out", type=Path, default=Path("coverage.png"))
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    stills, reference, truth = load(options.data, options.images, options.run)
    model, priors, rng = br.load_model("still"), br.Priors(), np.random.default_rng(0)
    with br.ImageReader() as reader:
        run = br.fit_run(stills, reference, reader, model, priors, br.Settings(d_min=options.d_min))
    good = run.status == "converged"
    print(f"{good.sum()} of {len(stills)} images converged")
    draws = br.laplace_draws(run.fit, N_DRAWS, rng=rng)

    rows: dict[str, np.ndarray] = {}
    # orientation: the posterior about the refined one against the truth about the refined one
    error = rotation_error_mrad(run, truth)
    about = draws["rotation_mrad"][:, :, 0] - run.fit.values()["rotation_mrad"][:, 0]
    turned = {"as fitted": about}
    if options.run == LYSOSIM:
        turned["with mean of fitted blocks"] = about + mean_orientation(draws, rng)
        # ten blocks, the first one not turned: their mean varies by 9/100 of a block's variance,
        # and they vary about it by 9/10 − 9/100 of that
        turned["with mean of ten blocks"] = about + mean_orientation(draws, rng, blocks=9)
    for k, axis in enumerate("xyz"):
        for name, x in turned.items():
            rows[f"ω about {axis}, {name}"] = central(x[..., k], -error[:, k])[good]
    sd = run.fit.sd("rotation_mrad")[good, 0]
    print(f"ω: Laplace sd {np.median(sd, 0).round(4)}, error {error[good].std(0).round(4)} mrad")
    values = run.fit.values()
    variance, variance_sd = float(values["speckle_variance"]), run.fit.sd("speckle_variance")
    mosaic_mrad = float(np.median(np.exp(values["log_mosaic_image_mrad"])))
    needed = np.mean(error[good] ** 2 - sd**2)
    print(
        f"η {mosaic_mrad:.3f} mrad, 1/blocks {variance:.4f} ± {float(variance_sd):.4f}:"
        f" mean orientation {mosaic_mrad * np.sqrt(max(variance, 0) / 2):.3f} mrad an axis; beyond"
        f" the posterior {np.sign(needed) * np.sqrt(abs(needed)):.3f} mrad"
    )

    # scale about one common offset, B as it is
    def centred(x):
        return x - np.mean(x[..., good], axis=-1, keepdims=True)

    lnG = centred(draws["log_G"][..., 0])
    true_lnG = centred(np.log(truth.G))
    rows["ln G about its mean"] = central(lnG, true_lnG)[good]
    rows["B about its mean"] = central(centred(draws["B"][..., 0]), centred(truth.B))[good]
    rest = (lnG.mean(0) - true_lnG)[good]
    pull = rest / lnG.std(0)[good]
    print(
        f"ln G: rms {rest.std():.4f}, robust {robust_sd(rest):.4f}, sd {np.median(lnG.std(0)):.4f},"
        f" pulls {pull.std():.2f}, robust {robust_sd(pull):.2f}"
    )

    needed = np.sqrt(max(np.mean(rest**2) - np.mean(lnG.var(0)[good]), 0))
    print(f"ln G: {needed:.4f} beyond the posterior")
    for n_blocks in (10 if options.run == LYSOSIM else 16, 1000):  # do few blocks make it?
        off, off_sd, fit = block_replica(run, model, priors, n_blocks, options.replicas)
        print(
            f"replica with {n_blocks} blocks: ln G off by {off.std():.4f}, sd"
            f" {np.median(off_sd):.4f}, pulls {(off / off_sd).std():.2f}; fitted 1/blocks"
            f" {float(fit.values()['speckle_variance']):.4f}, model error"
            f" {np.exp(float(fit.values()['log_model_error'])):.3f}"
        )

    # what is left is noise of single reflections: two halves of an image show it, without truth
    factor = disagreement(run, model, priors, options.replicas)
    print(f"two halves of the reflections differ by {factor} of their posterior sd")
    for name, label, x, true in (
        ("log_G", "ln G", lnG, true_lnG),
        ("B", "B", centred(draws["B"][..., 0]), centred(truth.B)),
    ):
        wider = x.mean(0) + factor[name] * (x - x.mean(0))
        rows[f"{label}, widened by the halves' difference"] = central(wider, true)[good]

    # detector, from disjoint groups of images
    levels, pulls = [], []
    images = np.flatnonzero(good)
    for first in range(0, len(images) - options.group + 1, options.group):
        some = images[first : first + options.group]
        start = {k: v[some] if v.shape[:1] == good.shape else v for k, v in values.items()}
        obs = infer.Batches([few(run.observations, some)], len(some), len(some))
        fit = br.map_fit(model, obs, priors, init=start)
        fit = br.marginal_fit(model, obs, priors, fit=fit)
        shift = br.laplace_draws(fit, N_DRAWS, rng=rng)["detector_shift_mm"]
        levels.append(central(shift, truth.shift_mm))
        pulls.append((fit.values()["detector_shift_mm"] - truth.shift_mm) / shift.std(0))
    for k, name in enumerate(("beam centre x", "beam centre y", "distance")):
        rows[f"{name}, groups of {options.group}"] = np.array(levels)[:, k]
    print(
        f"detector, {len(levels)} groups: pulls mean {np.mean(pulls, 0).round(2)}, sd"
        f" {np.std(pulls, 0).round(2)}"
    )
    shift, whole = draws["detector_shift_mm"], values["detector_shift_mm"]
    print(f"detector, all images: pulls {((whole - truth.shift_mm) / shift.std(0)).round(2)}")

    print(f"{'':42s}{'n':>5s}" + "".join(f"{100 * p:8.0f} %" for p in LEVELS))
    for name, x in rows.items():
        print(f"{name:42s}{len(x):5d}" + "".join(f"{100 * c:10.1f}" for c in coverage(x)))
    np.savez(options.out.with_suffix(".npz"), pull=pull, rest=rest, error=error, **rows)

    draw(rows, options.out)


if __name__ == "__main__":
    main()
