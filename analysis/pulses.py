"""What do pulses of different wavelength, spectra with a tail and pulse energies do to a fit?

Simulated runs, 16 images, the reference the truth.

- *jitter*: each shot has a wavelength of its own, sd 0.2 %, and was indexed with the mean one,
  which puts it into the cell.  Fits with the wavelength as stated; as an unknown of each image,
  cells alike to 0.05 % (`wavelength_jitter`, `strain_sd`); read for each frame from NXmx files.
  Printed: the slope of the cell's error with ln λ (−1 where the cell takes all), the rms error
  of the cell's size, and error and pull of ln λ.
- *tail*: 85 % of the photons in a line of rms 0.05 %, 15 % in an exponential tail of 1 % towards
  longer waves; the file states the line.  Then with the spectrum in the file, whose mean and rms
  are taken.  Printed: what becomes of cells, bandwidth and distance, and what the report says.
- *monitor*: weak crystals, G = pulse energy × size of crystal (sd 0.2).  Error and sd of ln G
  without and with the monitor.

    python analysis/pulses.py --out pulses.png [jitter tail monitor]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import h5py
import jax
import matplotlib.pyplot as plt
import numpy as np

import bayes_refine as br
from bayes_refine.fitting.tables import image_table
from bayes_refine.io.pulse_energies import with_pulse_energies
from bayes_refine.report.glance import attention
from bayes_refine.simulation.pixels import background_photons, spot_photons
from bayes_refine.simulation.spots import predict_spots
from bayes_refine.simulation.truth import SimulatedTruth, Simulation, draw_truth

jax.config.update("jax_enable_x64", True)
JITTER = 2e-3
TAIL, DECAY = 0.15, 0.01
SIZE_SD = 0.2
BEAM = "entry/instrument/beam"
Spectrum = list[tuple[float, float, float]]  # weight, λ over nominal, rms fraction


def run_on_disk(simulation: Simulation, spectra: list[Spectrum], out: Path) -> SimulatedTruth:
    """A run whose images are sums over the lines of their spectra, indexed with the mean λ."""
    expt = br.simulate_run(simulation, out)
    rng = np.random.default_rng(simulation.seed)
    truth = draw_truth(simulation, rng=rng)
    document = json.loads(expt.read_text())
    with h5py.File(out / "master.h5", "r+") as file:
        for i, spectrum in enumerate(spectra):
            expected = background_photons(simulation, truth.detector)
            for weight, factor, rms in spectrum:
                length = simulation.wavelength * factor
                line = replace(simulation, wavelength=length, bandwidth=rms)
                beam = replace(truth.beam, wavelength=length, bandwidth=rms)
                seen = replace(truth, beam=beam, G=truth.G * weight)
                spots = predict_spots(line, seen, i)
                expected = expected + spot_photons(truth.detector, beam, spots)
            file["entry/data/data"][i] = rng.poisson(expected[0])
            mean = sum(w * f for w, f, _ in spectrum)
            for axis in "abc":
                name = f"real_space_{axis}"
                document["crystal"][i][name] = (
                    np.array(document["crystal"][i][name]) / mean
                ).tolist()
    expt.write_text(json.dumps(document))
    return truth


def fitted(folder: Path, d_min: float, priors: br.Priors, monitor: Path | None = None):
    """A fit to the run's reference, and the content of its summary."""
    experiments = br.read_experiments(folder / "indexed.expt")
    if monitor is not None:
        stills = with_pulse_energies(experiments.stills, monitor)
        experiments = replace(experiments, stills=stills)
    reference = br.read_reference(folder / "reference.mtz", d_min=0.97 * d_min)
    with br.ImageReader(gain=1.0) as reader:
        ready = br.prepare(experiments, reader, reference, d_min=d_min, read_noise=0.0)
        run = br.fit(ready, br.load_model("still"), priors)
        with tempfile.TemporaryDirectory() as out:
            summary = br.write_results(out, run, ready, pictures=False)
    return run, summary


def sizes(stills, truth: SimulatedTruth) -> np.ndarray:
    """ln of each cell's edge over the true one."""
    true = np.abs(np.linalg.det(truth.A)) ** (-1 / 3)
    return np.log([s.crystal.cell.volume ** (1 / 3) for s in stills] / true)


