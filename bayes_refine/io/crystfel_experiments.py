"""Indexed stills from a CrystFEL stream, for ``fit``: images, geometry, orientations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np

from ..geometry.crystal import Crystal
from ..geometry.detector import Beam, Detector
from ..geometry.experiments import Experiments, Still
from ..util.errors import InputError
from .boundary import regular_file
from .crystfel_geometry import HC_EV_ANGSTROM, Geometry, Mask, lab_region_mask
from .crystfel_geometry_text import parse_geometry
from .crystfel_stream import Chunk, read_stream
from .expt.foreign import as_experiments
from .hdf5_links import follow, open_hdf5, read_numbers, whole_numbers

UP = np.array([0.0, 1.0, 0.0])  # normal of a horizontal plane of polarisation, CrystFEL's default


def experiments_of_stream(
    path: str | Path,
    space_group: gemmi.SpaceGroup,
    geometry_file: str | Path | None = None,
    growing: bool = False,
) -> Experiments:
    """Read the indexed crystals of a stream; each becomes a still.

    Each image has its own orientation, photon energy and camera length; each crystal's
    ``det_shift`` moves the detector.  Image files are looked for where the stream says, relative to
    the folder of the stream or to the current folder.

    Args:
        space_group: of the crystals; a stream does not state one.
        geometry_file: a ``.geom`` file to use instead of the geometry in the stream.
        growing: as of ``read_stream``. An image that cannot be read is left out.

    Raises:
        InputError: the file is no stream, it has no geometry or no crystal that can be read, or
            its panels do not lie in one array.
    """
    path = Path(path)
    header, chunks = read_stream(path, growing)
    geometry = geometry_of_stream(path, header.geometry, geometry_file)
    offsets = _offsets(geometry)
    mean_offset = float(np.mean([p.offset_m for p in geometry.panels]))
    stills: list[Still] = []
    detectors: dict[tuple[float, ...], Detector] = {}
    unread: list[str] = []
    for chunk in chunks:
        if chunk.unread:
            unread.append(chunk.unread)
        if not chunk.crystals:
            continue
        try:
            energy, camera = _energy(chunk, geometry), _camera(chunk, geometry, mean_offset)
        except InputError as error:
            unread.append(str(error))
            continue
        image = _image(chunk.image_file, path)
        beam = Beam(
            wavelength=HC_EV_ANGSTROM / energy,
            s0_direction=np.array([0.0, 0.0, 1.0]),
            polarization_normal=UP,
            polarization_fraction=1.0,
            bandwidth=geometry.bandwidth,
        )
        for crystal in chunk.crystals:
            place = (camera, energy, *crystal.shift_mm)
            if place not in detectors:
                detector = geometry.detector(camera, energy, crystal.shift_mm)
                detectors[place] = replace(detector, raw_image_offset=offsets)
            stills.append(
                Still(
                    identifier="",  # set below, where all crystals are known
                    image_path=image,
                    frame=chunk.frame,
                    beam=beam,
                    detector=detectors[place],
                    crystal=Crystal(crystal.A, space_group.hall),
                    dataset=chunk.within(geometry.panels[0].data),
                )
            )
    if not stills:
        raise InputError(
            unread[0] if unread else f"{path}: no image was indexed; there is nothing to fit"
        )
    return as_experiments(stills, path, tuple(unread))


def geometry_of_stream(path: Path, text: str, geometry_file: str | Path | None = None) -> Geometry:
    """The geometry of a ``.geom`` file if one is given, else the geometry in the stream.

    Raises:
        InputError: there is neither.
    """
    if geometry_file is not None:
        file = Path(geometry_file)
        try:
            return parse_geometry(file.read_text(encoding="utf-8", errors="replace"), str(file))
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror or error})") from None
    if not text.strip():
        raise InputError(
            f"{path}: the stream has no geometry of its own; give --geometry FILE.geom"
        )
    return parse_geometry(text, f"{path} (geometry)")


def usable_of_stream(
    experiments: Experiments, geometry_file: str | Path | None = None
) -> np.ndarray | None:
    """(P, ny, nx) bool, the pixels outside the masks and bad regions of a stream's geometry."""
    path = experiments.path
    geometry = geometry_of_stream(path, read_stream(path)[0].geometry, geometry_file)
    folder = path.parent if geometry_file is None else Path(geometry_file).parent
    return usable_pixels(geometry, folder, experiments.stills[0].image_path)


