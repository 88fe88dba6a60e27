"""What does a learned component find where the physics of the model does not hold?

Runs are simulated from pixels, each with something that the plain model does not know: a tail of
the partiality, an asymmetric one, crystals of two blocks, a shadow on the detector; one with
nothing.  Of each, both families are trained; the table says by how many nats an image each
describes better images that it never saw, the figure what was learned beside the truth.

    python analysis/learned_components.py --images 16 --work runs --out learned_components.png
"""

from __future__ import annotations

import argparse
import json
from dataclasses import fields, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import brentq

import bayes_refine as br
from bayes_refine.learned.component import Component, Family, read_component, write_component
from bayes_refine.learned.training import Training, settings_for, train_component
from bayes_refine.simulation import spots

RUN = br.Simulation(seed=11, mosaic_rad=1e-3, n_pixels=400, d_min=2.6)
FAR = 7.0  # R0_eff, up to which tails are simulated
APART = 1.2  # R0_eff between two blocks
TAIL_PX = 2.0  # of a spot, along x


def gaussian(x):
    return np.exp(-(x**2))


def tail(x):
    """30 % of a Lorentzian."""
    return 0.7 * gaussian(x) + 0.3 / (1 + x**2)


def one_side(x):
    """A tail outside the sphere only."""
    return np.where(x < 0, gaussian(x), 0.6 * gaussian(x) + 0.4 * gaussian(x / 3))


def two_blocks(x):
    """The mean over crystals: blocks of equal weight that lie APART."""
    return (gaussian(x - APART / 2) + gaussian(x + APART / 2)) / (2 * gaussian(APART / 2))


def log_shadow(x_mm, y_mm):
    """A bar beyond x = 12 mm that lets 45 % through, and a slope along y."""
    return -0.8 / (1 + np.exp(-(x_mm - 12) / 2)) - 0.004 * y_mm


def tail_share(x_mm):
    """Of a spot's photons in a tail towards +x, by the place on the detector."""
    return np.clip(0.25 + 0.005 * x_mm, 0.05, 0.45)


def with_tail(simulation, truth, s):
    """Spots with part of their photons TAIL_PX further along x, and wider."""
    s_hat, z = s.frame[:, 0], truth.detector.origin_mm[0, 2]
    ray = s_hat / s_hat[:, 2:] * z
    share = tail_share(ray[:, 0])
    step = TAIL_PX * simulation.pixel_size_mm / simulation.wavelength
    along = s.frame[:, 1:, 0] / np.linalg.norm(ray, axis=1)[:, None] * step
    both = {f.name: np.concatenate([getattr(s, f.name)] * 2) for f in fields(s)}
    both["J"] = np.concatenate([(1 - share) * s.J, share * s.J])
    both["center"] = np.concatenate(
        [s.center - share[:, None] * along, s.center + (1 - share)[:, None] * along]
    )
    both["width"] = np.concatenate([s.width, 1.7 * s.width])
    return type(s)(**both)


CURVES = {
    "nothing": gaussian,
    "tail": tail,
    "one side": one_side,
    "two blocks": two_blocks,
    "shadow": gaussian,
    "spot tail": gaussian,
}


def spots_of(case: str):
    """``predict_spots`` with another curve, or behind a shadow."""

    def found(simulation, truth, image):
        kept, spots.N_WIDTHS = spots.N_WIDTHS, FAR
        try:
            s = spots.predict_spots(simulation, truth, image)
        finally:
            spots.N_WIDTHS = kept
        eff = np.sqrt(spots.relp_covariance(simulation, s.q, s.frame)[:, 0, 0])
        x = s.epsilon_r / eff
        J = s.J * CURVES[case](x) / gaussian(x)
        if case == "shadow":
            s_hat, z = s.frame[:, 0], truth.detector.origin_mm[0, 2]
            J = J * np.exp(log_shadow(*(s_hat[:, :2] / s_hat[:, 2:] * z).T))
        s = replace(s, J=J)
        return with_tail(simulation, truth, s) if case == "spot tail" else s

    return found


