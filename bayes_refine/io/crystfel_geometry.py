"""CrystFEL geometry files (``.geom``): panels, beam, masks, where pixels lie in a data file.

Grammar of CrystFEL 0.12's manual page ``crystfel_geometry(5)``: ``name = value`` and
``panel/name = value``; a value without a panel holds for panels that are mentioned later.
Laboratory frame: z along the beam, y up, x completes a right-handed set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np

from ..geometry.detector import Detector
from ..util.errors import InputError

HC_EV_ANGSTROM = 12398.419843320026  # h·c/e, eV·Å (CODATA 2018, exact)
RESERVED = ("bad", "group", "rigid_group")  # no panel's name begins with one of these
N_MASKS = 8
_VECTOR = re.compile(r"([+-]?[\d.]*(?:[eE][+-]?\d+)?)\s*([xyz])")


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
        data: path in the image file; ``%`` stands for a frame's own name.
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
    data: str = "/data/data"
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
    """

    panels: tuple[Panel, ...]
    camera_length_m: Quantity
    wavelength: Quantity
    is_energy: bool
    bandwidth: float
    shift_m: tuple[Quantity, Quantity]
    bad: tuple[BadRegion, ...]
    source: str

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


# -- parsing --------------------------------------------------------------------------------


def parse_geometry(text: str, source: str = "the geometry") -> Geometry:
    """A :class:`Geometry` of the text of a ``.geom`` file.

    Raises:
        InputError: a line that is none of the grammar's, a value of the wrong kind, no panel, or
            a panel without its place, size or range of pixels.
    """
    default, panels, bad = Panel(name=""), {}, {}  # type: ignore[var-annotated]
    whole: dict[str, str] = {}
    bad_default: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.split(";", 1)[0].strip()
        if not line:
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not key:
            raise InputError(f"{source}, line {number}: no 'name = value' in {line[:60]!r}")
        owner, slash, name = key.rpartition("/")
        try:
            if owner.startswith("bad") and slash:
                bad.setdefault(owner, dict(bad_default))[name] = value
            elif owner.startswith(RESERVED[1:]) or (not slash and key.startswith(RESERVED[1:])):
                continue  # rigid groups serve refinement of the detector by other programs
            elif slash:
                panels[owner] = _with(panels.get(owner, replace(default, name=owner)), name, value)
            elif name in _WHOLE:
                whole[name] = value
            else:
                default = _with(default, name, value)
        except ValueError as error:
            raise InputError(f"{source}, line {number}: {key} = {value!r}: {error}") from None
    if not panels:
        raise InputError(f"{source}: no panel; a line such as p0/min_fs = 0 begins one")
    for panel in panels.values():
        _check(panel, source)
    try:
        wavelength, is_energy = _wavelength(whole)
        return Geometry(
            panels=tuple(panels.values()),
            camera_length_m=_length(whole.get("clen", ""), "mm"),
            wavelength=wavelength,
            is_energy=is_energy,
            bandwidth=float(whole.get("bandwidth", 0.0)),
            shift_m=(
                _length(whole.get("detector_shift_x", "0"), "m"),
                _length(whole.get("detector_shift_y", "0"), "m"),
            ),
            bad=tuple(_region(name, values) for name, values in bad.items()),
            source=source,
        )
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None


_WHOLE = {
    *("wavelength", "photon_energy", "electron_voltage", "photon_energy_scale", "bandwidth"),
    *(
        "clen",
        "detector_shift_x",
        "detector_shift_y",
        "peak_list",
        "peak_list_type",
        "peak_info_location",
    ),
}
_NUMBERS = {
    "res": "per_metre",
    "coffset": "offset_m",
    "adu_per_photon": "adu_per_photon",
    "adu_per_eV": "adu_per_ev",
    "max_adu": "max_adu",
    "flag_lessthan": "less",
    "flag_morethan": "more",
    "flag_equal": "equal",
}
_RANGES = {"min_fs": ("fs_range", 0), "max_fs": ("fs_range", 1)} | {
    "min_ss": ("ss_range", 0),
    "max_ss": ("ss_range", 1),
}


def _with(panel: Panel, name: str, value: str) -> Panel:
    """The panel with one line of the file; a name that concerns neither geometry nor pixels is
    passed over.
    """
    if name in _NUMBERS:
        return replace(panel, **{_NUMBERS[name]: float(value)})  # type: ignore[arg-type]
    if name in _RANGES:
        key, end = _RANGES[name]
        limits = list(getattr(panel, key))
        limits[end] = int(float(value)) + end
        return replace(panel, **{key: tuple(limits)})  # type: ignore[arg-type]
    if name in ("corner_x", "corner_y"):
        x, y = panel.corner_px
        return replace(
            panel, corner_px=(float(value), y) if name == "corner_x" else (x, float(value))
        )
    if name in ("fs", "ss"):
        return replace(panel, **{name: _vector(value)})  # type: ignore[arg-type]
    if name == "data":
        return replace(panel, data=value)
    if re.fullmatch(r"dim\d+", name):
        if value not in ("%", "ss", "fs") and not value.isdigit():
            raise ValueError("an axis is %, ss, fs or a number")
        return replace(
            panel, dims=tuple(sorted((dict(panel.dims) | {int(name[3:]): value}).items()))
        )
    if name == "mask_edge_pixels":
        return replace(panel, edge=int(value))
    if name == "no_index":
        return replace(panel, unused=value.lower() == "true" or _truth(value))
    if found := re.fullmatch(r"mask(\d?)(?:_(data|file|goodbits|badbits|good|bad))?", name):
        return _with_mask(panel, int(found[1] or 0), found[2] or "data", value)
    return panel


