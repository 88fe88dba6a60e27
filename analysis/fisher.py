"""Do total, position and spread of a spot tell of scale, geometry and width independently?

Fisher information of the four statistics at the mode, image by image: which statistic an
unknown is known from, and the normalised off-diagonals F_ab/√(F_aa F_bb) between the blocks
(G, B, R0, η | R1 | geometry), for the score statistics and the textbook moments, on `plain`
and `thermolysin_xfel`.

    python analysis/fisher.py --images 20 --out fisher.png
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
from known_run import SHARED, load

import bayes_refine as br
from bayes_refine.fitting.state import tails
from bayes_refine.measuring.weights import moment_weights, score_weights
from bayes_refine.physics.observations import STATISTICS

STATISTICS = STATISTICS[:4]
BLOCKS = {
    "scale": ("log_G", "B", "log_R0", "log_mosaic_image_mrad"),
    "width": ("log_R1",),
    "geometry": ("rotation_mrad", "strain", "detector_shift_mm"),
}
LABELS = {
    "log_G": "ln G",
    "log_R0": "ln R0",
    "log_mosaic_image_mrad": "ln η",
    "log_R1": "ln R1",
    "rotation_mrad": "ω",
    "strain": "strain",
}


def directions(values):
    """(block, label, tangent) of every unknown; an image's own move in all images at once."""
    for block, names in BLOCKS.items():
        for name in names:
            x = np.asarray(values[name])
            many = name in ("rotation_mrad", "strain", "detector_shift_mm")
            for j in range(x.shape[-1] if many else 1):
                tangent = np.zeros_like(x)
                tangent[(..., j) if many else ...] = 1.0
                ends = ("centre x", "centre y", "distance")
                label = ends[j] if name.startswith("detector") else LABELS.get(name, name)
                if name == "rotation_mrad":
                    label += " " + "xyz"[j]
                elif name == "strain":
                    label += f" {j + 1}"
                yield block, label, {name: tangent}


def expected(model, values, obs, priors):
    """Mean and scale of the four statistics, (n, 4, m) each."""
    seeded = numpyro.handlers.seed(model, jax.random.key(0))
    trace = numpyro.handlers.trace(numpyro.handlers.substitute(seeded, data=values))
    sites = trace.get_trace(obs, priors)
    found = [sites[name]["fn"] for name in STATISTICS]
    while hasattr(found[0], "base_dist"):
        found = [f.base_dist for f in found]
    return jnp.stack([f.loc for f in found], 1), jnp.stack([f.scale for f in found], 1)


def information(model, values, obs, priors):
    """Labels, blocks, and Fisher's matrix of each image and statistic, (n, 4, k, k).

    F = Σ_h w ∂E[T_k] ∂E[T_k]ᵀ/σ², w = (ν + 1)/(ν + 3) of a Student-t, 1 of a normal.
    """
    nu = tails(values, priors)
    weight = 1.0 if np.isinf(nu) else (nu + 1) / (nu + 3)

    def at(values):
        return expected(model, values, obs, priors)

    @jax.jit
    def along(values, tangent):
        return jax.jvp(lambda v: at(v)[0], (values,), (tangent,))[1]

    values = {k: jnp.asarray(v) for k, v in values.items()}
    sigma = np.asarray(jax.jit(at)(values)[1])
    zero = {k: jnp.zeros_like(v) for k, v in values.items()}
    blocks, labels, slopes = [], [], []
    for block, label, tangent in directions(values):
        blocks.append(block)
        labels.append(label)
        slopes.append(np.asarray(along(values, {**zero, **tangent})) / sigma)
    slopes = np.stack(slopes, -1) * np.asarray(obs.fit)[:, None, :, None]  # (n, 4, m, k)
    fisher = weight * np.einsum("nsma,nsmb->nsab", slopes, slopes)
    return labels, np.array(blocks), fisher


def normalised(fisher):
    """F_ab/√(F_aa F_bb) of matrices (..., k, k)."""
    d = np.sqrt(np.diagonal(fisher, axis1=-2, axis2=-1))
    return fisher / (d[..., :, None] * d[..., None, :])


