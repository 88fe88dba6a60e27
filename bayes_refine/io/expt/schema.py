"""The parts of an ``.expt`` file that are read, and the values that they may have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
)

from ...util.errors import InputError

_MAX_PLACE = 120  # characters shown of a place in the file


def _range(low: float, high: float, **more: Any) -> Any:
    return Field(strict=True, allow_inf_nan=False, ge=low, le=high, **more)


def _no_nan(value: float) -> float:
    if value != value:
        raise ValueError("not a number")
    return value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, int | float) else value


def _name(value: Any) -> str | None:
    return None if value is None else _text(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):  # pydantic's str would refuse file names that are not UTF-8
        raise ValueError("should be a text")
    return value


Number = Annotated[float, _range(-1e9, 1e9)]
Positive = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0, le=1e9)]
Limit = Annotated[float, Field(strict=True), AfterValidator(_no_nan)]  # ±∞ is no limit
Index = Annotated[int, _range(0, 1e9)]
Pixels = Annotated[int, _range(1, 1e5)]
Pixel = Annotated[int, _range(-1e6, 1e6)]
Text = Annotated[str, PlainValidator(_text)]
Name = Annotated[str | None, PlainValidator(_name)]  # of a file; null if there is none
Vector = tuple[Number, Number, Number]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class BeamEntry(_Entry):
    """A beam: ``direction`` points to the source; the wavelength is in Å."""

    kind: Annotated[str | None, Field(alias="__id__")] = None
    direction: Vector
    wavelength: Annotated[float, _range(1e-3, 100.0)]
    polarization_normal: Vector = (0.0, 1.0, 0.0)
    polarization_fraction: Annotated[float, _range(0.0, 1.0)] = 0.999


class Strategy(_Entry):
    """The conversion between positions in mm and in pixels."""

    type: Literal[
        "SimplePxMmStrategy",
        "ParallaxCorrectedPxMmStrategy",
        "OffsetPxMmStrategy",
        "OffsetParallaxCorrectedPxMmStrategy",
    ] = "SimplePxMmStrategy"


class PanelEntry(_Entry):
    """A panel: lengths in mm, sizes (fast, slow) in pixels."""

    fast_axis: Vector
    slow_axis: Vector
    origin: Vector
    image_size: tuple[Pixels, Pixels]
    pixel_size: tuple[Positive, Positive]
    trusted_range: tuple[Limit, Limit]
    raw_image_offset: tuple[Index, Index] | None = None
    thickness: Annotated[float, _range(0.0, 1e3)] = 0.0
    mu: Annotated[float, _range(0.0, 1e6)] = 0.0
    mask: list[tuple[Pixel, Pixel, Pixel, Pixel]] | None = None
    gain: Positive = 1.0
    pedestal: Number = 0.0
    px_mm_strategy: Strategy | None = None


class Node(_Entry):
    """A group of the hierarchy, with a frame and children; or a leaf, the number of a panel."""

    panel: Index | None = None
    fast_axis: Vector | None = None
    slow_axis: Vector | None = None
    origin: Vector | None = None
    children: list[Node] = []


class DetectorEntry(_Entry):
    """A detector: panels, and, if the file has a hierarchy, the groups that hold the panels."""

    panels: Annotated[list[PanelEntry], Field(min_length=1, max_length=10_000)]
    hierarchy: Node | None = None


class CrystalEntry(_Entry):
    """A crystal: axes of the real-space cell in the lab frame, Å."""

    real_space_a: Vector
    real_space_b: Vector
    real_space_c: Vector
    space_group_hall_symbol: Text


class ScanProperties(_Entry):
    """Properties of a scan, as dxtbx writes them since version 3.17."""

    oscillation: list[Number] | None = None
    oscillation_width: Annotated[list[Number] | None, BeforeValidator(_listed)] = None


class ScanEntry(_Entry):
    """A scan: the frames of an experiment, from 1, and how far the crystal turns in each."""

    image_range: tuple[Pixel, Pixel] | None = None
    properties: ScanProperties | None = None
    oscillation: tuple[Number, Number] | None = None  # start and width, before dxtbx 3.17


class ImageSetEntry(_Entry):
    """An image set: names of files, or a template with # for digits; names of masks and maps."""

    images: list[Text] | None = None
    template: Text | None = None
    single_file_indices: list[Index] | None = None
    mask: Name = None
    gain: Name = None
    pedestal: Name = None
    dx: Name = None
    dy: Name = None


class ExperimentEntry(_Entry):
    """An experiment: the indices of its beam, detector, crystal and so on."""

    identifier: Text | None = None
    beam: Index
    detector: Index
    imageset: Index
    crystal: Index | None = None
    scan: Index | None = None
    goniometer: Any = None  # a still's goniometer does not matter


class Document(_Entry):
    """An experiment list."""

    experiment: Annotated[list[ExperimentEntry], Field(min_length=1)]
    beam: list[BeamEntry]
    detector: list[DetectorEntry]
    crystal: list[CrystalEntry]
    imageset: list[ImageSetEntry]
    scan: list[ScanEntry] = []
    goniometer: Any = None


def checked(document: dict[str, Any], path: Path) -> Document:
    """Check shapes, types and ranges of all that is read of a document, and its indices.

    Raises:
        InputError: the first error, with its place in the file, such as ``beam[0].wavelength``.
    """
    try:
        found = Document.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{path}, {_explained(error)}; write the file anew with DIALS") from None
    for n, entry in enumerate(found.experiment):
        for key in ("beam", "detector", "crystal", "imageset", "scan"):
            index, there = getattr(entry, key), len(getattr(found, key))
            if index is not None and index >= there:
                raise InputError(
                    f"{path}, experiment[{n}].{key}: there is no {key}[{index}], the file has "
                    f"{there}; write the file anew with DIALS"
                )
    return found


def _explained(error: ValidationError) -> str:
    """The place of the first error, and the error."""
    first, n = error.errors(include_url=False)[0], error.error_count()
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    place = "".join(parts).removeprefix(".")
    if len(place) > _MAX_PLACE:
        place = f"{place[:_MAX_PLACE]}…"
    if first["type"] == "missing":
        what = "is missing"
    else:
        what = first["msg"].replace("Input should", "should").removeprefix("Value error, ")
        what = what[0].lower() + what[1:]
        if isinstance(first["input"], str | int | float | None):
            what += f", it is {_short(first['input'])}"
    others = f" (and {n - 1} more like that)" if n > 1 else ""
    return f"{place}: {what}{others}"


def _short(value: Any) -> str:
    if isinstance(value, int) and abs(value) > 10**20:
        return "a huge number"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