def _truth(value: str) -> bool:
    try:
        return float(value) != 0
    except ValueError:
        return False


def _with_mask(panel: Panel, number: int, what: str, value: str) -> Panel:
    if number >= N_MASKS:
        raise ValueError(f"masks are numbered 0 to {N_MASKS - 1}")
    masks = dict(panel.masks)
    key = {"data": "path", "file": "file", "good": "good", "bad": "bad"}[what.removesuffix("bits")]
    content = value if key in ("path", "file") else int(value, 0)
    masks[number] = replace(masks.get(number, Mask()), **{key: content})  # type: ignore[arg-type]
    return replace(panel, masks=tuple(sorted(masks.items())))


def _vector(value: str) -> tuple[float, float, float]:
    """(x, y, z) of ``-0.001x +0.9999y``."""
    found = {"x": 0.0, "y": 0.0, "z": 0.0}
    text = value.replace(" ", "")
    if not re.fullmatch(rf"(?:{_VECTOR.pattern})+", text):
        raise ValueError("a direction is written as -0.001x +0.9999y")
    for number, axis in _VECTOR.findall(text):
        found[axis] += float(number + "1" if number in ("", "+", "-") else number)
    return found["x"], found["y"], found["z"]


def _split_unit(value: str) -> tuple[str, str]:
    number, _, unit = value.partition(" ")
    return number, unit.strip()


def _length(value: str, unit_of_path: str) -> Quantity:
    """Metres; of a place in a file without a unit ``unit_of_path``."""
    number, unit = _split_unit(value)
    if not number:
        return Quantity()
    literal = _is_number(number)
    unit = unit or ("m" if literal else unit_of_path)
    if unit not in ("m", "mm"):
        raise ValueError(f"{value!r}: lengths are in m or mm")
    factor = 1.0 if unit == "m" else 1e-3
    return Quantity(float(number) * factor) if literal else Quantity(path=number, factor=factor)


def _wavelength(whole: dict[str, str]) -> tuple[Quantity, bool]:
    """Å of ``wavelength``, eV of ``photon_energy``; and whether it is an energy."""
    if "electron_voltage" in whole:
        raise ValueError("electron_voltage: electron diffraction is not what this program models")
    for key, units in (
        ("wavelength", {"m": 1e10, "A": 1.0, "": 1e10}),
        ("photon_energy", {"eV": 1.0, "keV": 1e3, "": 1.0}),
    ):
        if key in whole:
            number, unit = _split_unit(whole[key])
            if unit not in units:
                raise ValueError(f"{key} = {whole[key]}: its unit is one of {', '.join(units)}")
            factor = units[unit]
            quantity = (
                Quantity(float(number) * factor)
                if _is_number(number)
                else Quantity(path=number, factor=factor)
            )
            return quantity, key == "photon_energy"
    return Quantity(), True


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _region(name: str, values: dict[str, str]) -> BadRegion:
    in_lab = any(key in values for key in ("min_x", "max_x", "min_y", "max_y"))
    axes = ("x", "y") if in_lab else ("fs", "ss")
    try:
        low, high = (
            tuple(float(values[f"{end}_{axis}"]) for axis in axes) for end in ("min", "max")
        )
    except KeyError as missing:
        raise ValueError(f"bad region {name}: no {missing.args[0]}") from None
    return BadRegion(values.get("panel", ""), low, high, in_lab)  # type: ignore[arg-type]


def _check(panel: Panel, source: str) -> None:
    wrong = None
    if min(panel.shape) <= 0 or min(panel.fs_range[0], panel.ss_range[0]) < 0:
        wrong = "its pixels: min_fs, max_fs, min_ss, max_ss"
    elif not np.isfinite(panel.corner_px).all():
        wrong = "its place: corner_x, corner_y"
    elif not (panel.per_metre > 0 and np.isfinite(panel.per_metre)):
        wrong = "its pixel size: res, in pixels per metre"
    elif not np.linalg.norm(np.cross(panel.fs, panel.ss)) > 0:
        wrong = "two directions: fs and ss"
    if wrong:
        raise InputError(f"{source}: panel {panel.name} lacks {wrong}")


assert {f.name for f in fields(Panel)} >= set(_NUMBERS.values())
