"""How many images, photons and reflections does it take to index a polar crystal's stills alike?

    PYTHONPATH=. python analysis/reindexing.py OUT_FOLDER [--pixels]

Stills of a P6₃ crystal (Wilson's statistics, partiality, G and B of each image, Poisson noise) are
indexed one of two ways at random.  Scales come from mean intensities alone, as in
``unmerged_alike``.  Rivals: the correlation of an image's J with g·(mean of the other
images), and of J/g with their plain mean, either maximised image by image until nothing changes,
best of eight random starts (after CrystFEL's ambigator), or with the reference in one pass.

``--pixels`` does the same for images of a detector, and fits them scrambled and put right.
"""

import sys
from dataclasses import replace
from pathlib import Path

import gemmi
import jax
import matplotlib
import numpy as np

import bayes_refine as br
from bayes_refine.fitting.index_alike import stills_alike
from bayes_refine.fitting.problem import prepare_run
from bayes_refine.geometry.symmetry import asu_map
from bayes_refine.indexing import leave_image_out, reindex
from bayes_refine.indexing.ambiguity import ambiguity, reindexed_stills, transformed
from bayes_refine.indexing.unmerged_alike import roughly_scaled
from bayes_refine.physics.reference import Reference, free_set
from bayes_refine.simulation.spots import predict_spots
from bayes_refine.simulation.truth import Simulation, draw_truth

SIMULATION = Simulation(
    n_images=240, cell=(90, 90, 60, 90, 90, 120), hall=" P 6c", d_min=3.0, mean_photons=1.0
)
BACKGROUND = 30.0  # variance of an intensity at I = 0, photons²
REPEATS, STARTS = 3, 8
PANELS = {
    "photons (mean I)": [(100, p, 1.0) for p in (1, 1.5, 2, 3, 5, 10, 30)],
    "images": [(n, 10, 1.0) for n in (5, 10, 20, 40, 80, 160, 240)],
    "reflections an image": [(100, 30, f) for f in (0.05, 0.1, 0.15, 0.25, 0.5, 1.0)],
}
METHODS = ("likelihood", "CC(J, g·mean)", "CC(J/g, plain mean)")


def pool():
    """Spots of all images at one photon, and the true intensities as a reference."""
    truth = draw_truth(SIMULATION, rng=np.random.default_rng(SIMULATION.seed))
    columns = []
    for i in range(SIMULATION.n_images):
        s = predict_spots(SIMULATION, truth, i)
        near = np.abs(s.epsilon_r) < 8e-4
        columns.append((s.hkl[near], np.full(near.sum(), i), s.J[near], s.epsilon_r[near]))
    group, cell = gemmi.SpaceGroup("P 63"), gemmi.UnitCell(*SIMULATION.cell)
    hkl = asu_map(truth.reference.hkl, group)[0]
    reference = Reference(hkl, truth.reference.intensity, cell, group, "truth")
    return [np.concatenate(c) for c in zip(*columns, strict=True)], reference


def scrambled_run(spots, ways, cell, setting, rng):
    """Some images, photons and reflections of the pool, scrambled and roughly scaled."""
    n, photons, kept = setting
    hkl, image, J, excitation = spots
    chosen = rng.permutation(SIMULATION.n_images)[:n]
    rows = np.flatnonzero(np.isin(image, chosen) & (rng.random(len(J)) < kept))
    image = np.unique(image[rows], return_inverse=True)[1]
    n = image.max() + 1
    J = photons * J[rows]
    J = J + rng.normal(0, np.sqrt(BACKGROUND + J))
    right = rng.integers(0, len(ways), n)
    hkl = transformed(hkl[rows], np.linalg.inv(ways.operations)[right[image]])
    sigma = np.sqrt(BACKGROUND + np.maximum(J, 0))  # as counted
    asu, isym = asu_map(hkl, ways.space_group)
    data = br.Unmerged(
        hkl, asu, isym, J, sigma, image + 1, image, excitation[rows], None, cell,
        ways.space_group, "",
    )  # fmt: skip
    return roughly_scaled(data), right


# --- the rivals -----------------------------------------------------------------------------


def by_image_correlation(obs, x, y):
    """Pearson correlation of x and y (n,) over each image, zero where there is none."""

    def total(v):
        return np.bincount(obs.image, v, obs.n_images)

    count = np.maximum(total(np.ones(len(x))), 1)
    dx, dy = x - (total(x) / count)[obs.image], y - (total(y) / count)[obs.image]
    norm = np.sqrt(total(dx**2) * total(dy**2))
    return np.where(norm > 0, total(dx * dy) / np.maximum(norm, 1e-30), 0.0)


