"""CrystFEL geometry files (``.geom``): panels, beam, masks, where pixels lie in a data file.

The format is that of the manual page ``crystfel_geometry(5)`` of CrystFEL 0.12; its grammar is in
``crystfel_geometry_text``.  In the lab frame z points along the beam and y up; x completes a
right-handed set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..geometry.detector import Detector

HC_EV_ANGSTROM = 12398.419843320026  # h·c/e, eV·Å (CODATA 2018, exact)


@dataclass(frozen=True)
class Quantity:
    """A number, or the place in an image file where the number is found.

    Attributes:
        value: the number, in the unit of the attribute that holds the quantity; NaN if it is in
            the image file.
        path: path in the image file of one number, or of one a frame; "" if ``value`` is known.
        factor: multiplies the number in the image file.
    """

    value: float = float("nan")
    path: str = ""
    factor: float = 1.0

    @property
    def known(self) -> bool:
        """Whether the value is known without the image file."""
        return not self.path


@dataclass(frozen=True)
class Mask:
    """A mask of CrystFEL: a pixel is bad if it has a bad bit, or lacks a good one.

    Attributes:
        path: data set, of the array or of one panel. file: of the mask; "" for the image file.
        good, bad: bits.
    """

    path: str = ""
    file: str = ""
    good: int = 0
    bad: int = 0


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        name: in the file. corner_px: (2,) lab x and y of the outer corner of the panel's first
            pixel, in pixels. fs, ss: (3,) lab vector of a step of one pixel, in pixels.
        per_metre: pixels in a metre. offset_m: added to the camera length, along z.
        fs_range, ss_range: first pixel and the one after the last, in the data array.
        data: path in the image file, "" if the geometry has none; ``%`` is a part of the event.
        dims: for each axis of the array "%" (frame), "ss", "fs" or an index.
        adu_per_photon, adu_per_ev: gain; NaN if the geometry has none.
        max_adu: largest trusted value. less, more, equal: values of bad pixels, NaN for none.
        edge: number of bad pixels along each edge. unused: whether all pixels are bad.
        masks: by number.
    """

    name: str
    corner_px: tuple[float, float] = (float("nan"), float("nan"))
    fs: tuple[float, float, float] = (1.0, 0.0, 0.0)
    ss: tuple[float, float, float] = (0.0, 1.0, 0.0)
    per_metre: float = float("nan")
    offset_m: float = 0.0
    fs_range: tuple[int, int] = (-1, -1)
    ss_range: tuple[int, int] = (-1, -1)
    data: str = ""
    dims: tuple[tuple[int, str], ...] = ()
    adu_per_photon: float = float("nan")
    adu_per_ev: float = float("nan")
    max_adu: float = float("inf")
    less: float = float("nan")
    more: float = float("nan")
    equal: float = float("nan")
    edge: int = 0
    unused: bool = False
    masks: tuple[tuple[int, Mask], ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Pixels along slow and fast."""
        return self.ss_range[1] - self.ss_range[0], self.fs_range[1] - self.fs_range[0]

    @property
    def axes(self) -> list[str]:
        """What each axis of the data array is; ss and fs by default."""
        said = dict(self.dims)
        return [said.get(k, "") for k in range(max(said, default=-1) + 1)] or ["ss", "fs"]


@dataclass(frozen=True)
class BadRegion:
    """A rectangle of bad pixels, in a panel's ``fs`` and ``ss`` or in lab x and y (pixels).

    Attributes:
        panel: name, or "" for every panel. low, high: (2,) of fs and ss, or of x and y; both ends
            are bad. in_lab: whether the rectangle is in x and y.
    """

    panel: str = ""
    low: tuple[float, float] = (-np.inf, -np.inf)
    high: tuple[float, float] = (np.inf, np.inf)
    in_lab: bool = False


@dataclass(frozen=True)
class Geometry:
    """The content of a ``.geom`` file.

    Attributes:
        panels: in the file's order. camera_length_m: z of the detector.
        wavelength: Å; if ``is_energy``, the photon energy in eV instead.
        is_energy: whether ``wavelength`` is an energy.
        bandwidth: rms fraction, 0 if the file has none.
        shift_m: of the whole detector along x and y.
        bad: bad regions. source: name of the file, for messages.
        groups: number of the group that each panel moves with; empty if each moves by itself.
    """

    panels: tuple[Panel, ...]
    camera_length_m: Quantity
    wavelength: Quantity
    is_energy: bool
    bandwidth: float
    shift_m: tuple[Quantity, Quantity]
    bad: tuple[BadRegion, ...]
    source: str
    groups: tuple[int, ...] = ()

    def detector(
        self, camera_length_m: float, energy_ev: float, shift_mm: tuple[float, float] = (0.0, 0.0)
    ) -> Detector:
        """The detector of one image, in the lab frame.

        Args:
            camera_length_m, energy_ev: of the image. shift_mm: added to x and y, as CrystFEL's
                refinement found it for this crystal (``predict_refine/det_shift``).
        """
        shape = np.array([p.shape for p in self.panels])
        step = np.array([[p.fs, p.ss] for p in self.panels])  # (P, 2, 3), pixels
        length = np.linalg.norm(step, axis=2)
        pitch = 1e3 / np.array([p.per_metre for p in self.panels])
        corner = np.array([[*p.corner_px, 0.0] for p in self.panels]) * pitch[:, None]
        corner[:, 2] = 1e3 * (camera_length_m + np.array([p.offset_m for p in self.panels]))
        moved = [s.value if s.known else 0.0 for s in self.shift_m]
        corner[:, :2] += 1e3 * np.array(moved) + np.asarray(shift_mm)
        gain = [_gain(p, energy_ev) for p in self.panels]
        high = [min(p.max_adu, p.more) if p.more == p.more else p.max_adu for p in self.panels]
        low = [p.less if p.less == p.less else -np.inf for p in self.panels]
        zero = np.zeros(len(self.panels))
        return Detector(
            origin_mm=corner,
            fast=step[:, 0] / length[:, :1],
            slow=step[:, 1] / length[:, 1:],
            pixel_size_mm=length * pitch[:, None],
            shape=shape,
            trusted_range=np.stack([low, high], axis=1),
            gain=np.array(gain),
            pedestal=zero,
            thickness_mm=zero,
            mu_per_mm=zero,
            untrusted=tuple(tuple(_rectangles(p, self.bad)) for p in self.panels),
            groups=self.groups,
        )


def _gain(panel: Panel, energy_ev: float) -> float:
    if panel.adu_per_photon == panel.adu_per_photon:
        return panel.adu_per_photon
    if panel.adu_per_ev == panel.adu_per_ev and np.isfinite(energy_ev):
        return panel.adu_per_ev * energy_ev
    return 1.0


def _rectangles(panel: Panel, bad: tuple[BadRegion, ...]) -> Iterator[tuple[int, int, int, int]]:
    """Rectangles (x0, y0, x1, y1) of bad pixels, in pixels of the panel, upper ends excluded."""
    ny, nx = panel.shape
    if panel.unused:
        yield 0, 0, nx, ny
    if (e := panel.edge) > 0:
        yield from ((0, 0, nx, e), (0, ny - e, nx, ny), (0, 0, e, ny), (nx - e, 0, nx, ny))
    for region in bad:
        if region.in_lab or region.panel not in ("", panel.name):
            continue
        first = np.array([panel.fs_range[0], panel.ss_range[0]])
        low = np.clip(np.ceil(np.array(region.low) - first), 0, [nx, ny]).astype(int)
        high = np.clip(np.floor(np.array(region.high) - first) + 1, 0, [nx, ny]).astype(int)
        if (high > low).all():
            yield int(low[0]), int(low[1]), int(high[0]), int(high[1])


def lab_region_mask(geometry: Geometry, panel: Panel) -> np.ndarray:
    """(ny, nx) bool: pixels whose centres lie in a bad region that is given in lab x and y."""
    y, x = np.mgrid[: panel.shape[0], : panel.shape[1]] + 0.5
    lab_x = panel.corner_px[0] + x * panel.fs[0] + y * panel.ss[0]
    lab_y = panel.corner_px[1] + x * panel.fs[1] + y * panel.ss[1]
    bad = np.zeros(panel.shape, bool)
    for region in geometry.bad:
        if region.in_lab and region.panel in ("", panel.name):
            (x0, y0), (x1, y1) = region.low, region.high
            bad |= (lab_x > x0) & (lab_x < x1) & (lab_y > y0) & (lab_y < y1)
    return bad
