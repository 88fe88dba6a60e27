"""Parse the text of CrystFEL geometry files into a :class:`Geometry`.

Lines are ``name = value`` or ``panel/name = value``; a value without a panel holds for all panels
that the file mentions later (``crystfel_geometry(5)`` of CrystFEL 0.12).
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from ..util.errors import InputError
from .crystfel_geometry import BadRegion, Geometry, Mask, Panel, Quantity
from .crystfel_groups import groups_of, is_group

RESERVED = ("bad", "group", "rigid_group")  # a name that begins so is no panel
N_MASKS = 8
_VECTOR = re.compile(r"([+-]?[\d.]*(?:[eE][+-]?\d+)?)\s*([xyz])")


def parse_geometry(text: str, source: str = "the geometry") -> Geometry:
    """Parse the text of a ``.geom`` file.

    Raises:
        InputError: a line is not ``name = value``, a value is of the wrong kind, there is no panel,
            or a panel lacks its place, size or range of pixels.
    """
    default, panels, bad = Panel(name=""), {}, {}  # type: ignore[var-annotated]
    whole: dict[str, str] = {}
    groups: dict[str, str] = {}
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
            elif owner.startswith(RESERVED[1:]):
                continue
            elif not slash and key.startswith(RESERVED[1:]):
                if is_group(key):
                    groups[key] = value
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
            groups=groups_of(list(panels), groups),
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
    """The panel after one line of the file; names that concern neither geometry nor pixels are
    ignored.
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
    """(x, y, z) of a direction written as ``-0.001x +0.9999y``."""
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
    """A length in metres; one in an image file is in ``unit_of_path`` unless it has a unit."""
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
    """``wavelength`` in Å or ``photon_energy`` in eV, and whether it is the energy."""
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
