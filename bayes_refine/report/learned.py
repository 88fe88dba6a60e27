"""Learned components on the page: what was learned, its sd, and the physical piece beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from .drawing import legend
from .page import Section, chart, figures, note
from .style import BLUE, GREY


def components(found: Sequence[Mapping[str, Any]] | None) -> Section | None:
    """The section on the components in ``summary.json``."""
    if not found:
        return None
    pictures = [one for component in found for one in _pictures(component)]
    notes = "\n".join(note(_sentence(component)) for component in found)
    return Section(
        "components",
        "Learned components",
        f"{figures(*pictures)}\n{notes}",
        "Pieces of the model that were learned from images, with one sd.",
    )


def _sentence(component: Mapping[str, Any]) -> str:
    origin = component["trained_on"]
    gain, se = component["nats_an_image"], component["nats_an_image_se"]
    verdict = (
        "so that it describes such images better than the plain model"
        if component["recommended"]
        else "so that the plain model describes such images as well"
    )
    return (
        f"{component['family']}: trained on {origin['n_images']} images "
        f"({origin['n_reflections']} reflections to {origin['d_min']:g} Å); on images that did "
        f"not train it, ln p changes by {gain:+.2f} ± {se:.2f} an image, {verdict}."
    )


def _pictures(component: Mapping[str, Any]) -> list[str]:
    if component["family"] == "partiality":
        own = "of the median image " if component.get("own") else ""
        return [
            chart(
                "learned-partiality",
                partial(curve, component=component),
                f"The learned partiality curve {own}with one sd, and a Gaussian of the same width "
                "at 1/e. Tails above the Gaussian are reflections that diffract where the plain "
                "model expects nothing.",
                (7.4, 3.5),
            )
        ]
    if component["family"] == "profile":
        return [
            chart(
                "learned-profile",
                partial(profile, component=component),
                "Photons of a spot in the middle of the detector along x and y through its "
                "centre, with one sd, and of a Gaussian of the same second moment. A long "
                "shoulder on one side is a tail.",
                (7.4, 3.5),
            ),
            chart(
                "learned-profiles",
                partial(profiles, component=component),
                "The learned profile at nine places of the detector, each at the place where it "
                "is drawn, the square root of photons.",
                (5.2, 5.0),
            ),
        ]
    both = {
        "": "The learned factor over the detector, at mid resolution in the middle of the run. "
        "In dark regions spots are fainter than the rest of the model explains.",
        "_sd": "One sd of ln of the factor; it is large where there were few reflections.",
    }
    return [
        chart(f"learned-correction{kind}", partial(factor, component=component, kind=kind), text)
        for kind, text in both.items()
    ]


def curve(figure: Any, component: Mapping[str, Any]) -> None:
    """Draw k and log₁₀ k of a learned partiality curve with one sd, and the Gaussian."""
    x, log_k, sd = (np.asarray(component[k]) for k in ("x", "log_curve", "log_curve_sd"))
    scales: dict[str, Callable[[np.ndarray], np.ndarray]] = {"k": np.exp, "log₁₀ k": _log10}
    for k, (name, shown) in enumerate(scales.items()):
        ax = figure.add_subplot(1, 2, k + 1)
        ax.fill_between(x, shown(log_k - sd), shown(log_k + sd), color=BLUE, alpha=0.3, lw=0)
        ax.plot(x, shown(log_k), color=BLUE, label="learned")
        ax.plot(x, shown(-(x**2)), color=GREY, ls="--", label="Gaussian")
        ax.set(xlabel="ε_r over the width at 1/e", ylabel=name)
        if k == 0:
            legend(ax)
        else:
            ax.set_ylim(-4, 0.1)


def _log10(log_k: np.ndarray) -> np.ndarray:
    return log_k / np.log(10)


def factor(figure: Any, component: Mapping[str, Any], kind: str = "") -> None:
    """Draw a learned correction over the detector, or the sd of its ln."""
    ax = figure.add_subplot()
    values = np.asarray(component[f"log_factor{kind}"])
    values = values if kind else np.exp(values)
    x, y = np.asarray(component["x_mm"]), np.asarray(component["y_mm"])
    drawn = ax.pcolormesh(x, y, values, cmap="viridis", rasterized=True)
    figure.colorbar(drawn, ax=ax, label="sd of ln factor" if kind else "factor")
    ax.set(xlabel="x (mm)", ylabel="y (mm)", aspect="equal")
    ax.invert_yaxis()


def profile(figure: Any, component: Mapping[str, Any]) -> None:
    """Photons along x and y through the centre of a spot with one sd, and the Gaussian."""
    r = np.asarray(component["r_px"])
    for k, along in enumerate("xy"):
        ax = figure.add_subplot(1, 2, k + 1)
        value, sd, plain = (np.asarray(component[n][k]) for n in ("cuts", "cuts_sd", "gaussian"))
        ax.fill_between(r, value - sd, value + sd, color=BLUE, alpha=0.3, lw=0)
        ax.plot(r, value, color=BLUE, label="learned")
        ax.plot(r, plain, color=GREY, ls="--", label="Gaussian")
        ax.set(xlabel=f"{along} from the centre (px)", ylabel="share of photons (px⁻²)")
        if k == 0:
            legend(ax)


def profiles(figure: Any, component: Mapping[str, Any]) -> None:
    """The learned profile at nine places of the detector."""
    maps, r = np.asarray(component["maps"]), np.asarray(component["r_px"])
    extent = (r[0], r[-1], r[-1], r[0])
    for k, values in enumerate(maps.reshape(9, *maps.shape[2:])):
        ax = figure.add_subplot(3, 3, k + 1)
        style = {"cmap": "viridis", "vmin": 0.0, "vmax": float(np.sqrt(maps.max()))}
        ax.imshow(np.sqrt(values), extent=extent, interpolation="nearest", **style)
        if k == 6:
            ax.set(xlabel="x (px)", ylabel="y (px)")
        else:
            ax.set(xticks=[], yticks=[])
