"""How well do scales with latent intensities merge 395 XFEL stills, and what limits them?

    PYTHONPATH=. python analysis/thermolysin_unmerged.py DATA_FOLDER OUT_FOLDER

DATA_FOLDER holds unmerged_plus.mtz and reference.mtz.  Every row but the last is fitted to the
data alone (Wilson's prior); the reference only judges.
"""

import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import matplotlib
import numpy as np

from bayes_refine import load_model, physics
from bayes_refine.geometry.miller import rows_of
from bayes_refine.io.reference import read_reference
from bayes_refine.io.unmerged_mtz import read_unmerged
from bayes_refine.merging import scaling
from bayes_refine.merging.agreement import pearson
from bayes_refine.merging.observations import ScalingPriors, prepare

SHELLS = ((50, 3), (3, 2.4), (2.4, 2.0), (2.0, 1.8), (50, 1.8))
TINY = 1e-7
CARELESS = {
    "careless, Student-t": (0.665, 0.740, 0.684, 0.475, 0.666),
    "careless, normal": (0.570, 0.761, 0.706, 0.493, 0.621),
}


def ladder(base):
    """Name, priors and curve of each rung: a prior of no width switches an ingredient off."""
    constant = replace(
        base,
        mosaic_spread_mrad=TINY,
        dispersion_angstrom=TINY,
        log_mosaic_spread_sd=TINY,
        log_dispersion_sd=TINY,
        log_width_image_sd=TINY,
        R0_inv_angstrom=3e-4,
    )
    normal = replace(constant, student_t_nu=1e4, log_student_t_nu_sd=TINY)
    mosaic = replace(constant, mosaic_spread_mrad=0.5, log_mosaic_spread_sd=1.5)
    bandwidth = replace(mosaic, dispersion_angstrom=1.5e-3, log_dispersion_sd=1.5)
    gauss, lorentz = physics.gaussian, physics.lorentzian
    return [
        ("G alone, R0, normal errors", replace(normal, B_sd=TINY), gauss),
        ("+ B", normal, gauss),
        ("+ Student-t errors", constant, gauss),
        ("+ width ~ |q| (mosaic)", mosaic, gauss),
        ("+ width ~ |q|² (bandwidth)", bandwidth, gauss),
        ("+ Lorentzian curve", bandwidth, lorentz),
        ("+ width of each image", base, lorentz),
    ]


def main(data_folder, out_folder):
    jax.config.update("jax_enable_x64", True)
    folder, out = Path(data_folder), Path(out_folder)
    out.mkdir(parents=True, exist_ok=True)
    data = read_unmerged(folder / "unmerged_plus.mtz")
    reference = read_reference(folder / "reference.mtz", column="FMODEL_PLUS")
    obs = prepare(data)
    hkl, d = np.asarray(obs.hkl), 1 / np.asarray(obs.norm_q_unique)
    truth = reference.lookup(hkl)
    code, J = np.asarray(obs.code), np.asarray(obs.J)
    rows = {}

    def show(name, values, extra=""):
        at = [(d <= high) & (d >= low) for high, low in SHELLS]
        rows[name] = [pearson(values[k], truth[k]) for k in at]
        print(f"{name:34s}" + "".join(f"{cc:8.3f}" for cc in rows[name]) + f"  {extra}", flush=True)

    print(" " * 34 + "".join(f"{h}-{low}".rjust(8) for h, low in SHELLS))
    count = np.bincount(code)
    show("plain averaging", np.bincount(code, J) / count)
    for name, values in CARELESS.items():
        print(f"{name:34s}" + "".join(f"{cc:8.3f}" for cc in values))
        rows[name] = list(values)

    model, base = load_model("latent"), ScalingPriors()
    wall, cpu = time.perf_counter(), time.process_time()
    fit = scaling.fit_scales(obs, model, base)
    spent = time.perf_counter() - wall, time.process_time() - cpu
    show(
        "posterior mean, Wilson prior",
        fit.posterior.intensity,
        f"{spent[0]:.0f} s wall with compiling, {spent[1]:.0f} s of processor",
    )
    likelihood = np.full(len(hkl), np.nan)
    likelihood[rows_of(fit.merged.hkl, hkl)] = fit.merged.intensity
    show("likelihood only", likelihood)
    for name, (value, sd) in fit.shared.items():
        print(f"    {name}: {np.round(value, 3)} ± {np.round(sd, 3)}")

    wall = time.perf_counter()
    halves = scaling.refit_halves(obs, model, base)
    at = [(d <= high) & (d >= low) for high, low in SHELLS]
    for name, half in (("posterior", halves.posterior), ("likelihood", halves.merged)):
        by_shell = "".join(f"{pearson(*half[k].T):8.3f}" for k in at)
        print(f"{'CC1/2, refitted halves, ' + name:34s}{by_shell}")
    print(f"    {time.perf_counter() - wall:.0f} s wall for both halves")

    with_reference = prepare(data, reference=reference, seed=0)
    known = np.asarray(with_reference.reference.informed)
    fit_reference = scaling.fit_scales(with_reference, load_model("latent_reference"), base)
    free = ~known & np.isfinite(truth)
    values = fit_reference.posterior.intensity
    show("double Wilson, free set", np.where(free, values, np.nan), f"{free.sum()} reflections")
    show("  the same set, Wilson prior", np.where(free, fit.posterior.intensity, np.nan))

    for name, priors, curve in ladder(base):
        rung = scaling.fit_scales(obs, partial(model, partiality=curve), priors)
        show(name, rung.posterior.intensity, f"ln p {rung.fit.log_density:.0f}")
    plot(rows, out / "thermolysin_unmerged.png")


def plot(rows, path):
    """CC to the refined model by shell, a line a row."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(8, 5))
    for name, values in rows.items():
        style = "--" if "careless" in name else ":" if name.startswith("+") else "-"
        ax.plot(range(4), values[:4], style, marker="o", label=f"{name} ({values[4]:.3f})")
    ax.set_xticks(range(4), [f"{high}–{low} Å" for high, low in SHELLS[:4]])
    ax.set_ylabel("CC to the refined model's F²")
    ax.legend(fontsize=6, title="overall in brackets", title_fontsize=7)
    figure.savefig(path, dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    main(*sys.argv[1:])
