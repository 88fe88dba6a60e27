"""CrystFEL streams (``.stream``, also ``.gz``): a chunk for each image, read one at a time.

The format is 2.3, as ``libcrystfel/src/stream.c`` of CrystFEL 0.12 writes it.  Reciprocal axes are
in the lab frame of the geometry file (z along the beam, y up).
"""

from __future__ import annotations

import bz2
import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..util.errors import InputError

FIRST_LINE = "CrystFEL stream format "
DAMAGED = (OSError, EOFError, zlib.error)
_BEGIN_CHUNK, _END_CHUNK = "----- Begin chunk -----", "----- End chunk -----"
_BEGIN_CRYSTAL, _END_CRYSTAL = "--- Begin crystal", "--- End crystal"
_PEAKS, _END_PEAKS = "Peaks from peak search", "End of peak list"
_REFLECTIONS, _END_REFLECTIONS = "Reflections measured after indexing", "End of reflections"
_SECTIONS = {
    "geometry": ("----- Begin geometry file -----", "----- End geometry file -----"),
    "cell": ("----- Begin unit cell -----", "----- End unit cell -----"),
}
_NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
_AXIS = re.compile(rf"([abc])star = {_NUMBER} {_NUMBER} {_NUMBER} nm\^-1")
_SHIFT = re.compile(rf"predict_refine/det_shift x = {_NUMBER} y = {_NUMBER} mm")
_VALUE = re.compile(rf"(\w+) = {_NUMBER}")


@dataclass(frozen=True)
class StreamHeader:
    """The part of a stream before the first chunk.

    Attributes:
        version: of the format. geometry, cell: text of the geometry and unit-cell files, "" if the
            stream has none. source: the file.
    """

    version: str
    geometry: str
    cell: str
    source: str


@dataclass(frozen=True)
class IntegratedReflections:
    """The n integrated reflections of one crystal.

    Attributes:
        hkl: (n, 3) int32. intensity, sigma, peak, background: (n,) detector units.
        array_px: (n, 2) predicted centre, fast and slow, in the data array (not the panel);
            0.5 is the middle of the first pixel. panel: (n,) names.
    """

    hkl: np.ndarray
    intensity: np.ndarray
    sigma: np.ndarray
    peak: np.ndarray
    background: np.ndarray
    array_px: np.ndarray
    panel: np.ndarray

    def __len__(self) -> int:
        return len(self.hkl)


@dataclass(frozen=True)
class StreamCrystal:
    """One crystal of an image.

    Attributes:
        A: (3, 3) columns a*, b*, c*, Å⁻¹, lab frame. lattice_type, centering, unique_axis: as in
            the stream, "" if it has none.
        shift_mm: (x, y) by which the detector is moved for this crystal alone.
        profile_radius, resolution_limit: Å⁻¹; NaN if the stream has none.
        reflections: the integrated ones.
    """

    A: np.ndarray
    lattice_type: str
    centering: str
    unique_axis: str
    shift_mm: tuple[float, float]
    profile_radius: float
    resolution_limit: float
    reflections: IntegratedReflections


@dataclass(frozen=True)
class Chunk:
    """One image.

    Attributes:
        image_file, event: name of the file and of the frame in it ("" for a file of one frame;
            ``//12`` for frame 12). serial: number in the stream.
        photon_energy_ev, camera_length_m, bandwidth: NaN if the stream has none.
        crystals: empty for an image that was not indexed. line: where the chunk starts.
        unread: why the chunk cannot be read, one sentence; "" of one that can. It has no crystals.
    """

    image_file: str
    event: str
    serial: int
    photon_energy_ev: float
    camera_length_m: float
    bandwidth: float
    crystals: tuple[StreamCrystal, ...]
    line: int
    unread: str = ""

    @property
    def frame(self) -> int:
        """Index of the frame in its file, from the numbers after ``//``; 0 if there are none."""
        numbers = re.findall(r"\d+", self.event.rpartition("//")[2])
        return int(numbers[-1]) if numbers else 0

    def within(self, data: str) -> str:
        """The path ``data`` of a geometry in this image's file: each % is a part of the event."""
        for part in self.event.rpartition("//")[0].split("/"):
            data = data.replace("%", part, 1) if part else data
        return data

    @property
    def name(self) -> str:
        """A name for the image: its file and its event."""
        return f"{self.image_file} {self.event}".strip()


