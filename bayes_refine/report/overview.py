"""``overview.png``: the first pictures of the report on one page."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..fitting.loop import RunFit
from ..fitting.state import tails
from ..fitting.tables import image_table
from ..io.protocols import Images
from ..util.errors import InputError
from . import charts, run_charts
from .images import failed
from .run import observed_and_expected
from .spots import predicted_spots
from .style import STYLE

QUANTITIES = ("G",), ("B",), ("rot_x_mrad", "rot_y_mrad", "rot_z_mrad"), ("R1",)
_MARGINS = {"left": 0.19, "right": 0.98, "bottom": 0.14, "top": 0.9}


def overview(run: RunFit, reader: Images) -> Any:
    """Draw one page: an image with its predictions, the fit of J, the values of all images."""
    import matplotlib
    from matplotlib.figure import Figure

    r, table = observed_and_expected(run), image_table(run)
    nu = tails(run.fit.values(), run.priors)
    pictures: list[tuple[Any, Callable[[Any], Any], str]] = [
        ((0, 2), partial(charts.observed_expected, r=r), "J against J_model, photons"),
        ((0, 3), partial(charts.partiality_curve, r=r), "partiality"),
        ((1, 2), partial(charts.residuals_by_resolution, r=r), "residuals, σ as the fit took it"),
        ((1, 3), partial(charts.pull_histogram, r=r, nu=nu), "distribution of the residuals"),
    ]
    pictures += [
        ((2, k), partial(run_charts.across_images, table=table, names=names, bad=failed(table)), "")
        for k, names in enumerate(QUANTITIES)
        if names[0] in table
    ]
    settings: Any = {f"figure.subplot.{side}": value for side, value in _MARGINS.items()}
    with matplotlib.rc_context({**STYLE, **settings}):
        figure = Figure(figsize=(15, 10.4))
        grid = figure.add_gridspec(
            3, 4, height_ratios=[1, 1, 0.8], left=0, right=1, bottom=0, top=1
        )
        ax = figure.add_subfigure(grid[:2, :2]).add_axes((0.08, 0.12, 0.9, 0.84))
        try:
            predicted_spots(ax, run, reader)
        except InputError as error:  # the image file was removed since the fit
            ax.set_title(str(error)[:80], parse_math=False)
        for place, draw, title in pictures:
            part = figure.add_subfigure(grid[place])
            draw(part)
            if title:
                part.axes[0].set_title(title)
    return figure


def write_overview(path: Path, run: RunFit, reader: Images) -> list[str]:
    """Write the page as a PNG file; return no sentences, since no part of it can be missing."""
    figure = overview(run, reader)
    figure.savefig(path, dpi=110, format="png", metadata={"Software": "bayes_refine"})
    return []
