"""What the crystal does while an image is exposed: the scan and the goniometer of an experiment."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...geometry.crystal import rotation_matrix, rotation_part
from ...util.errors import InputError
from .schema import Document, Number, ScanEntry, Vector

STILL_DEG = 1e-3  # a turn below 0.02 mrad is less than orientations are known to
WIDEST_DEG = 0.5  # a wider frame holds whole reflections, whose scale and place it does not tell
MOST_IMAGES = 100_000  # of one scan
_MATRIX = Annotated[list[Number], Field(min_length=9, max_length=9)]
_IDENTITY = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]


class Exposure(NamedTuple):
    """A turn of the crystal during an exposure.

    Attributes:
        turn_mrad: (3,) rotation vector, lab frame.
        mount: (3, 3) rotation from the crystal at the goniometer's datum, which files hold, to the
            middle of the exposure.
        image: its number, where the scan of the experiment has several; else None.
    """

    turn_mrad: np.ndarray
    mount: np.ndarray
    image: int | None = None


class _Goniometer(BaseModel):
    """One axis with fixed rotations before (``fixed``) and after it, or several axes."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    rotation_axis: Vector | None = None
    fixed_rotation: _MATRIX = _IDENTITY
    setting_rotation: _MATRIX = _IDENTITY
    axes: list[Vector] = []
    angles: list[Number] = []
    scan_axis: int = 0

    def parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scan axis (3,), and the fixed and the setting rotation (3, 3)."""
        if self.rotation_axis is not None:
            fixed, setting = (
                rotation_part(np.reshape(m, (3, 3)))
                for m in (self.fixed_rotation, self.setting_rotation)
            )
            return _unit(self.rotation_axis), fixed, setting
        k = self.scan_axis
        if not 0 <= k < len(self.axes) or len(self.angles) != len(self.axes):
            raise ValueError("it has no rotation_axis, and no axes with angles and a scan_axis")
        turned = [
            rotation_matrix(np.radians(angle) * 1e3 * _unit(axis))
            for axis, angle in zip(self.axes, self.angles, strict=True)
        ]
        fixed, setting = np.eye(3), np.eye(3)
        for R in turned[:k]:
            fixed = R @ fixed
        for R in turned[k + 1 :]:
            setting = R @ setting
        return _unit(self.axes[k]), fixed, setting


def exposures_of(document: Document, n: int) -> list[Exposure | None]:
    """The turn of each image of experiment ``n``; None, once, of a still.

    A' = S·R(axis, φ)·F·A at the middle of the exposure (dxtbx), φ the scan's angle there, F and S
    the goniometer's fixed and setting rotations.  Goniometers of stills are not looked at.

    Raises:
        InputError: a turn of more than 0.5°, or no goniometer that says about what axis.
    """
    entry = document.experiment[n]
    if entry.scan is None or abs(width := _width(scan := document.scan[entry.scan])) < STILL_DEG:
        return [None]
    if abs(width) > WIDEST_DEG:
        raise InputError(
            f"scan[{entry.scan}]: {width:g}° an image: frames of a turning crystal can be fitted "
            f"up to {WIDEST_DEG:g}°; integrate wider ones as rotation data (dials.integrate)"
        )
    listed, k = document.goniometer, entry.goniometer
    where = "goniometer" if k is None else f"goniometer[{str(k)[:20]}]"
    try:
        if not (isinstance(k, int) and isinstance(listed, list) and 0 <= k < len(listed)):
            raise ValueError("it is missing, and the scan turns the crystal")
        axis, fixed, setting = _Goniometer.model_validate(listed[k]).parts()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f".{part}" for part in first["loc"])
        raise InputError(f"{where}{place}: {first['msg'].lower()}") from None
    except ValueError as error:
        raise InputError(f"{where}: {error}; set it with dials.modify_experiments") from None
    begin, end = scan.image_range or (1, 1)
    if not 0 <= end - begin < MOST_IMAGES:
        raise InputError(f"scan[{entry.scan}].image_range: images {begin} to {end} cannot be")
    found: list[Exposure | None] = []
    for image in range(begin, end + 1):
        angle = _start(scan) + (image - begin + 0.5) * width
        mount = setting @ rotation_matrix(np.radians(angle) * 1e3 * axis) @ fixed
        turn_mrad = np.radians(width) * 1e3 * (setting @ axis)
        found.append(Exposure(turn_mrad, mount, image if end > begin else None))
    return found


def scan_of_one(scan: dict[str, Any], image: int) -> dict[str, Any]:
    """The entry of one image of a scan of several."""
    first, last = scan["image_range"]
    n, k = last - first + 1, image - first

    def one(values: Any) -> Any:
        return values[k : k + 1] if isinstance(values, list) and len(values) == n else values

    part = {key: one(value) for key, value in scan.items()}
    part["image_range"] = [image, image]
    if "valid_image_ranges" in part:
        part["valid_image_ranges"] = {}
    width = _width(entry := ScanEntry.model_validate(scan))
    start = _start(entry) + k * width
    if entry.properties is not None:
        properties = {key: one(value) for key, value in scan["properties"].items()}
        part["properties"] = {**properties, "oscillation": [start], "oscillation_width": [width]}
    else:
        part["oscillation"] = [start, width]
    return part


def _unit(vector: Vector) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    if not length > 1e-9:
        raise ValueError(f"{vector} is not a direction")
    return np.array(vector) / length


def _width(scan: ScanEntry) -> float:
    """Turn of an image, degrees."""
    if scan.properties is not None:  # dxtbx since 3.17
        if scan.properties.oscillation_width:
            return max(scan.properties.oscillation_width, key=abs)
        angles = scan.properties.oscillation or []
        return angles[1] - angles[0] if len(angles) > 1 else 0.0
    return scan.oscillation[1] if scan.oscillation else 0.0


def _start(scan: ScanEntry) -> float:
    """Angle of the scan axis when the exposure begins, degrees."""
    if scan.properties is not None:
        return (scan.properties.oscillation or [0.0])[0]
    return scan.oscillation[0] if scan.oscillation else 0.0
