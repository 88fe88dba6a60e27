"""CrystFEL geometry files (``.geom``): panels, beam, masks, where pixels lie in a data file.

As CrystFEL 0.12's manual page ``crystfel_geometry(5)`` has it; the grammar is in
``crystfel_geometry_text``.  Laboratory frame: z along the beam, y up, x completes a right-handed
set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..geometry.detector import Detector

HC_EV_ANGSTROM = 12398.419843320026  # h·c/e, eV·Å (CODATA 2018, exact)


@dataclass(frozen=True)
class Quantity:
    """A number, or the place in an image file where the number is.

    Attributes:
        value: the number in the unit of the attribute that holds it; NaN where ``path`` says.
        path: of a value, or of one value a frame, in the image file; "" for a number.
        factor: what the file's number is multiplied by.
    """

    value: float = float("nan")
    path: str = ""
    factor: float = 1.0

    @property
    def known(self) -> bool:
        """Whether the value needs no image file."""
        return not self.path


@dataclass(frozen=True)
class Mask:
    """A mask of CrystFEL: a pixel is bad if it has a bad bit, or lacks a good one.

    Attributes:
        path: data set, of the array or of one panel. file: "" for the image's own.
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
        name: of the file. corner_px: (2,) lab x and y of the outer corner of its first pixel, in
            its pixels. fs, ss: (3,) lab direction of a step of one pixel, in pixels.
        per_metre: pixels in a metre. offset_m: z beyond the camera length.
        fs_range, ss_range: first pixel and the one after the last, in the data array.
        data: path in the image file, "" where not said; ``%`` stands for a frame's own name.
        dims: for each axis of the array "%" (frame), "ss", "fs" or an index.
        adu_per_photon: NaN where not said; adu_per_ev likewise.
        max_adu: trusted up to; less, more, equal: values of bad pixels, NaN for none.
        edge: bad pixels along each edge. unused: whether all its pixels are bad.
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
        """What each axis of the data array is; ss and fs where the file says nothing."""
        said = dict(self.dims)
        return [said.get(k, "") for k in range(max(said, default=-1) + 1)] or ["ss", "fs"]


@dataclass(frozen=True)
class BadRegion:
    """A rectangle of bad pixels: of a panel's array (``fs``/``ss``), or of the laboratory's x
    and y in pixels.

    Attributes:
        panel: name, or "" for every panel. low, high: (2,) of fs and ss, or of x and y, both ends
            bad. in_lab: whether x and y are meant.
    """

    panel: str = ""
    low: tuple[float, float] = (-np.inf, -np.inf)
    high: tuple[float, float] = (np.inf, np.inf)
    in_lab: bool = False


@dataclass(frozen=True)
class Geometry:
    """What a ``.geom`` file says.

    Attributes:
        panels: in the file's order. camera_length_m: z of the detector.
        wavelength: Å, where ``is_energy`` is false; else the photon energy, eV.
        is_energy: whether ``wavelength`` is an energy.
        bandwidth: rms fraction, 0 where not said.
        shift_m: of the whole detector along x and y.
        bad: regions. source: file, for messages.
        groups: number of the group that each panel moves with; empty where each is its own.
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
        """The panels in the laboratory, for one image.

        Args:
            camera_length_m, energy_ev: of the image. shift_mm: of its crystal's own refinement
                (``predict_refine/det_shift``), added to x and y.
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
    """(x0, y0, x1, y1) of bad pixels in the panel's own pixels, ends left out."""
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
    """(ny, nx) bool: pixels whose centres lie in a bad region of the laboratory's x and y."""
    y, x = np.mgrid[: panel.shape[0], : panel.shape[1]] + 0.5
    lab_x = panel.corner_px[0] + x * panel.fs[0] + y * panel.ss[0]
    lab_y = panel.corner_px[1] + x * panel.fs[1] + y * panel.ss[1]
    bad = np.zeros(panel.shape, bool)
    for region in geometry.bad:
        if region.in_lab and region.panel in ("", panel.name):
            (x0, y0), (x1, y1) = region.low, region.high
            bad |= (lab_x > x0) & (lab_x < x1) & (lab_y > y0) & (lab_y < y1)
    return bad