def usable_pixels(geometry: Geometry, folder: Path, image: Path | None = None) -> np.ndarray | None:
    """(P, ny, nx) bool, the pixels outside the geometry's masks and bad regions; None for all.

    Args:
        folder: base of relative paths of mask files.
        image: image file that holds the masks for which the geometry names no file; of one mask a
            frame, the first is taken for all frames.

    Raises:
        InputError: a mask file cannot be read, or does not have the size of the array.
    """
    shape = np.max([p.shape for p in geometry.panels], axis=0)
    good = np.ones((len(geometry.panels), *shape), bool)
    arrays: dict[tuple[Mask, tuple[int, ...]], np.ndarray | None] = {}
    for k, panel in enumerate(geometry.panels):
        ny, nx = panel.shape
        good[k, :ny, :nx] &= ~lab_region_mask(geometry, panel)
        for _, mask in panel.masks:
            index = tuple(int(a) for a in panel.axes if a.isdigit())
            if (mask, index) not in arrays:
                arrays[mask, index] = _mask_array(mask, index, folder, image)
            array = arrays[mask, index]
            if array is None:
                continue
            (y0, y1), (x0, x1) = panel.ss_range, panel.fs_range
            if array.shape[0] < y1 or array.shape[1] < x1:
                raise InputError(
                    f"{mask.file or image}: the mask {mask.path} of {array.shape} pixels does not"
                    f" hold panel {panel.name}"
                )
            bits = array[y0:y1, x0:x1]
            good[k, :ny, :nx] &= ((bits & mask.bad) == 0) & ((bits & mask.good) == mask.good)
    return None if good.all() else good


def _mask_array(
    mask: Mask, index: tuple[int, ...], folder: Path, image: Path | None
) -> np.ndarray | None:
    """(ny, nx) int64 flags: the last two axes of a mask, at ``index`` of those before, or 0."""
    file = folder / mask.file if mask.file else image
    if file is None or not mask.path:
        return None
    what = f"the mask {mask.path}"
    if not regular_file(file):
        raise InputError(f"{file}: no such file, so no mask {mask.path}; correct the geometry")
    with open_hdf5(file) as opened:
        found = follow(opened, mask.path, file)
        if found is None:
            raise InputError(f"{file}: there is no mask {mask.path}; correct the geometry")
        found = whole_numbers(found, file, what)
        before = found.ndim - 2
        at = ((0,) * before + index)[-before:] if before > 0 else ()
        if before < 0 or any(k >= n for k, n in zip(at, found.shape, strict=False)):
            raise InputError(f"{file}: {what} has shape {found.shape}, and no panel {index} in it")
        bits = read_numbers(found, file, what, at)
    if bits.dtype.kind == "f" and not (np.abs(bits.astype(float)) < 2.0**53).all():
        raise InputError(f"{file}: {what} has numbers that are no flags; correct the geometry")
    return bits.astype(np.int64)


def _energy(chunk: Chunk, geometry: Geometry) -> float:
    """Photon energy of an image, eV."""
    if chunk.photon_energy_ev > 0:
        return chunk.photon_energy_ev
    said = geometry.wavelength
    if said.known and said.value > 0:
        return said.value if geometry.is_energy else HC_EV_ANGSTROM / said.value
    raise InputError(f"{geometry.source}: the image {chunk.name} has no photon energy")


def _camera(chunk: Chunk, geometry: Geometry, mean_offset: float) -> float:
    """``clen`` of an image, m, from the stream's average camera length, which is of the panels."""
    if geometry.camera_length_m.known and geometry.camera_length_m.value > 0:
        return geometry.camera_length_m.value
    if chunk.camera_length_m > 0:
        return chunk.camera_length_m - mean_offset
    raise InputError(f"{geometry.source}: the image {chunk.name} has no camera length")


def _image(name: str, stream: Path) -> Path:
    file = Path(name)
    beside = stream.parent / file
    return beside.resolve() if beside.exists() or not file.exists() else file.resolve()


def _offsets(geometry: Geometry) -> tuple[tuple[int, int], ...]:
    """(x, y) of each panel's first pixel in its array; all 0 if the array has an axis of panels.

    Raises:
        InputError: panels lie in several data sets, or are tiles of several arrays.
    """
    panels = geometry.panels
    if len({p.data for p in panels}) > 1:
        raise InputError(f"{geometry.source}: panels lie in different data sets, which is not read")
    stack = [tuple(a for a in p.axes if a.isdigit()) for p in panels]
    tiles = tuple((p.fs_range[0], p.ss_range[0]) for p in panels)
    if len(set(stack)) > 1:
        order = [int(s[-1]) if s else -1 for s in stack]
        if order != list(range(len(panels))) or any(t != (0, 0) for t in tiles):
            raise InputError(
                f"{geometry.source}: panels are tiles of several arrays, which is not read; give"
                " images with one array a panel, or one array of all"
            )
    return tiles