def open_text(path: Path) -> IO[str]:
    """Open a text file, compressed or not; its first bytes tell which."""
    try:
        with path.open("rb") as file:
            magic = file.read(3)
        opener: Any = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open}.get(magic[:2], open)
        return opener(path, "rt", encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def is_stream(path: Path) -> bool:
    """Whether a file, compressed or not, begins as streams do."""
    try:
        with open_text(path) as file:
            return file.read(len(FIRST_LINE)) == FIRST_LINE
    except (*DAMAGED, InputError):
        return False


@dataclass
class _Lines:
    """The lines of a file, with the number of the current line for messages."""

    file: Iterator[str]
    path: Path
    number: int = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            line = next(self.file)
        except DAMAGED as error:
            raise Ended(f"{self.path}: damaged after line {self.number} ({error})") from None
        self.number += 1
        return line.rstrip("\n")

    def reach(self, line: str) -> bool:
        """Go on behind the next line that is ``line``; False where there is none."""
        return any(found == line for found in self)

    def until(self, end: str, what: str) -> list[str]:
        """The lines before ``end``, unchanged; most lines of a stream are read here.

        Raises:
            InputError: the file ends first, or is damaged.
        """
        found: list[str] = []
        try:
            for line in self.file:
                if line.startswith(end):
                    self.number += len(found) + 1
                    return found
                found.append(line)
        except DAMAGED as error:
            where = self.number + len(found)
            raise Ended(f"{self.path}: damaged after line {where} ({error})") from None
        raise Incomplete(f"{self.path}: the file ends inside {what}; is it complete?")


class Ended(InputError):
    """Nothing more can be read of a stream."""


class Incomplete(Ended):
    """A stream ends inside a chunk: it may still be growing."""


def read_stream(path: str | Path, growing: bool = False) -> tuple[StreamHeader, Iterator[Chunk]]:
    """Read the header of a stream, and its chunks one at a time.

    A chunk that cannot be read costs its own image only: ``Chunk.unread`` says why.  So does the
    rest of a compressed file after damage.

    Args:
        growing: the stream may still be written to; an incomplete last chunk is left out.

    Raises:
        InputError: the file is no stream.
    """
    path = Path(path)
    sections = dict.fromkeys(_SECTIONS, "")
    with open_text(path) as file:
        lines = _Lines(file, path)
        first = next(lines, "")
        if not first.startswith(FIRST_LINE):
            raise InputError(f"{path}: not a CrystFEL stream (it must begin with {FIRST_LINE!r})")
        for line in lines:
            for name, (begin, end) in _SECTIONS.items():
                if line == begin:
                    sections[name] = "".join(lines.until(end, f"the {name} section"))
            if line == _BEGIN_CHUNK:
                break
    header = StreamHeader(first.removeprefix(FIRST_LINE).strip(), **sections, source=str(path))
    return header, _chunks(path, growing)


def _chunks(path: Path, growing: bool) -> Iterator[Chunk]:
    with open_text(path) as file:
        lines = _Lines(file, path)
        while True:
            start = lines.number
            try:
                if not lines.reach(_BEGIN_CHUNK):
                    return
                start = lines.number
                chunk = _chunk(lines)
            except Ended as error:
                if not (growing and isinstance(error, Incomplete)):
                    yield _unread(start, error)
                return
            except InputError as error:
                chunk = _unread(start, error)
            yield chunk


def _unread(line: int, error: InputError) -> Chunk:
    return Chunk("", "", 0, np.nan, np.nan, np.nan, (), line, str(error))


def _chunk(lines: _Lines) -> Chunk:
    start, words, values = lines.number, {}, {}  # type: ignore[var-annotated]
    crystals: list[StreamCrystal] = []
    for line in lines:
        if line == _BEGIN_CHUNK:
            lines.file = chain([line], lines.file)
            raise InputError(f"{lines.path}: the chunk of line {start} does not end")
        if line == _END_CHUNK:
            return Chunk(
                image_file=words.get("Image filename", ""),
                event=words.get("Event", ""),
                serial=int(float(words.get("Image serial number", "0") or 0)),
                photon_energy_ev=values.get("photon_energy_eV", np.nan),
                camera_length_m=values.get("average_camera_length", np.nan),
                bandwidth=values.get("beam_bandwidth", np.nan),
                crystals=tuple(crystals),
                line=start,
            )
        if line.startswith(_BEGIN_CRYSTAL):
            crystals.append(_crystal(lines))
        elif line.startswith(_PEAKS):
            lines.until(_END_PEAKS, "a list of peaks")
        elif ": " in line:
            name, _, value = line.partition(": ")
            words[name] = value.strip()
        elif found := _VALUE.match(line):
            values[found[1]] = float(found[2])
    raise Incomplete(
        f"{lines.path}: the file ends inside the chunk of line {start}; is it complete?"
    )


def _crystal(lines: _Lines) -> StreamCrystal:
    start, axes, words, values = lines.number, {}, {}, {}  # type: ignore[var-annotated]
    shift, table = (0.0, 0.0), _NOTHING
    for line in lines:
        if line.startswith(_END_CRYSTAL):
            if set(axes) != set("abc"):
                raise InputError(
                    f"{lines.path}: the crystal of line {start} lacks astar, bstar or cstar"
                )
            return StreamCrystal(
                A=np.array([axes[k] for k in "abc"]).T * 0.1,
                lattice_type=words.get("lattice_type", ""),
                centering=words.get("centering", ""),
                unique_axis=words.get("unique_axis", ""),
                shift_mm=shift,
                profile_radius=0.1 * values.get("profile_radius", np.nan),
                resolution_limit=0.1 * values.get("diffraction_resolution_limit", np.nan),
                reflections=table,
            )
        if line.startswith(_REFLECTIONS):
            table = _table(lines)
        elif found := _AXIS.match(line):
            axes[found[1]] = [float(x) for x in found.groups()[1:]]
        elif found := _SHIFT.match(line):
            shift = float(found[1]), float(found[2])
        elif found := _VALUE.match(line):
            values[found[1]] = float(found[2])
        elif " = " in line:
            name, _, value = line.partition(" = ")
            words[name] = value.strip()
    raise Incomplete(
        f"{lines.path}: the file ends inside the crystal of line {start}; is it complete?"
    )


def _table(lines: _Lines) -> IntegratedReflections:
    """Read the table ``h k l I sigma(I) peak background fs/px ss/px panel``."""
    start = lines.number
    rows = lines.until(_END_REFLECTIONS, "a list of reflections")[1:]
    words = " ".join(rows).split()
    if len(words) != 10 * len(rows):
        raise InputError(
            f"{lines.path}: the reflections after line {start} do not have ten columns"
        )
    try:
        numbers = np.array([words[k::10] for k in range(9)], dtype=np.float64).T
    except ValueError:
        raise InputError(
            f"{lines.path}: a reflection after line {start} has a word for a number"
        ) from None
    intensity, sigma, peak, background = numbers[:, 3:7].T
    return IntegratedReflections(
        hkl=numbers[:, :3].astype(np.int32),
        intensity=intensity,
        sigma=sigma,
        peak=peak,
        background=background,
        array_px=numbers[:, 7:9],
        panel=np.array(words[9::10], dtype=object),
    )


_NONE = np.zeros(0)
_NOTHING = IntegratedReflections(
    np.zeros((0, 3), np.int32), _NONE, _NONE, _NONE, _NONE, np.zeros((0, 2)), np.zeros(0, object)
)
