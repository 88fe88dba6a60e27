"""Tables of a fit: the numbers of each image, and those that the images share, by name.

An image is *usable* if its status says so (``util.status.Kind.usable``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gemmi
import numpy as np

from ..geometry.detector import pixel_to_lab
from ..geometry.experiments import Still
from ..infer import Fit, Site
from ..merging.agreement import pearson
from ..physics.contract import order, unknown
from ..util.large_arrays import release, room
from ..util.status import Kind, usable
from ..util.text import printable
from .loop import RunFit
from .reflections import Reflections
from .state import PANELS

AT_A_TIME = 4096  # images whose reflections are in memory


def usable_images(run: RunFit) -> np.ndarray:
    """(n,) bool: images that were fitted and found a maximum."""
    return usable(run.status)


def fitted_images(run: RunFit) -> np.ndarray:
    """(n,) bool: images with a posterior mode, usable or not."""
    informing = run.reflections.by_image(lambda r: r.informs, len(run.stills))
    return (informing > 0) & (run.status != Kind.NO_MAXIMUM)


def mean_cell(run: RunFit) -> gemmi.UnitCell:
    """Mean refined cell of the usable images, Å and degrees."""
    cells = [
        s.crystal.cell.parameters
        for s, good in zip(run.stills, usable_images(run), strict=True)
        if good
    ]
    return gemmi.UnitCell(*np.mean(cells, axis=0))


def lab_positions(run: RunFit) -> np.ndarray:
    """(N, 2) predicted centres, x and y in the lab frame, mm: one frame for all panels."""
    r, found = run.reflections, room((len(run.reflections), 2))
    for still, rows in zip(run.stills, _by_image(run), strict=True):
        xy = r.xy_px[rows].astype(float)
        found[rows] = pixel_to_lab(still.detector, r.panel[rows], xy)[:, :2]
    release(found)
    return found


def _by_image(run: RunFit) -> Iterator[slice]:
    """The reflections of each image."""
    r, n = run.reflections, len(run.stills)
    ends = np.searchsorted(r.image, np.arange(n, dtype=r.image.dtype), side="right").tolist()
    for k, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        yield slice(start, end)
        if k % AT_A_TIME == 0:
            r.release()


def image_table(run: RunFit) -> dict[str, np.ndarray]:
    """Columns of ``images.csv``: a row for each image, NaN where the image could not be fitted.

    identifier, status, n_reflections (measured); reindex and reindex_log_odds where indexing is
    ambiguous; every unknown of an image with its sd: G, B (Å²), R1 (Å⁻¹), rot_x_mrad, ...,
    strain_1, ..., and further unknowns of the model; cc_model, the Pearson CC of J and J_model over
    all measured reflections with a reference, free ones too.  Images that cannot be read come after
    all others.

        table = image_table(run)
        table["G"][table["status"] == "converged"]
    """
    n, r = len(run.stills), run.reflections
    fitted = fitted_images(run)
    columns: dict[str, np.ndarray] = {
        "identifier": np.array([printable(still.identifier) for still in run.stills], object),
        "status": run.status,
        "n_reflections": r.by_image(lambda some: some.measured, n).astype(int),
    }
    unknowns: dict[str, np.ndarray] = {}
    for site in sorted((s for s in run.fit.sites if s.per_image), key=lambda s: order(s.name)):
        for name, value, sd in _numbers(run.fit, site):
            unknowns[name] = np.where(fitted, value, np.nan)
            unknowns[f"{name}_sd"] = np.where(fitted, sd, np.nan)
    known = r.column(lambda some: some.measured & np.isfinite(some.intensity_reference))
    cc = [_correlation(r, rows, known[rows]) for rows in _by_image(run)]
    if len(run.reindexing.ambiguity) > 1:
        columns |= run.reindexing.columns()
    columns |= unknowns
    columns["cc_model"] = np.where(fitted, cc, np.nan)
    return _with_unread(columns, run) if run.unread else columns


def _correlation(r: Reflections, rows: slice, known: np.ndarray) -> float:
    """Pearson CC of J and J_model of those of some reflections (k,) that are ``known`` (k,)."""
    J_model = r.scale[rows] * r.intensity_reference[rows]
    return pearson(r.J[rows][known].astype(float), J_model[known].astype(float))


def _with_unread(columns: dict[str, np.ndarray], run: RunFit) -> dict[str, np.ndarray]:
    """The columns with a row for each image that cannot be read."""
    n = len(run.unread)
    known: dict[str, list] = {
        "identifier": [printable(still.identifier) for still, _ in run.unread],
        "status": [status for _, status in run.unread],
        "n_reflections": [0] * n,
        "reindex": [""] * n,
    }

    def longer(name: str, column: np.ndarray) -> np.ndarray:
        more = np.empty(n, np.asarray(column).dtype)
        more[:] = known.get(name, [np.nan] * n)
        return np.concatenate([column, more])

    return {name: longer(name, column) for name, column in columns.items()}


def _numbers(fit: Fit, site: Site) -> Iterator[tuple[str, Any, Any]]:
    """(name, value, sd) of each number of a site; of a site ``log_x`` value and sd are those of x.

    Values are (n,) of an image's unknown, scalars of a shared one.
    """
    lead = len(fit.image) if site.per_image else 1
    value = np.asarray(fit.values()[site.name]).reshape(lead, -1)
    sd = np.asarray(fit.sd(site.name)).reshape(lead, -1)
    if site.name.startswith("log_"):
        value = np.exp(value)
        sd = value * sd
    for k, name in enumerate(unknown(site.name).numbers(value.shape[1])):
        if site.per_image:
            yield name, value[:, k], sd[:, k]
        else:
            yield name, float(value[0, k]), float(sd[0, k])


def shared_values(run: RunFit) -> dict[str, dict[str, float]]:
    """Value and sd of each shared unknown, with the unit in the name.

    Of the refined distance and beam centre (of the first image; px of the panel that the beam
    meets) there is also the shift.  Moves of panels are in :func:`panel_moves`.

        shared_values(run)["distance_mm"]  # {"value": ..., "sd": ..., "shift": ...}
    """
    found = {
        name: {"value": value, "sd": sd}
        for site in run.fit.sites
        if not site.per_image and site.name not in PANELS
        for name, value, sd in _numbers(run.fit, site)
    }
    names = ("beam_center_x", "beam_center_y", "distance")
    if not all(f"{name}_mm" in found for name in names):
        return found
    shift = {name: found.pop(f"{name}_mm") for name in names}
    place = beam_place(run.stills[0])
    size = dict(zip(("beam_center_x", "beam_center_y"), place["pixel_size_mm"], strict=True))
    for name, part in shift.items():
        mm = place[name]
        found[f"{name}_mm"] = {"value": mm, "sd": part["sd"], "shift": part["value"]}
        if name in size:
            px = {k: v / size[name] for k, v in found[f"{name}_mm"].items()}
            found[f"{name}_px"] = px
    return found


def panel_moves(run: RunFit) -> list[dict[str, Any]]:
    """The moves of each group of panels: its panels, and x_px, y_px, turn_mrad with their sd.

    The list is empty if panels are held in place.
    """
    names = {site.name for site in run.fit.sites}
    if not names.issuperset(PANELS):
        return []
    values = run.fit.values()
    group = run.stills[0].detector.group
    return [
        {"panels": np.flatnonzero(group == k).tolist()}
        | {
            f"{name.removeprefix('panel_')}{suffix}": float(of[k])
            for name in PANELS
            for suffix, of in (("", values[name]), ("_sd", run.fit.sd(name)))
        }
        for k in range(int(group.max()) + 1)
    ]


def beam_place(still: Still) -> dict[str, Any]:
    """Where the beam meets the detector: distance and beam centre along fast and slow, mm.

    Numbers are of the panel that the beam meets, or that is nearest to the beam; the distance is
    along the panel's normal.
    """
    detector, along = still.detector, still.beam.s0_direction
    v = np.array(
        [
            along @ np.linalg.inv(np.stack(axes))
            for axes in zip(detector.fast, detector.slow, detector.origin_mm, strict=True)
        ]
    )
    mm = v[:, :2] / v[:, 2:]
    size = detector.pixel_size_mm * detector.shape[:, ::-1]
    outside = np.linalg.norm(np.clip(-mm, 0, None) + np.clip(mm - size, 0, None), axis=1)
    p = int(np.argmin(outside))
    return {
        "panel": p,
        "beam_center_x": float(mm[p, 0]),
        "beam_center_y": float(mm[p, 1]),
        "distance": float(abs(detector.origin_mm[p] @ detector.normal[p])),
        "pixel_size_mm": detector.pixel_size_mm[p],
    }
