"""What breaks which likelihood first, and by how much?

From the clean fit of a run each disturbance is measured and fitted again, by both likelihoods,
and the change of ln G, ln R0, ln R1 and the orientation is counted in units of its own clean
posterior sd (rms over images): shoeboxes with 1 and 2 pixels less around, with 2 and 4 more, the
ring of background so much further out, a background 5 % off, hot pixels, a second lattice,
reference intensities that are wrong by a factor of 3.  Wrong starts go through the whole loop;
they and errors against the truth need a run whose truth is known.

    python analysis/robustness.py {plain,simulated,thermolysin} --images 12 --out robustness.png
"""

from __future__ import annotations

import argparse
import json
import zlib
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from known_run import SHARED, excitation_error, load
from map_vs_per_pixel import simulated
from pixel_start import at_mode, thermolysin

import bayes_refine as br
from bayes_refine import infer
from bayes_refine.fitting import measure_run
from bayes_refine.fitting.state import geometry_of, moved
from bayes_refine.geometry.crystal import Crystal, rotation_matrix
from bayes_refine.measuring import statistics
from bayes_refine.per_pixel import compare, curvature, pixel_noise
from bayes_refine.per_pixel.fit import PixelModel, fit_pixels
from bayes_refine.per_pixel.pixels import frozen, pixels_of

FACTORED, PER_PIXEL = br.load_model("still"), br.load_model("per_pixel")
METHODS = ("factored", "Poisson", "expected variance", "observed variance")
NOISES = {
    "Poisson": pixel_noise.poisson,
    "expected variance": pixel_noise.expected_variance,
    "observed variance": pixel_noise.observed_variance,
}
NAMES = ("log_G", "log_R0", "log_R1", "rotation_mrad")


class Disturbed(br.ImageReader):
    """Gives images that something has happened to: a function of pixels, still and rng."""

    def __init__(self, change, gain):
        super().__init__()
        self.change, self.gain = change, gain

    def read(self, still):
        pixels, valid = super().read(still)
        rng = np.random.default_rng(zlib.crc32(still.identifier.encode()))
        return self.change(pixels, still, rng, super().read), valid


def hot(share, counts=200):
    """A share of the pixels with so many counts more."""

    def change(pixels, still, rng, read):
        return pixels + counts * (rng.random(pixels.shape) < share)

    return change


def second_lattice(stills, share):
    """Another crystal's diffraction on top, with a share of its photons (thinned, so Poisson)."""
    others = {s.identifier: stills[(i + 1) % len(stills)] for i, s in enumerate(stills)}

    def change(pixels, still, rng, read):
        other, _ = read(others[still.identifier])
        return pixels + rng.binomial(np.maximum(other, 0).astype(int), share)

    return change


@contextmanager
def other_boxes(signal=0, ring=0):
    """Shoeboxes with so many empty pixels more around, or a ring so many pixels further out: the
    first have nothing to say, the second are other pixels that say what the background is.

    What is a neighbour's stays as it was: a spot that loses its own pixels loses information.
    Gives the radii (px) that were used.
    """
    plain, radii = measure_run.shoebox_for_width, []

    def other(R1_px):
        box = plain(R1_px)
        radii.append(box.signal_radius + signal)
        return replace(
            box,
            signal_radius=radii[-1],
            ring_inner=box.ring_inner + ring,
            ring_outer=box.ring_outer + ring,
        )

    measure_run.shoebox_for_width = other
    yield radii
    measure_run.shoebox_for_width = plain


@contextmanager
def wrong_background(factor):
    """The ring says so many times what it should."""
    plain = statistics.ring_background

    def wrong(*args):
        background, *rest = plain(*args)
        return factor * background, *rest

    statistics.ring_background = wrong
    jax.clear_caches()
    yield
    statistics.ring_background = plain
    jax.clear_caches()


def wrong_reference(reference, share, factor, seed=0):
    """A share of the unique reflections stronger or weaker by a factor."""
    rng = np.random.default_rng(seed)
    n = len(reference.intensity)
    change = np.where(rng.random(n) < 0.5, factor, 1 / factor)
    return replace(
        reference,
        intensity=reference.intensity * np.where(rng.random(n) < share, change, 1.0),
    )


