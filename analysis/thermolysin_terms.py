"""What do the terms, the noise model and the likelihood each add on measured XFEL stills?

python analysis/thermolysin_terms.py
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from known_run import SHARED

import bayes_refine as br
from bayes_refine.measuring.weights import moment_weights
from bayes_refine.merging.agreement import pearson


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--d-min", type=float, default=2.3)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)

    folder = options.data / "thermolysin_xfel"
    stills = list(br.read_experiments(folder / "thermolysin_xfel.expt").stills)
    reference = br.read_reference(folder / "reference.mtz")
    # what DIALS integrated with; the .expt has lost its sensor
    sensor = [
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
    still, tensor = br.load_model("still"), br.load_model("tensor")
    reader = br.ImageReader()
    noise = br.noise_for(reader, stills)
    print(noise)
    standard = (
        sensor,
        still,
        br.Priors(),
        br.Settings(d_min=options.d_min, read_noise=noise.read_noise),
        noise.gain,
    )

    def variant(**changed):
        names = ("stills", "model", "priors", "settings", "gain")
        return [changed.get(n, x) for n, x in zip(names, standard, strict=True)]

    settings = standard[3]
    variants = {
        "all terms, Student-t 4, noise from the images": variant(),
        "wide margin (5 R0_eff)": variant(settings=replace(settings, margin=5.0)),
        "without the spread": variant(model=partial(still, terms=3)),
        "total alone": variant(model=partial(still, terms=1)),
        "elliptical spots": variant(model=tensor),
        "normal likelihood": variant(priors=br.Priors(student_t_nu=float("inf"))),
        "photon-counting noise (gain 1 ADU, no read-out noise)": variant(
            settings=replace(settings, read_noise=0.0), gain=1.0
        ),
        "no read-out noise": variant(settings=replace(settings, read_noise=0.0)),
        "no sensor (parallax)": variant(stills=stills),
        "no bandwidth": variant(priors=br.Priors(bandwidth=1e-6, log_bandwidth_sd=1e-3)),
        "textbook moments": variant(settings=replace(settings, weights=moment_weights)),
    }
    for name, (images, model, priors, chosen, gain) in variants.items():
        reader.gain = gain
        run = br.fit_run(images, reference, reader, model, priors, chosen)
        r = run.reflections
        known = np.isfinite(r.J_model) & r.measured
        cc = [
            [pearson(r.J[x], r.J_model[x]) for x in (known & mine, known & mine & r.free)]
            for mine in (r.image == i for i in range(len(images)))
        ]
        n = np.bincount(r.image[known])
        print(
            f"{name}: CC "
            + ", ".join(f"{a:.3f} (free {b:.3f}, n {k})" for (a, b), k in zip(cc, n, strict=True))
            + f"; {', '.join(run.status)}"
        )


if __name__ == "__main__":
    main()