def trained(case: str, args) -> dict[Family, Component]:
    """The components of a case; read where an earlier run of this script left them."""
    folder = args.work / case.replace(" ", "_")
    files = {family: folder / f"{family}.eqx" for family in Family}
    if all(path.exists() for path in files.values()):
        return {family: read_component(path) for family, path in files.items()}
    simulation = replace(RUN, n_images=args.images)
    expt = br.simulate_run(simulation, folder, spots_of=spots_of(case))
    with br.ImageReader() as reader:
        prepared = br.prepare(
            br.read_experiments(expt),
            reader,
            br.read_reference(folder / "reference.mtz"),
            d_min=RUN.d_min,
        )
        settings = settings_for(br.Settings(rounds=args.rounds), list(Family))
        run = br.fit(prepared, br.load_model("still"), settings=settings)
    found = {}
    for family, path in files.items():
        found[family] = train_component(run, family, Training(epochs=args.epochs))
        print(f"{case}, {family}: {found[family].origin.evidence}", flush=True)
        write_component(path, found[family])
    return found


def draw_curve(ax, case: str, component: Component) -> None:
    """ln k in units of the width at 1/e: truth, learned with one sd, Gaussian."""
    x = np.linspace(-3, 3, 121)
    value, sd = component.band(lambda m: m.shape(jnp.asarray(x)))
    curve = CURVES[case]

    def level(z):
        return np.log(curve(z)) + np.log(curve(-z)) + 2

    width = brentq(level, 0.05, 6)
    ax.fill_between(x, value - sd, value + sd, alpha=0.3, lw=0)
    ax.plot(x, value, label="learned")
    ax.plot(x, np.log(curve(x * width)), "k", lw=1, label="truth")
    ax.plot(x, -(x**2), "0.6", ls="--", label="Gaussian")
    ax.set(title=case, ylim=(-5, 0.2), xlabel="ε_r over width", ylabel="ln k")


def draw_factor(axes, case: str, component: Component) -> None:
    """ln f over the detector: truth less its mean, learned."""
    frame = component.module.frame
    side = np.linspace(-1, 1, 61) * frame.half_mm
    x, y = np.meshgrid(side + frame.x_mm, side + frame.y_mm)
    norm_q = np.hypot(x, y) / (RUN.distance_mm * RUN.wavelength)
    value, sd = component.band(lambda m: m.log_factor(x, y, norm_q, 0.5))
    truth = log_shadow(x, y) if case == "shadow" else 0 * x
    truth = truth - np.polyval(np.polyfit(norm_q.ravel() ** 2, truth.ravel(), 1), norm_q**2)
    off = value - truth
    print(
        f"{case}: rms of ln f {truth.std():.3f}, error {off.std():.3f}, "
        f"rms error over band {np.sqrt(np.mean((off / sd) ** 2)):.2f}"
    )
    for ax, values, name in zip(axes, (truth, value), ("truth", "learned"), strict=True):
        ax.imshow(values, vmin=-0.8, vmax=0.5, extent=(side[0], side[-1], side[-1], side[0]))
        ax.set(title=f"{case}: ln f, {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--cases", nargs="*", default=list(CURVES), choices=list(CURVES))
    parser.add_argument("--work", type=Path, default=Path("learned_components"))
    parser.add_argument("--out", type=Path, default=Path("learned_components.png"))
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    found = {case: trained(case, args) for case in args.cases}
    table = {
        case: {
            str(family): [c.origin.evidence.total, c.origin.evidence.se, args.images]
            for family, c in of_case.items()
        }
        for case, of_case in found.items()
    }
    print(f"{'nats an image':16}{'partiality':>20}{'correction':>20}")
    for case, row in table.items():
        cells = (f"{total / n:+.2f} ± {se / n:.2f}" for total, se, n in row.values())
        print(f"{case:16}" + "".join(f"{cell:>20}" for cell in cells))
    args.out.with_suffix(".json").write_text(json.dumps(table, indent=1))
    figure, axes = plt.subplots(
        2, max(len(found), 2), figsize=(3.4 * max(len(found), 2), 6), layout="constrained"
    )
    for ax, (case, of_case) in zip(axes[0], found.items(), strict=False):
        draw_curve(ax, case, of_case[Family.partiality])
    axes[0, 0].legend()
    shown = "shadow" if "shadow" in found else next(iter(found))
    draw_factor(axes[1, :2], shown, found[shown][Family.correction])
    for ax in axes[1, 2:]:
        ax.set_axis_off()
    figure.savefig(args.out, dpi=120)


if __name__ == "__main__":
    main()
