"""Learned components on the page: what was learned, its band, the physical one beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from .drawing import legend
from .page import Section, chart, figures, note
from .style import BLUE, GREY


def components(found: Sequence[Mapping[str, Any]] | None) -> Section | None:
    """The components of ``summary.json``."""
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
        return [
            chart(
                "learned-partiality",
                partial(curve, component=component),
                "The learned partiality curve with one sd, and a Gaussian of the same width at "
                "1/e. Tails above the Gaussian are reflections that diffract where the plain "
                "model expects nothing.",
                (7.4, 3.5),
            )
        ]
    both = {
        "": "The learned factor over the detector, at mid resolution in the middle of the run. "
        "Dark regions lose intensity that nothing else in the model explains.",
        "_sd": "One sd of ln of the factor: large where there were few reflections.",
    }
    return [
        chart(f"learned-correction{kind}", partial(factor, component=component, kind=kind), text)
        for kind, text in both.items()
    ]


def curve(figure: Any, component: Mapping[str, Any]) -> None:
    """k and ln k of a learned partiality with one sd, and the Gaussian."""
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
    """A learned correction over the detector, or the sd of its ln."""
    ax = figure.add_subplot()
    values = np.asarray(component[f"log_factor{kind}"])
    values = values if kind else np.exp(values)
    x, y = np.asarray(component["x_mm"]), np.asarray(component["y_mm"])
    drawn = ax.pcolormesh(x, y, values, cmap="viridis", rasterized=True)
    figure.colorbar(drawn, ax=ax, label="sd of ln factor" if kind else "factor")
    ax.set(xlabel="x (mm)", ylabel="y (mm)", aspect="equal")
    ax.invert_yaxis()