def canonical(fisher, a, b) -> np.ndarray:
    """Largest canonical correlation between two sets of unknowns, for each matrix."""

    def white(x):
        values, vectors = np.linalg.eigh(x)
        keep = np.maximum(values, 1e-9 * values[..., -1:])
        return vectors / np.sqrt(keep)[..., None, :]

    wa = white(fisher[..., a, :][..., a])
    wb = white(fisher[..., b, :][..., b])
    cross = fisher[..., a, :][..., b]
    return np.linalg.norm(np.swapaxes(wa, -1, -2) @ cross @ wb, 2, axis=(-2, -1))


def describe(name, labels, blocks, fisher):
    """Print the tables of one run; returns the rms normalised matrix."""
    total = fisher.sum(1)
    print(f"\n{name}: {len(fisher)} images")
    share = np.median(np.einsum("nsaa->nsa", fisher) / np.einsum("naa->na", total)[:, None], 0)
    print(f"{'known from':14s}" + "".join(f"{s:>20s}" for s in STATISTICS))
    for k, label in enumerate(labels):
        print(f"{label:14s}" + "".join(f"{100 * x:18.1f} %" for x in share[:, k]))
    R = normalised(total)
    rms = np.sqrt(np.mean(R**2, axis=0))
    for a, b in (("scale", "width"), ("scale", "geometry"), ("width", "geometry")):
        i, j = np.flatnonzero(blocks == a), np.flatnonzero(blocks == b)
        part = rms[np.ix_(i, j)]
        at = np.unravel_index(part.argmax(), part.shape)
        strongest = canonical(normalised(total), i, j)
        print(
            f"{a} | {b}: rms off-diagonal {np.sqrt(np.mean(part**2)):.3f}, largest"
            f" {part.max():.3f} ({labels[i[at[0]]]}, {labels[j[at[1]]]}); canonical"
            f" {np.median(strongest):.3f} (median image)"
        )
    scale = np.flatnonzero(blocks == "scale")
    mean = np.mean(R, axis=0)[np.ix_(scale, scale)]
    print("within scale (mean):")
    for k, row in zip(scale, mean, strict=True):
        print(f"  {labels[k]:8s}" + "".join(f"{x:8.2f}" for x in row))
    return rms


def thermolysin(data, model, weights):
    """The three measured stills, as ``thermolysin_terms.py`` treats them."""
    folder = data / "thermolysin_xfel"
    stills = br.read_experiments(folder / "thermolysin_xfel.expt").stills
    stills = [
        replace(
            s,
            detector=replace(
                s.detector,
                thickness_mm=0 * s.detector.thickness_mm + 0.5,
                mu_per_mm=0 * s.detector.mu_per_mm + 8.49,
            ),
        )
        for s in stills
    ]
    with br.ImageReader() as reader:
        noise = br.noise_for(reader, stills)
        reader.gain = noise.gain
        settings = br.Settings(d_min=2.3, read_noise=noise.read_noise, weights=weights)
        reference = br.read_reference(folder / "reference.mtz")
        return br.fit_run(stills, reference, reader, model, br.Priors(), settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--out", type=Path, default=Path("fisher.png"))
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    model, priors = br.load_model("still"), br.Priors()
    stills, reference, _ = load(options.data, options.images)

    shown = {}
    for kind, weights in (("scores", score_weights), ("moments", moment_weights)):
        with br.ImageReader() as reader:
            settings = br.Settings(d_min=2.3, weights=weights)
            plain = br.fit_run(stills, reference, reader, model, priors, settings)
        for name, run in (
            (f"plain, {kind}", plain),
            (f"thermolysin_xfel, {kind}", thermolysin(options.data, model, weights)),
        ):
            used = run.status == "converged"
            labels, blocks, fisher = information(model, run.fit.values(), run.observations, priors)
            shown[name] = labels, blocks, describe(name, labels, blocks, fisher[used])

    figure, axes = plt.subplots(2, 2, figsize=(12, 11), layout="constrained")
    for axis, (name, (labels, blocks, rms)) in zip(axes.flat, shown.items(), strict=True):
        picture = axis.imshow(rms, vmin=0, vmax=1, cmap="magma_r")
        axis.set_xticks(range(len(labels)), labels, rotation=90)
        axis.set_yticks(range(len(labels)), labels)
        for edge in np.flatnonzero(blocks[1:] != blocks[:-1]) + 0.5:
            axis.axhline(edge, color="k", lw=1)
            axis.axvline(edge, color="k", lw=1)
        axis.set_title(name)
    figure.colorbar(picture, ax=axes, label="|F_ab|/√(F_aa F_bb), rms over images", shrink=0.6)
    figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()