def refit(fitted, reference, reader, settings):
    """Both likelihoods on what is measured where a clean fit ended: {method: Fit}."""
    run, measurements, state, priors = at_mode(fitted, reference, reader, FACTORED, settings)
    found = {
        "factored": br.map_fit(FACTORED, measurements.observations, priors, init=state, exact=False)
    }
    pixels = pixels_of(run, measurements, state, priors)
    pixels = frozen(pixels, infer.evaluate(PER_PIXEL, state, pixels, priors)["spots"])
    for name, noise in NOISES.items():
        found[name] = curvature.pixel_fit(PER_PIXEL, noise, pixels, priors, state)
    return found


def change_of(fits, clean):
    """{method: {unknown: rms change in clean sd}}, and that of the other methods' own sd."""
    out = {}
    for method in METHODS:
        new, old = fits[method].values(), clean[method].values()
        out[method] = {
            n: float(np.sqrt(np.mean(((new[n] - old[n]) / clean[method].sd(n)) ** 2)))
            for n in NAMES
        }
    return out


def errors(fits, fitted, truth):
    """{method: (median rms ε_r error 1e-5 Å⁻¹, robust sd of ln G − true)}; NaN with no truth."""
    if truth is None:
        return dict.fromkeys(fits, (np.nan, np.nan))
    out = {}
    for method, fit in fits.items():
        values = fit.values()
        stills = moved(fitted.indexed, geometry_of(fitted.indexed, values))
        rms = near_sphere_rms(stills, fitted.reflections, truth)
        log_G = values["log_G"][:, 0] - np.log(truth.G)
        out[method] = 1e5 * float(np.median(rms)), compare.robust_sd(log_G)
    return out


def near_sphere_rms(stills, reflections, truth):
    """(n,) rms error of ε_r near the sphere, Å⁻¹."""
    rms = []
    for i, still in enumerate(stills):
        hkl = reflections.hkl[reflections.image == i]
        true = excitation_error(truth.A[i], hkl, still.beam.s0)
        now = excitation_error(still.crystal.A, hkl, still.beam.s0)
        rms.append(np.sqrt(np.mean((now - true)[np.abs(true) < 3e-4] ** 2)))
    return np.array(rms)


def loops(reference, reader, settings):
    """The whole loop of each method, a function of the stills."""
    rest = reference, reader, FACTORED

    def by_pixel(noise):
        return lambda stills: fit_pixels(
            stills, *rest, PixelModel(PER_PIXEL, noise), br.Priors(), settings
        )[0]

    return {
        "factored": lambda stills: br.fit_run(stills, *rest, br.Priors(), settings),
        "Poisson": by_pixel(pixel_noise.poisson),
        "observed variance": by_pixel(pixel_noise.observed_variance),
    }