def correlate(obs, code, weighted, rng=None, expected=None):
    """The operation of the largest correlation, (n_images,); ``expected`` (m,) or the others'."""
    m, K = code.max() + 1, code.shape[1]
    seen = np.ones(len(obs.J), bool) if weighted else obs.scale > 0.2 * np.median(obs.scale)
    w = obs.scale**2 / obs.variance if weighted else 1.0 * seen
    x = obs.J / obs.scale

    def scores(mean):  # mean (n, K), of the reflection by what is known without the image
        y = np.where(np.isfinite(mean), mean, np.nan)
        out = np.empty((obs.n_images, K))
        for k in range(K):
            good = np.isfinite(y[:, k]) & seen
            some = replace(obs, image=obs.image[good])
            a, b = (obs.J, obs.scale * y[:, k]) if weighted else (x, y[:, k])
            out[:, k] = by_image_correlation(some, a[good], b[good])
        return out

    if expected is not None:
        return scores(expected[code]).argmax(1)
    best = (-np.inf, None)
    pair = obs.image[:, None] * m + code
    _, group = np.unique(pair, return_inverse=True)
    group = group.reshape(code.shape)
    for _ in range(STARTS):
        operation = rng.integers(0, K, obs.n_images)
        for _ in range(40):
            here = operation[obs.image]
            own_code, own_group = (a[np.arange(len(a)), here] for a in (code, group))
            total = [np.bincount(own_code, v, m)[code] for v in (w, w * x)]
            own = [np.bincount(own_group, v, group.max() + 1)[group] for v in (w, w * x)]
            weight = total[0] - own[0]
            with np.errstate(invalid="ignore", divide="ignore"):
                mean = np.where(weight > 1e-9 * total[0], (total[1] - own[1]) / weight, np.nan)
            score = scores(mean)
            new = score.argmax(1)
            swap = (new != operation) & (rng.random(obs.n_images) < 0.7)  # not all in step
            if not (new != operation).any():
                break
            operation = np.where(swap, new, operation)
        best = max(best, (score.max(1).mean(), tuple(operation)))
    return np.array(best[1])


# --- the experiment -------------------------------------------------------------------------


def right_fraction(operation, right, ways):
    """Per image, up to a relabelling of all."""
    return max((row[operation] == right for row in ways.relabellings), key=np.sum)


def one(spots, ways, reference, setting, seed):
    """Fractions right by method without and with the reference, and the likelihood's claims."""
    rng = np.random.default_rng(seed)
    obs, right = scrambled_run(spots, ways, reference.cell, setting, rng)
    seen = leave_image_out.by_reflection(obs, ways, reference.cell)
    hidden = free_set(seen.hkl, 0.05, 0, ways.space_group)  # from all methods
    expected = np.where(hidden, np.nan, reference.lookup(seen.hkl))
    free = reindex.choose(obs, ways, reference.cell, n_starts=STARTS, seed=seed)
    led = reindex.choose_by_reference(obs, ways, reference)
    good = right_fraction(free.operation, right, ways), led.operation == right
    rows = {"likelihood": [good[0].mean(), good[1].mean()]}
    for name, weighted in zip(METHODS[1:], (True, False), strict=True):
        alone = correlate(obs, seen.code, weighted, rng)
        with_it = correlate(obs, seen.code, weighted, expected=expected)
        rows[name] = [right_fraction(alone, right, ways).mean(), (with_it == right).mean()]
    claims = [
        (1 / (1 + np.exp(-choice.log_odds)), ok, choice.status == "decided")
        for choice, ok in zip((free, led), good, strict=True)
    ]
    return rows, claims, len(obs.J) / obs.n_images


