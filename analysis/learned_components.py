"""What does a learned component find where the physics of the model does not hold?

Runs are simulated from pixels, each with something that the plain model does not know: a tail of
the partiality, an asymmetric one, crystals of two blocks, a shadow on the detector, a shadow and a
tilted sheet of liquid that absorbs, spots with a tail to one side; one with nothing.  Of each,
families of components are trained on a plain fit, and the run is fitted again with the one that
gains most on images held out (with nothing to learn, this shows what a component costs).

The table says by how many nats an image each component describes better images that it never saw
(of a profile: the pixels of their strong spots), what training cost, and, before and after, R1(I)
and CC to the truth, pulls of intensities, and the model's own error, which is what is left.
The figure shows what was learned beside the truth.

    python analysis/learned_components.py --images 16 --work runs --out learned_components.png
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import brentq

import bayes_refine as br
from bayes_refine.fitting.tables import usable_images
from bayes_refine.learned.component import (
    Component,
    Family,
    read_component,
    settings_with,
    with_components,
    write_component,
)
from bayes_refine.learned.training import Training, settings_for, train_component
from bayes_refine.merging.agreement import pearson, r1_intensity
from bayes_refine.merging.average import merge
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


def log_sheet(x_mm, y_mm):
    """Liquid of 0.6 absorption lengths, its normal 40° from the beam, in the plane of x."""
    ray = np.hypot(np.hypot(x_mm, y_mm), RUN.distance_mm)
    along = np.sin(np.radians(40)) * x_mm + np.cos(np.radians(40)) * RUN.distance_mm
    return -0.6 * ray / along


LOG_FACTORS = {
    "shadow": log_shadow,
    "shadow and jet": lambda x_mm, y_mm: log_shadow(x_mm, y_mm) + log_sheet(x_mm, y_mm),
}


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
    "shadow and jet": gaussian,
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
        if case in LOG_FACTORS:
            s_hat, z = s.frame[:, 0], truth.detector.origin_mm[0, 2]
            J = J * np.exp(LOG_FACTORS[case](*(s_hat[:, :2] / s_hat[:, 2:] * z).T))
        s = replace(s, J=J)
        return with_tail(simulation, truth, s) if case == "spot tail" else s

    return found


@dataclass(frozen=True)
class Outcome:
    """Of a fit against the truth: R1(I), CC, robust sd of the pulls of intensities, model error."""

    R1: float
    CC: float
    pull: float
    model_error: float
    seconds: float


def outcome(run: br.RunFit, truth: br.Reference, seconds: float) -> Outcome:
    """Intensities are merged by inverse variance at fixed scales."""
    r = run.reflections
    rows = np.flatnonzero(r.measured & usable_images(run)[r.image])
    hkl = br.asu_map(r.hkl[rows], truth.space_group)[0]
    found = merge(hkl, r.J[rows], r.variance[rows], r.scale[rows], r.image[rows], seed=0)
    known = truth.lookup(found.hkl)
    use = np.isfinite(known) & (found.sigma < 4 * np.nanmean(known))
    I, sd, known = found.intensity[use], found.sigma[use], known[use]  # noqa: E741
    k = np.median(known / I)
    z = (k * I - known) / (k * sd)
    pull = float(np.diff(np.quantile(z, [0.16, 0.84]))[0] / 2)
    error = br.shared_values(run)["model_error"]["value"]
    cc = pearson(I, known)
    return Outcome(r1_intensity(I, known, 1 / sd), cc, pull, error, seconds)


def settings_of(args) -> br.Settings:
    return br.Settings(rounds=args.rounds)


def studied(case: str, args) -> dict[str, Any]:
    """Components of a case, their cost, and the fits; read where an earlier run left them."""
    folder = args.work / case.replace(" ", "_")
    record = folder / "record.json"
    if record.exists():
        found = json.loads(record.read_text())
        found["components"] = {f: read_component(folder / f"{f}.eqx") for f in found["seconds"]}
        return found
    simulation = replace(RUN, n_images=args.images)
    expt = br.simulate_run(simulation, folder, spots_of=spots_of(case))
    truth = br.read_reference(folder / "reference.mtz")
    families = [Family(name) for name in args.families]
    components, seconds = {}, {}
    with br.ImageReader() as reader:
        prepared = br.prepare(br.read_experiments(expt), reader, truth, d_min=RUN.d_min)
        begun = time.process_time()
        settings = settings_for(settings_of(args), families)
        run = br.fit(prepared, br.load_model("still"), settings=settings)
        fits = {"plain": asdict(outcome(run, truth, time.process_time() - begun))}
        for family in families:
            begun = time.process_time()
            try:
                one = train_component(run, family, Training(epochs=args.epochs))
            except br.InputError as error:  # behind a shadow there may be too few strong spots
                print(f"{case}, {family}: {error}", flush=True)
                continue
            seconds[str(family)] = time.process_time() - begun
            print(f"{case}, {family}: {one.origin.evidence}", flush=True)
            write_component(folder / f"{family}.eqx", one)
            components[str(family)] = one
        best = max(components.values(), key=lambda c: c.origin.evidence.total)
        begun = time.process_time()
        model = with_components(br.load_model("still"), [best])
        run = br.fit(prepared, model, settings=settings_with(settings_of(args), [best]))
        fits[str(best.family)] = asdict(outcome(run, truth, time.process_time() - begun))
    record.write_text(json.dumps({"seconds": seconds, "fits": fits}, indent=1))
    return {"seconds": seconds, "fits": fits, "components": components}


def table(found: dict[str, dict[str, Any]]) -> str:
    """A row for each case and component, then one for each fit."""
    rows = [f"{'':14}{'nats an image':>24}{'CPU s':>8}"]
    for case, of_case in found.items():
        for family, one in of_case["components"].items():
            evidence, n = one.origin.evidence, len(one.origin.evidence.nats)
            gain = f"{evidence.total / n:+.2f} ± {evidence.se / n:.2f}"
            rows.append(f"{case:14}{family:12}{gain:>20}{of_case['seconds'][family]:8.0f}")
    rows.append(f"{'':14}{'fit':12}{'R1(I)':>8}{'CC':>8}{'pull':>8}{'error':>8}{'CPU s':>8}")
    for case, of_case in found.items():
        for name, fit in of_case["fits"].items():
            numbers = f"{fit['R1']:8.3f}{fit['CC']:8.4f}{fit['pull']:8.2f}{fit['model_error']:8.3f}"
            rows.append(f"{case:14}{name:12}{numbers}{fit['seconds']:8.0f}")
    return "\n".join(rows)


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
    truth = LOG_FACTORS[case](x, y) if case in LOG_FACTORS else 0 * x

    def gauged(z):
        """z without what G and B describe, a constant and a slope against 1/d²."""
        return z - np.polyval(np.polyfit(norm_q.ravel() ** 2, z.ravel(), 1), norm_q**2)

    truth, value = gauged(truth), gauged(value)
    off = value - truth
    print(
        f"{case}: rms of ln f {truth.std():.3f}, error {off.std():.3f}, "
        f"rms error over band {np.sqrt(np.mean((off / sd) ** 2)):.2f}"
    )
    for ax, values, name in zip(axes, (truth, value), ("truth", "learned"), strict=True):
        ax.imshow(values, vmin=-0.8, vmax=0.5, extent=(side[0], side[-1], side[-1], side[0]))
        ax.set(title=f"{case}: ln f, {name}")


def draw_profile(ax, component: Component) -> None:
    """Photons along x through a spot in the middle of the detector: truth, learned, Gaussian."""
    module, share = component.module, tail_share(component.module.frame.x_mm)
    r, sd = np.linspace(-3, 5, 81), module.core_px
    here = module.frame.x_mm, module.frame.y_mm
    value, band = component.band(lambda m: m.density(r, 0 * r, *here))
    truth = sum(
        w / (2 * np.pi * s**2) * gaussian((r - x) / (np.sqrt(2) * s))
        for w, x, s in (
            (1 - share, -share * TAIL_PX, sd),
            (share, (1 - share) * TAIL_PX, 1.7 * sd),
        )
    )
    ax.fill_between(r, value - band, value + band, alpha=0.3, lw=0)
    ax.plot(r, value, label="learned")
    ax.plot(r, truth, "k", lw=1, label="truth")
    ax.set(title="spot tail", xlabel="x from the centre (px)", ylabel="share of photons (px⁻²)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--cases", nargs="*", default=list(CURVES), choices=list(CURVES))
    families = [str(family) for family in Family]
    parser.add_argument("--families", nargs="*", default=families, choices=families)
    parser.add_argument("--work", type=Path, default=Path("learned_components"))
    parser.add_argument("--out", type=Path, default=Path("learned_components.png"))
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    found = {case: studied(case, args) for case in args.cases}
    print(table(found))
    figure, axes = plt.subplots(
        2, max(len(found), 5), figsize=(3.4 * max(len(found), 5), 6), layout="constrained"
    )
    of = {case: one["components"] for case, one in found.items()}
    for ax, case in zip(axes[0], [c for c in of if "partiality" in of[c]], strict=False):
        draw_curve(ax, case, of[case]["partiality"])
        ax.legend(fontsize=7)
    lower = iter(axes[1])
    for shown in [case for case in LOG_FACTORS if "correction" in of.get(case, {})]:
        draw_factor((next(lower), next(lower)), shown, of[shown]["correction"])
    if "profile" in of.get("spot tail", {}):
        draw_profile(next(lower), of["spot tail"]["profile"])
    for ax in axes.flat:
        if not ax.has_data():
            ax.set_axis_off()
    figure.savefig(args.out, dpi=120)


if __name__ == "__main__":
    main()