def wrong_starts(stills, reference, truth, angles, settings):
    """{angle mrad: {method: share of images with a rms ε_r error below 1e-4 Å⁻¹}}."""
    axes = np.random.default_rng(0).standard_normal((len(stills), 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    found = {}
    for angle in angles:
        turned = [
            replace(s, crystal=Crystal(rotation_matrix(angle * v) @ s.crystal.A, s.crystal.hall))
            for s, v in zip(stills, axes, strict=True)
        ]
        found[angle] = {}
        with br.ImageReader() as reader:
            for name, loop in loops(reference, reader, settings).items():
                run = loop(turned)
                rms = near_sphere_rms(run.stills, run.reflections, truth)
                found[angle][name] = float(np.mean(rms < 1e-4))
        shares = ", ".join(f"{name} {100 * x:.0f} %" for name, x in found[angle].items())
        print(f"start {angle:.1f} mrad further off: {shares}", flush=True)
    return found


def load_run(options, reader):
    """Stills, reference, truth (None where it is not known) and settings of a run."""
    settings = br.Settings(d_min=2.3)
    if options.run == "plain":
        return *load(options.data, options.images), settings
    if options.run == "simulated":
        return *simulated(options.folder, n_images=options.images), settings
    stills, reference, read_noise = thermolysin(options.data, reader)
    return stills, reference, None, replace(settings, read_noise=read_noise)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", choices=["plain", "simulated", "thermolysin"])
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--angles", type=float, nargs="*", default=[0.0, 2.0, 4.0, 8.0])
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--folder", type=Path, default=Path("robustness_run"), help="scratch")
    parser.add_argument("--out", type=Path, default=Path("robustness.png"))
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    with br.ImageReader() as reader:
        stills, reference, truth, settings = load_run(options, reader)
        gain = reader.gain
        fitted = br.fit_run(stills, reference, reader, FACTORED, br.Priors(), settings)
        clean = refit(fitted, reference, reader, settings)
        print("clean:", errors(clean, fitted, truth), flush=True)
        changes, against = {}, {"clean": errors(clean, fitted, truth)}

        def tell(name, fits):
            changes[name], against[name] = change_of(fits, clean), errors(fits, fitted, truth)
            for method in METHODS:
                row = ", ".join(f"{n} {changes[name][method][n]:.2f}" for n in NAMES)
                rms, sd = against[name][method]
                print(f"{name:22s} {method:18s} {row} sd; ε_r {rms:.2f}, ln G {sd:.3f}", flush=True)

        for factor in (0.95, 1.05):
            with wrong_background(factor):
                tell(f"background × {factor}", refit(fitted, reference, reader, settings))
        bad = wrong_reference(reference, 0.2, 3.0)
        tell("20 % of I_ref × 3 or ⅓", refit(fitted, bad, reader, settings))
        for pixels in (-2, -1, 2, 4):
            with other_boxes(signal=pixels) as radii:
                fits = refit(fitted, reference, reader, settings)
            tell(f"boxes {pixels:+d} px, to {radii[-1]:.0f}", fits)
        for pixels in (2, 4):
            with other_boxes(ring=pixels):
                tell(f"ring {pixels:+d} px", refit(fitted, reference, reader, settings))
    disturbances = {
        "0.01 % hot pixels": hot(1e-4),
        "0.1 % hot pixels": hot(1e-3),
        "second lattice, 30 %": second_lattice(stills, 0.3),
        "second lattice, 100 %": second_lattice(stills, 1.0),
    }
    for name, change in disturbances.items():
        with Disturbed(change, gain) as reader:
            tell(name, refit(fitted, reference, reader, settings))
    starts = {}
    if truth is not None:
        starts = wrong_starts(stills, reference, truth, options.angles, settings)
    options.out.with_suffix(".json").write_text(
        json.dumps({"change_in_sd": changes, "against_truth": against, "starts": starts}, indent=1)
    )
    draw(changes, against).savefig(options.out, dpi=110)


def draw(changes, against):
    figure, axes = plt.subplots(2, 3, figsize=(17, 9), layout="constrained")
    y = np.arange(len(changes))
    for axis, name in zip(axes.flat, NAMES, strict=False):
        for k, method in enumerate(METHODS):
            values = [max(row[method][name], 1e-3) for row in changes.values()]
            axis.barh(y + (k - 1.5) * 0.2, values, 0.2, label=method)
        axis.axvline(0.3, color="k", lw=0.8, ls=":")
        axis.set_xscale("log")
        axis.set_yticks(y, list(changes), fontsize=8)
        axis.invert_yaxis()
        axis.set_title(f"change of {name}, in clean posterior sd")
    y = np.arange(len(against))
    for axis, j, title in zip(
        axes.flat[4:], (0, 1), ("rms ε_r error, 1e-5 Å⁻¹", "ln G error, robust sd"), strict=True
    ):
        for k, method in enumerate(METHODS):
            axis.barh(y + (k - 1.5) * 0.2, [row[method][j] for row in against.values()], 0.2)
        axis.set_yticks(y, list(against), fontsize=8)
        axis.invert_yaxis()
        axis.set_title(title)
        axis.set_visible(bool(np.isfinite(list(against["clean"].values())).any()))
    axes[0, 0].legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main()
