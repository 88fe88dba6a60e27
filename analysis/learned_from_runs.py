"""What do learned components find in a run of images, and what does a fit with them gain?

Families of components are trained on one plain fit; then the run is fitted again with each that
is recommended, and with all of them together (one partiality: the one that gains most).  Results
are in OUT/plain, OUT/partiality, and so on, components in OUT.  Printed are nats an image on images
held out, CPU seconds, the shared unknowns that a component may change, and with ``--repeated``, for
stills of one crystal, pulls of repeated reflections by thirds.

    python analysis/learned_from_runs.py indexed.expt --reference reference.mtz --images 0:40 \
        --d-min 2.3 --out learned
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from repeated_reflections import line, pulls_of, thirds

import bayes_refine as br
from bayes_refine.fitting.state import partiality_width
from bayes_refine.fitting.tables import usable_images
from bayes_refine.learned.component import (
    Component,
    Family,
    read_component,
    settings_with,
    with_components,
    write_component,
)
from bayes_refine.learned.training import OWN, Training, settings_for, train_component

EACH = "each image"  # a partiality with numbers of each image
FAMILIES = (*map(str, Family), EACH)
SHOWN = ("R0_inv_angstrom", "mosaic_mrad", "bandwidth", "model_error", "speckle_variance", "nu")
NEAR = 2.4  # widths at 1/e, the reach of a plain fit
AT = (-3.0, -2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0, 3.0)  # widths at 1/e


def path_of(name: str, args) -> Path:
    return args.out / f"{name.replace(' ', '_')}.eqx"


def trained(run: br.RunFit | None, name: str, args) -> Component:
    """The component ``name``, read where an earlier run left it; says what it gains and costs."""
    path = path_of(name, args)
    if path.exists():
        return read_component(path)
    begun = time.process_time()
    family = Family.partiality if name == EACH else Family(name)
    training = Training(epochs=args.epochs, own=OWN if name == EACH else 0.0)
    found = train_component(run, family, training)
    write_component(path, found)
    spent = time.process_time() - begun
    print(f"{name}: {found.origin.evidence}; {spent:.0f} CPU s", flush=True)
    return found


def curve(component: Component) -> None:
    """ln k, its band and a Gaussian's, by ε_r in widths at 1/e; k without the dependence on R0."""
    value, sd = component.band(lambda m: m.shape(jnp.asarray(AT)))
    for name, row in (("ε_r", AT), ("ln k", value), ("±", sd), ("Gaussian", -np.square(AT))):
        print(f"    {name:10s}" + "".join(f"{x:8.2f}" for x in row))


def told(name: str, run: br.RunFit, seconds: float, repeated: float | None) -> None:
    """What changed: shared unknowns, counts, and pulls of pairs within the reach of a plain fit."""
    shared = br.shared_values(run)
    shown = "  ".join(
        f"{k} {shared[k]['value']:.4g} ± {shared[k]['sd']:.2g}" for k in SHOWN if k in shared
    )
    kept = f"{np.sum(usable_images(run))} of {len(run.status)} images"
    print(f"fit, {name}: {seconds:.0f} CPU s, {kept}  {shown}", flush=True)
    if repeated is None:
        return
    found = pulls_of(run)
    width = partiality_width(run.fit.values(), run.priors)(found["d"], run.stills[0].beam)
    near = found["far"] < NEAR * repeated * width
    found = {name: values[near] for name, values in found.items()}
    print(line("    all", found))
    for quantity in ("partiality", "intensity", "d"):
        for level, here in zip(("low", "middle", "high"), thirds(found[quantity]), strict=True):
            print(line(f"    {level} {quantity}", found, here))


def chosen(found: dict[str, Component]) -> dict[str, list[Component]]:
    """Components to fit with, by name: each that is recommended, and all together."""
    good = {n: c for n, c in found.items() if c.origin.evidence.recommended}
    alone = {name: [component] for name, component in good.items()}
    curves = [c for c in good.values() if c.family is Family.partiality]
    others = [c for c in good.values() if c.family is not Family.partiality]
    best = sorted(curves, key=lambda c: c.origin.evidence.total)[-1:]
    return alone | ({"all": best + others} if len(best + others) > 1 else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiments", type=Path)
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--column", help="of the reference")
    parser.add_argument("--images", default=":", help="a:b")
    parser.add_argument("--d-min", type=float, default=2.3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--families", nargs="*", default=FAMILIES, choices=FAMILIES)
    parser.add_argument(
        "--fits", nargs="*", help="plain, or names; by default plain and all recommended"
    )
    parser.add_argument("--repeated", action="store_true", help="stills of one crystal")
    parser.add_argument("--out", type=Path, default=Path("learned_from_runs"))
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    args.out.mkdir(parents=True, exist_ok=True)
    read = br.read_experiments(args.experiments)
    first, last = (int(x) if x else None for x in args.images.split(":"))
    read = replace(read, stills=read.stills[first:last])
    reference = args.reference and br.read_reference(args.reference, column=args.column)
    plain = br.Settings(rounds=args.rounds)
    families = {Family.partiality if f == EACH else Family(f) for f in args.families}
    settings = settings_for(plain, families)
    with br.ImageReader() as reader:
        prepared = br.prepare(read, reader, reference or None, d_min=args.d_min)

        def fitted(name: str, components: list[Component]) -> br.RunFit:
            begun, model = time.process_time(), br.load_model("still")
            with_them = settings_with(plain, components) if components else settings
            run = br.fit(prepared, with_components(model, components), settings=with_them)
            curves = [c.module for c in components if c.family is Family.partiality]
            width = float(curves[0].width()) if curves else 1.0
            told(name, run, time.process_time() - begun, width if args.repeated else None)
            br.write_results(args.out / name.replace(" ", "_"), run, prepared, pictures=False)
            return run

        known = all(path_of(name, args).exists() for name in args.families)
        run = None if known and "plain" not in (args.fits or ["plain"]) else fitted("plain", [])
        found = {name: trained(run, name, args) for name in args.families}
        if "partiality" in found:
            curve(found["partiality"])
        fits = chosen(found)
        if args.fits is not None:
            named = {name: [found[name]] for name in found} | fits
            fits = {name: named[name] for name in args.fits if name in named}
        for name, components in fits.items():
            fitted(name, components)


if __name__ == "__main__":
    main()
