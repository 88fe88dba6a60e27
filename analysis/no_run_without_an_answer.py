"""Does every run end with results, and do images that are not what they claim spoil the others?

Seeds × {with, without a reference} × photons of a mean reflection, 20 images each, from pixels to
intensities; then a run of which a third of the images are blank, misindexed by 5° or of another
crystal, against the same run without these images.  Drawn for each of their images: the evidence
for its indexing, ln p over that of permuted intensities, against what a right image would have.

python analysis/no_run_without_an_answer.py --seeds 12 --photons 30 100 1000
python analysis/no_run_without_an_answer.py --thirds --out thirds.png
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import jax
import matplotlib.pyplot as plt
import numpy as np

import bayes_refine as br
from bayes_refine import demo
from bayes_refine.fitting.claims import Z_CHANCE, informed_unknowns
from bayes_refine.fitting.index_alike import stills_alike
from bayes_refine.fitting.loop import RunFit, refine
from bayes_refine.fitting.merge_fit import intensities_of_fit, measured_of
from bayes_refine.fitting.one_round import Round, one_round
from bayes_refine.fitting.over_batches import claims_of_run
from bayes_refine.fitting.problem import prepare_run
from bayes_refine.fitting.state import tails
from bayes_refine.fitting.tables import mean_cell, usable_images
from bayes_refine.geometry.crystal import rotation_matrix
from bayes_refine.geometry.experiments import Still
from bayes_refine.simulation.files import simulate_run
from bayes_refine.simulation.truth import Simulation, random_rotations
from bayes_refine.util.progress import SILENT

D_MIN = 3.5
BASE = Simulation(n_images=20, n_pixels=220, distance_mm=70.0, d_min=D_MIN)
KINDS = ("blank", "misindexed", "another crystal")


@dataclass(frozen=True)
class Data:
    """A simulated run: stills as indexed, the reference, the folder with the truth."""

    stills: tuple[Still, ...]
    reference: br.Reference
    folder: Path


def simulated(folder: Path, simulation: Simulation) -> Data:
    """A run written to and read from a folder."""
    expt = simulate_run(simulation, folder)
    stills = br.read_experiments(expt).stills
    return Data(stills, br.read_reference(folder / "reference.mtz"), folder)


class Evidence:
    """A round of a fit that keeps what ``claims`` says before the last round, which leaves out
    images that are not what they claim.

    Attributes:
        found, right, chance_sd: (n,) ln odds of the indexing of each image against permuted
            intensities; of an image that is right; sd of the permutations.
    """

    found = right = chance_sd = np.zeros(0)

    def __call__(self, run, state, priors, status, plan, margin, last, progress) -> Round:
        done = one_round(run, state, priors, status, plan, margin, last, progress)
        if not last:
            claims = claims_of_run(run, done.measurements, done.state, priors)
            k = informed_unknowns(done.fit)
            self.found, self.right = claims.over_chance - k, claims.expected - k / 2
            self.chance_sd = claims.chance_sd
        return done


def fitted(
    stills, reference: br.Reference | None, step=one_round
) -> tuple[RunFit, dict[str, float]]:
    """A fit from pixels to intensities, and IPOST by hkl."""
    settings, priors = br.Settings(d_min=D_MIN), br.Priors()
    with br.ImageReader() as reader:
        ready = prepare_run(stills, reference, reader, br.load_model("still"), priors, settings)
        # a lattice without more symmetry than the crystal: there is one way of indexing
        _, reindexing = stills_alike(ready, priors, SILENT, reference is not None)
        run, _ = refine(ready, reindexing, priors, step, SILENT)
    r, group = run.reflections, run.reference.space_group
    rows = np.flatnonzero(r.measured & usable_images(run)[r.image])
    nu = tails(run.fit.values(), priors)
    measured = measured_of(r, rows, group, 0.0, nu)
    found = intensities_of_fit(measured, mean_cell(run), group, reference, 0.05, 0)
    post = np.asarray(found.posterior.intensity), np.asarray(found.posterior.intensity_sd)
    seen = np.asarray(found.merged.n) > 0
    return run, {tuple(h): x for h, *x in zip(found.merged.hkl[seen].tolist(), *post, strict=False)}


def faults(run: RunFit, intensities: dict) -> list[str]:
    """What of a result is not finite."""
    good = usable_images(run)
    found = [] if good.any() else ["no image used"]
    table = {name: site[good] for name, site in run.fit.values().items() if site.ndim > 1}
    found += [name for name, values in table.items() if not np.isfinite(values).all()]
    if not np.isfinite(np.array(list(intensities.values()))).all():
        found.append("intensities")
    return found


def every_run(seeds: int, photons: list[float], n_images: int) -> Iterator[list[str]]:
    """A row for each run: how it ended."""
    for seed in range(1, seeds + 1):
        for mean in photons:
            simulation = replace(BASE, seed=seed, mean_photons=mean, n_images=n_images)
            with tempfile.TemporaryDirectory() as folder:
                data = simulated(Path(folder), simulation)
                for reference in (data.reference, None):
                    started = time.perf_counter()
                    try:
                        run, intensities = fitted(data.stills, reference)
                        wrong = ", ".join(faults(run, intensities)) or "ended with results"
                        status = Counter(str(s.kind) for s in run.status)
                    except Exception as error:
                        wrong, status = f"{type(error).__name__}: {error}", Counter()
                    kind = "without" if reference is None else "with"
                    seconds = f"{time.perf_counter() - started:.0f} s"
                    said = ", ".join(f"{n} {k}" for k, n in status.items())
                    yield [str(seed), f"{mean:g}", kind, said, seconds, wrong]


def spoiled(data: Data, other: Data, kind: str, rng: np.random.Generator) -> tuple[Still, ...]:
    """The stills with every third one blank, turned by 5°, or showing another crystal."""
    stills = list(data.stills)
    for i in range(0, len(stills), 3):
        if kind == "misindexed":
            axis = random_rotations(1, rng=rng)[0] @ np.array([0.0, 0.0, np.radians(5)])
            crystal = stills[i].crystal
            turned = rotation_matrix(axis * 1e3) @ crystal.A
            stills[i] = replace(stills[i], crystal=replace(crystal, A=turned))
        else:
            stills[i] = replace(other.stills[i], crystal=stills[i].crystal)
    return tuple(stills)


def thirds(folder: Path, photons: float, n_images: int, axes) -> Iterator[list[str]]:
    """A row for each kind of wrong image, of the fit with them and of that without; ``axes``: with
    and without a reference, take the evidence of each image."""
    simulation = replace(BASE, n_images=n_images, mean_photons=photons, seed=21)
    data = simulated(folder / "good", simulation)
    others = {
        "blank": simulated(folder / "blank", replace(simulation, mean_photons=1e-9)),
        "another crystal": simulated(
            folder / "other",
            replace(simulation, seed=22, cell=(57.0, 57.0, 150.0, 90.0, 90.0, 90.0), hall="P 4 2"),
        ),
    }
    keep = np.arange(n_images) % 3 != 0
    truth = true_intensities(data.folder)
    for reference, ax in zip((data.reference, None), axes, strict=True):
        kind = "without" if reference is None else "with"
        best = fitted([s for s, good in zip(data.stills, keep, strict=True) if good], reference)
        yield [kind, "left out", *numbers(*best, data, np.flatnonzero(keep), truth)]
        for wrong in KINDS:
            rng = np.random.default_rng(5)
            other = others.get(wrong, data)
            evidence = Evidence()
            run, found = fitted(spoiled(data, other, wrong, rng), reference, evidence)
            draw(ax, evidence, keep, wrong)
            passed = usable_images(run)
            row = numbers(run, found, data, np.arange(n_images), truth, keep)
            known = int((~passed[~keep]).sum()), int((~keep).sum()), int((~passed[keep]).sum())
            yield [kind, wrong, *row, "{} of {} recognised, {} good lost".format(*known)]


def draw(ax, evidence: Evidence, keep: np.ndarray, wrong: str) -> None:
    """Evidence found against that of a right image; bars: what chance reaches."""
    colour = f"C{KINDS.index(wrong)}"
    for chosen, marker, name in ((keep, ".", f"right, beside {wrong}"), (~keep, "x", wrong)):
        bar = Z_CHANCE * evidence.chance_sd[chosen]
        ax.errorbar(
            evidence.right[chosen], evidence.found[chosen], [bar, 0 * bar], fmt=marker,
            color=colour, lw=0.5, label=name,
        )  # fmt: skip


def true_intensities(folder: Path) -> dict:
    """I by hkl."""
    ref = br.read_reference(folder / "reference.mtz")
    return {tuple(h): i for h, i in zip(ref.hkl.tolist(), ref.intensity.tolist(), strict=True)}


def numbers(run: RunFit, found: dict, data: Data, place, truth: dict, keep=None) -> list[str]:
    """rms ε_r, error and pull of ln G of the good images, CC of IPOST with the truth."""
    good = usable_images(run) if keep is None else usable_images(run) & keep
    with h5py.File(data.folder / "truth.h5") as file:
        G, A = file["G"][()][place], file["A"][()][place]
    log_G = run.fit.values()["log_G"].ravel()
    error = (log_G - np.log(G))[good]
    error -= np.median(error)
    pull = error / run.fit.sd("log_G").ravel()[good]
    excitation = demo.excitation_rms(run, run.stills, A, np.flatnonzero(good))
    pairs = np.array([(truth[h], x[0]) for h, x in found.items() if h in truth])
    cc = np.corrcoef(pairs.T)[0, 1]
    rms = np.sqrt(np.mean(error**2)), np.sqrt(np.mean(pull**2))
    return [f"{excitation:.2f}", f"{rms[0]:.3f}", f"{rms[1]:.2f}", f"{cc:.4f}", f"{good.sum()}"]


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--photons", type=float, nargs="+", default=[30.0, 100.0, 1000.0])
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--thirds", action="store_true", help="a third of the images wrong")
    parser.add_argument("--out", type=Path, default=Path("thirds.png"))
    options = parser.parse_args()
    if options.thirds:
        print("reference | wrong | rms ε_r (1e-5 Å⁻¹) | rms ln G | its pull | CC IPOST | images")
        figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
        with tempfile.TemporaryDirectory() as folder:
            for row in thirds(Path(folder), options.photons[-1], options.images, axes):
                print(" | ".join(row), flush=True)
        for ax, title in zip(axes, ("with a reference", "without"), strict=True):
            ax.axline((0, 0), (1, 1), color="k", lw=0.7)
            ax.axhline(0, color="0.7", lw=0.7)
            ax.set(xscale="symlog", yscale="symlog", title=title)
            ax.set(xlabel="ln odds of a right image", ylabel="ln odds found")
        axes[0].legend(fontsize=7)
        figure.savefig(options.out, dpi=120)
        return
    print("seed | photons | reference | images | time | result")
    for row in every_run(options.seeds, options.photons, options.images):
        print(" | ".join(row), flush=True)


if __name__ == "__main__":
    main()
