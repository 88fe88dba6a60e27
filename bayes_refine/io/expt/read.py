"""Reading ``.expt`` files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ...geometry.crystal import Crystal
from ...geometry.detector import Beam, Detector
from ...geometry.experiments import Experiments, Still
from ...util.errors import InputError
from ...util.text import printable
from .exposure import Exposure, exposures_of
from .frames import Frames
from .models import beam_of, check_in_the_beam, crystal_of, detector_of
from .names import Named, unique_names
from .schema import checked

_MAX_DEPTH = 100  # of nested lists in a file


def read_experiments(path: str | Path) -> Experiments:
    """Read the stills of a DIALS ``.expt`` file.

        experiments = read_experiments("indexed.expt")
        still = experiments.stills[0]
        still.crystal.cell, still.beam.wavelength, still.detector.n_panels

    Lengths are in mm and Å, as in the file.  The format has no bandwidth: ``Beam.bandwidth`` is 0.
    Identifiers that are empty or occur twice are replaced by ``stem#frame`` of the image, with
    ``.crystalN`` added where several crystals are on the image.  An experiment is left out
    (``Experiments.left_out``) if it has no crystal or an impossible one, or occurs twice.  Crystals
    in a setting that is not tabulated are reindexed.

    Raises:
        InputError: the file is missing or no experiment list, it has no usable experiment, its
            images turn by more than 0.5°, or it has a beam, detector or image set that cannot be
            used; the message names the place in the file.
    """
    path = Path(path)
    document = _load(path)
    contents = parse(document, path)
    for mask in contents.masks:
        warnings.warn(
            f"{path}: the mask file {printable(mask)[:200]} is not read here; give it to the "
            "ImageReader (read_mask)",
            stacklevel=2,
        )
    return Experiments(contents.stills, path, document, contents.left_out)


class Contents(NamedTuple):
    """The content of an experiment list.

    Attributes:
        stills: in the file's order. numbers: of their experiments in the file.
        left_out: a sentence for each experiment that cannot be used.
        masks: names of mask files, which are not read.
        exposures: turns of the crystals; None for stills.
    """

    stills: tuple[Still, ...]
    numbers: tuple[int, ...]
    left_out: tuple[str, ...]
    masks: list[str]
    exposures: tuple[Exposure | None, ...]


def parse(document: dict[str, Any], path: Path) -> Contents:
    """The content of a document that was read from ``path``; raises what the reader raises."""
    entries = checked(document, path)
    frames = Frames(entries, path)
    beam = _once("beam", entries.beam, beam_of, path)
    detector = _once("detector", entries.detector, detector_of, path)
    crystal = _once("crystal", entries.crystal, crystal_of, path)
    paired: set[tuple[int, int]] = set()
    left_out: list[str] = []
    seen: dict[tuple[str, Path, int, bytes], int] = {}
    parts: list[tuple[int, Path, int, Beam, Detector, Crystal]] = []
    exposures: list[Exposure | None] = []
    for n, entry in enumerate(entries.experiment):
        b, d = beam(entry.beam), detector(entry.detector)
        try:
            if (entry.beam, entry.detector) not in paired:
                check_in_the_beam(b, d)
                paired.add((entry.beam, entry.detector))
            turns = exposures_of(entries, n)
            files = [frames.of(n, None if turn is None else turn.image) for turn in turns]
        except InputError as error:
            raise InputError(f"{path}, experiment[{n}], {error}") from None
        if entry.crystal is None:
            left_out.append(f"{path}, experiment[{n}]: it has no crystal; index the image first")
            continue
        try:
            datum = crystal(entry.crystal)
        except InputError as error:
            left_out.append(str(error))
            continue
        for turn, (file, frame) in zip(turns, files, strict=True):
            c = datum if turn is None else replace(datum, A=turn.mount @ datum.A)
            if entry.identifier:
                twin = seen.setdefault((entry.identifier, file, frame, c.A.tobytes()), n)
                if twin != n:
                    left_out.append(f"{path}, experiment[{n}]: it is experiment[{twin}] once more")
                    continue
            parts.append((n, file, frame, b, d, c))
            exposures.append(turn)
    if not parts:
        raise InputError(left_out[0])
    names = unique_names(
        [
            Named(entries.experiment[n].identifier or "", (file, frame), tuple(c.A.ravel()))
            for n, file, frame, _, _, c in parts
        ]
    )
    stills = tuple(
        Still(name, *part[1:], turn_mrad=None if exposure is None else exposure.turn_mrad)
        for name, part, exposure in zip(names, parts, exposures, strict=True)
    )
    numbers = tuple(part[0] for part in parts)
    return Contents(stills, numbers, tuple(left_out), frames.masks(), tuple(exposures))


def _once(key: str, entries: list, make: Callable[[Any], Any], path: Path) -> Callable[[int], Any]:
    """A function that makes entry ``index`` once, on first use, and names one that is invalid."""
    made: dict[int, Any] = {}

    def at(index: int) -> Any:
        if index not in made:
            try:
                made[index] = make(entries[index])
            except InputError as error:
                made[index] = InputError(f"{path}, {key}[{index}]: {error}")
        if isinstance(made[index], InputError):
            raise made[index]
        return made[index]

    return at


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is not a file; give a DIALS .expt file")
        with path.open("rb") as file:
            start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
            if start not in (b"{", b"["):  # so that no gigabytes of another file are read
                what = "is not JSON" if start else "is empty"
                raise InputError(f"{path} {what}; give a DIALS .expt file")
            file.seek(0)
            document = json.loads(file.read().decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; check the path") from None
    except InputError:
        raise
    except (ValueError, RecursionError, MemoryError) as error:  # not UTF-8, not JSON
        why = str(error) or type(error).__name__
        raise InputError(f"{path} is not JSON ({why}); give a DIALS .expt file") from None
    if not isinstance(document, dict) or document.get("__id__") != "ExperimentList":
        raise InputError(f"{path} is not a DIALS experiment list; give a DIALS .expt file")
    if not _nested_at_most(document, _MAX_DEPTH):
        raise InputError(f"{path}: its lists are nested too deep; write the file anew with DIALS")
    if document.get("experiment") == []:
        raise InputError(f"{path} holds no experiments; index some images first")
    return document


def _nested_at_most(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        if not level:
            return True
    return False