def experiment(out):
    spots, reference = pool()
    ways = ambiguity(reference.cell, reference.space_group)
    results, claims = {}, ([], [])
    print(f"{'':44s}" + "".join(f"{m:>22s}" for m in METHODS) + "   decided, of these right")
    for panel, settings in PANELS.items():
        results[panel] = []
        for setting in settings:
            runs = [one(spots, ways, reference, setting, 100 + k) for k in range(REPEATS)]
            table = np.array([[rows[m] for m in METHODS] for rows, _, _ in runs]).mean(0)
            each = np.mean([r[2] for r in runs])
            told = []
            for way in (0, 1):
                claim = [np.concatenate(c) for c in zip(*(r[1][way] for r in runs), strict=True)]
                claims[way].append(claim)
                sure = claim[2]
                told += [sure.mean(), claim[1][sure].mean() if sure.any() else np.nan]
            results[panel].append((setting, each, table, told))
            n, photons, _ = setting
            label = f"{n} images, {photons} photons, {each:.0f} reflections"
            cells = "".join(f"{a:11.3f}{b:11.3f}" for a, b in table)
            print(f"{label:44s}{cells}   " + " ".join(f"{x:.3f}" for x in told), flush=True)
    print("\nclaimed probability against fraction right: without, with a reference")
    for low, high in ((0.5, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 0.9), (0.9, 0.95), (0.95, 0.99),
                      (0.99, 1.01)):  # fmt: skip
        line = f"{low:.2f}-{min(high, 1):.2f}"
        for way in (0, 1):
            p, ok, _ = (np.concatenate(c) for c in zip(*claims[way], strict=True))
            mine = (p >= low) & (p < high)
            if mine.any():
                line += f"   {p[mine].mean():.3f} {ok[mine].mean():.3f} ({mine.sum():5d})"
        print(line)
    plot(results, out / "reindexing.png")


def plot(results, path):
    """Fraction right against photons, images and reflections."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), sharey=True)
    for ax, (panel, rows) in zip(axes, results.items(), strict=True):
        x = [{"photons (mean I)": s[1], "images": s[0]}.get(panel, each) for s, each, _, _ in rows]
        for k, method in enumerate(METHODS):
            for way, style in ((0, "-"), (1, "--")):
                y = [table[k, way] for _, _, table, _ in rows]
                label = method + (", with a reference" if way else "")
                ax.plot(x, y, style, color=f"C{k}", marker="o", ms=3, label=label)
        ax.plot(x, [told[0] for *_, told in rows], ":", color="0.5", label="likelihood: decided")
        ax.set_xscale("log")
        ax.set_xticks(x, [f"{v:.3g}" for v in x], minor=False)
        ax.set_xticks([], minor=True)
        ax.set_xlabel(panel)
        n, photons, _ = rows[0][0]
        held = {
            "photons (mean I)": f"{n} images, {rows[0][1]:.0f} reflections each",
            "images": f"{photons} photons, {rows[0][1]:.0f} reflections each",
        }
        ax.set_title(held.get(panel, f"{n} images, {photons} photons"), fontsize=9)
    axes[0].set_ylabel("fraction of images right")
    axes[0].set_ylim(0, 1.02)
    axes[2].legend(fontsize=7, loc="lower right", handlelength=3)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def pixels(out, n_images=20):
    """Images of a detector, indexed at random, put right, and fitted either way."""
    simulation = replace(SIMULATION, n_images=n_images, mean_photons=100.0)
    stills = br.read_experiments(br.simulate_run(simulation, out / "run")).stills
    reference = br.read_reference(out / "run" / "reference.mtz")
    ways = ambiguity(reference.cell, reference.space_group)
    wrong = np.random.default_rng(3).integers(0, len(ways), n_images)
    scrambled = reindexed_stills(stills, ways, wrong)  # each operation of P6₃ is its own inverse
    model, priors = br.load_model("still"), br.Priors()
    settings = br.Settings(d_min=simulation.d_min)
    with br.ImageReader() as reader:
        run = prepare_run(scrambled, reference, reader, model, priors, settings)
        for by_reference in (False, True):
            mended, choice = stills_alike(run, priors, print, by_reference)
            tries = ways.relabellings[: 1 if by_reference else None]
            good = max((row[choice.operation] == wrong).mean() for row in tries)
            spread = np.percentile(choice.log_odds, [0, 50])
            name = "with the reference" if by_reference else "without"
            print(
                f"{name}: {good:.3f} right, ln odds {spread[0]:.0f} least, {spread[1]:.0f} median"
            )
        for name, some in (("scrambled", scrambled), ("put right", mended)):
            fitted = br.fit_run(some, reference, reader, model, priors, settings)
            cc = br.image_table(fitted)["cc_model"]
            print(f"fitted {name}: CC(J, J_model) median {np.median(cc):.3f}, least {cc.min():.3f}")


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    pixels(folder) if "--pixels" in sys.argv else experiment(folder)