def jitter(simulation: Simulation, d_min: float, folder: Path, ax) -> None:
    rng = np.random.default_rng(11)
    off = JITTER * rng.standard_normal(simulation.n_images)
    spectra = [[(1.0, float(np.exp(x)), simulation.bandwidth)] for x in off]
    truth = run_on_disk(simulation, spectra, folder)
    alike = br.Priors(strain_sd=5e-4)
    cases = {
        "as stated": br.Priors(),
        "an unknown, cells alike": replace(alike, wavelength_jitter=JITTER),
        "read from the file": br.Priors(),
    }
    print("wavelength            slope of cell  rms cell (10⁻⁴)  rms ln λ (10⁻⁴)  pull of ln λ")
    for name, priors in cases.items():
        if name == "read from the file":
            with h5py.File(folder / "master.h5", "r+") as file:
                del file[BEAM]["incident_wavelength"]
                file[BEAM]["incident_wavelength"] = simulation.wavelength * np.exp(off)
        run, _ = fitted(folder, d_min, priors)
        cell, frames = sizes(run.stills, truth), np.array([s.frame for s in run.stills])
        slope = np.polyfit(off[frames], cell, 1)[0]
        found = np.log([s.beam.wavelength / simulation.wavelength for s in run.stills])
        error, pull = found - off[frames], np.nan
        if priors.wavelength_jitter > 0:
            pull = float(np.std(error / run.fit.sd("log_wavelength")[:, 0]))
        rms = [1e4 * np.sqrt(np.mean(x**2)) for x in (cell, error)]
        print(f"{name:24s} {slope:+10.2f} {rms[0]:14.1f} {rms[1]:16.1f} {pull:14.2f}", flush=True)
        ax.plot(1e3 * off[frames], 1e3 * cell, "o", ms=4, label=f"{name} ({slope:+.2f})")
    ax.set(xlabel="ln λ of the shot over the mean (10⁻³)", ylabel="ln cell over truth (10⁻³)")
    ax.legend(title="wavelength (slope)")


def tail(simulation: Simulation, d_min: float, folder: Path, ax) -> None:
    steps = (np.arange(8) + 0.5) / 8
    lines = [(TAIL / 8, 1 - DECAY * float(np.log(1 - x)), DECAY / 8) for x in steps]
    spectrum = [(1 - TAIL, 1.0, simulation.bandwidth), *lines]
    truth = run_on_disk(simulation, [spectrum] * simulation.n_images, folder)
    for case in ("the line's wavelength", "mean and rms of the spectrum"):
        if case.startswith("mean"):
            weight, factor, _ = np.array(spectrum).T
            with h5py.File(folder / "master.h5", "r+") as file:
                del file[BEAM]["incident_wavelength"]
                file[BEAM]["incident_wavelength"] = simulation.wavelength * factor
                file[BEAM]["incident_wavelength_weights"] = weight
        run, summary = fitted(folder, d_min, br.Priors())
        cell, found = sizes(run.stills, truth), summary["globals"]["bandwidth"]
        distance = summary["globals"]["distance_mm"]
        print(
            f"{case}: cells {1e4 * cell.mean():+.1f} ± {1e4 * cell.std():.1f}·10⁻⁴, bandwidth "
            f"{found['value']:.2e} ± {found['sd']:.0e}, distance "
            f"{distance['value'] - simulation.distance_mm:+.3f} ± {distance['sd']:.3f} mm"
        )
        for line in attention(summary, image_table(run)):
            print("   ", line, flush=True)
        ax.plot(1e4 * cell, "o", ms=4, label=case)
    ax.set(xlabel="image", ylabel="ln cell over truth (10⁻⁴)")
    ax.legend(title="a spectrum with a tail")


def monitor(simulation: Simulation, d_min: float, folder: Path, ax) -> None:
    simulation = replace(simulation, mean_photons=25.0)
    truth = run_on_disk(
        simulation, [[(1.0, 1.0, simulation.bandwidth)]] * simulation.n_images, folder
    )
    rng = np.random.default_rng(12)
    energy = truth.G * np.exp(SIZE_SD * rng.standard_normal(simulation.n_images))
    file = folder / "energies.csv"
    file.write_text("".join(f"{x:.6f}\n" for x in energy))
    print("monitor    rms ln G  median sd  pull")
    for name, given in (("without", None), ("with", file)):
        run, _ = fitted(folder, d_min, br.Priors(log_G_monitor_sd=SIZE_SD), given)
        frames = np.array([s.frame for s in run.stills])
        error = run.fit.values()["log_G"][:, 0] - np.log(truth.G[frames])
        error -= np.median(error)
        sd = run.fit.sd("log_G")[:, 0]
        rms, pull = np.sqrt(np.mean(error**2)), np.std(error / sd)
        print(f"{name:10s} {rms:8.3f} {np.median(sd):10.3f} {pull:5.2f}", flush=True)
        ax.errorbar(np.arange(len(error)), error, sd, fmt="o", ms=4, label=f"{name} monitor")
    ax.set(xlabel="image", ylabel="error of ln G")
    ax.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", nargs="*", default=["jitter", "tail", "monitor"])
    parser.add_argument("--out", type=Path, default=Path("pulses.png"))
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--d-min", type=float, default=2.8)
    args = parser.parse_args()
    simulation = Simulation(n_images=args.images, seed=5, bandwidth=5e-4, d_min=args.d_min)
    figure, axes = plt.subplots(1, len(args.which), figsize=(5 * len(args.which), 4), squeeze=False)
    for name, ax in zip(args.which, axes[0], strict=True):
        with tempfile.TemporaryDirectory() as folder:
            globals()[name](simulation, args.d_min, Path(folder), ax)
    figure.tight_layout()
    figure.savefig(args.out, dpi=120)


if __name__ == "__main__":
    main()
