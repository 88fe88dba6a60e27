"""Say what a file is, what it contains, and what else ``fit`` and ``merge`` would need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import gemmi
import h5py
import numpy as np

from ..geometry.experiments import Experiments
from ..util.errors import InputError
from .boundary import refusing
from .crystfel_experiments import experiments_of_stream
from .crystfel_geometry import Geometry, Quantity
from .crystfel_geometry_text import parse_geometry
from .crystfel_stream import read_stream
from .crystfel_unmerged import cell_of_header
from .dials_reflections import INTEGRATED_SUM, read_refl
from .expt import read_experiments
from .hdf5_links import open_hdf5
from .jungfraujoch import experiments_of_jungfraujoch, is_jungfraujoch
from .recognise import Kind, expanded, kind_of
from .unmerged import Unmerged
from .unmerged_mtz import read_unmerged
from .xds_unmerged import unmerged_of_xds

ANY_GROUP = gemmi.SpaceGroup("P 1")


def inspect(path: str | Path) -> Iterator[str]:
    """Lines about a file: its kind, its content, and what ``fit`` and ``merge`` still need.

    Raises:
        InputError: there is no such file, or it is damaged.
    """
    path = Path(path)
    kind = kind_of(path)
    jungfraujoch = kind is Kind.HDF5 and is_jungfraujoch(path)
    yield f"{path}: {'a file of Jungfraujoch' if jungfraujoch else kind.value}"
    describe = _jungfraujoch if jungfraujoch else _DESCRIBE.get(kind, _nothing)
    with refusing(path, kind.value):
        for line in describe(path):
            yield f"  {line}"


def _experiments(path: Path) -> Iterator[str]:
    found = read_experiments(path)
    yield from _stills(found)
    yield from (f"left out: {sentence}" for sentence in found.left_out[:5])
    absent = sorted({str(s.image_path) for s in found.stills if not s.image_path.exists()})
    refl = path.with_suffix(".refl")
    if absent:
        yield _absent(absent)
    else:
        yield "fit: everything is there but the resolution limit: give --reference or --d-min"
    yield f"merge: {'takes it with ' + refl.name if refl.exists() else f'needs {refl.name} beside'}"


def _stills(found: Experiments) -> Iterator[str]:
    first, stills = found.stills[0], found.stills
    images = {(s.image_path, s.frame) for s in stills}
    cells = np.median([s.crystal.cell.parameters for s in stills], axis=0)
    lengths = sorted({round(s.beam.wavelength, 4) for s in stills})
    wavelength = f"{lengths[0]:g}" + (f" to {lengths[-1]:g}" if len(lengths) > 1 else "")
    _, ny, nx = first.detector.image_shape
    gains = sorted(set(np.round(first.detector.gain, 4)))
    yield f"{len(stills)} crystals on {len(images)} images"
    yield f"{first.detector.n_panels} panels of {nx} × {ny} pixels, wavelength {wavelength} Å"
    yield f"gain {', '.join(f'{g:g}' for g in gains[:4])} counts a photon (--gain replaces it)"
    yield "cell (median) " + " ".join(f"{x:.2f}" for x in cells)
    yield f"space group {first.crystal.space_group.xhm()}"


def _stream(path: Path) -> Iterator[str]:
    header, chunks = read_stream(path)
    images = crystals = reflections = 0
    energies, unread = [], []
    for chunk in chunks:
        if chunk.unread:
            unread.append(chunk.unread)
            continue
        images += 1
        crystals += len(chunk.crystals)
        reflections += sum(len(c.reflections) for c in chunk.crystals)
        energies.append(chunk.photon_energy_ev)
    yield f"format {header.version}; {images} images, {crystals} crystals"
    yield f"{reflections} integrated reflections"
    if unread:
        yield f"{len(unread)} images cannot be read, the first: {unread[0]}"
    if energies:
        yield f"photon energy {np.nanmin(energies):.1f} to {np.nanmax(energies):.1f} eV"
    cell = cell_of_header(header.cell)
    if cell is not None:
        yield "target cell " + " ".join(f"{x:.2f}" for x in cell.parameters)
    if not header.geometry.strip():
        yield "no geometry: fit needs --geometry FILE.geom"
    elif crystals:
        stills = experiments_of_stream(path, ANY_GROUP).stills
        absent = sorted({str(s.image_path) for s in stills if not s.image_path.exists()})
        yield f"{stills[0].detector.n_panels} panels"
        if absent:
            yield _absent(absent)
    yield "fit and merge: a stream has no space group; give --space-group"
    if not reflections:
        yield "merge: nothing was integrated"


def _geometry(path: Path) -> Iterator[str]:
    geometry = parse_geometry(path.read_text(encoding="utf-8", errors="replace"), str(path))
    shapes = sorted({p.shape for p in geometry.panels})
    yield f"{len(geometry.panels)} panels of {', '.join(f'{x} × {y}' for y, x in shapes)} pixels"
    yield f"camera length {_said(geometry.camera_length_m, 'm')}"
    what = "photon energy" if geometry.is_energy else "wavelength"
    yield f"{what} {_said(geometry.wavelength, 'eV' if geometry.is_energy else 'Å')}"
    yield f"gain {_gain(geometry)}"
    yield "fit: give it as --geometry with the .stream that was made with it"


def _said(quantity: Quantity, unit: str) -> str:
    if not quantity.known:
        return f"from {quantity.path} in the image files"
    return f"{quantity.value:g} {unit}" if np.isfinite(quantity.value) else "not said"


def _gain(geometry: Geometry) -> str:
    panel = geometry.panels[0]
    if np.isfinite(panel.adu_per_photon):
        return f"{panel.adu_per_photon:g} counts a photon"
    return f"{panel.adu_per_ev:g} counts an eV" if np.isfinite(panel.adu_per_ev) else "not said"


def _absent(files: Sequence[str]) -> str:
    what = "an image file does" if len(files) == 1 else f"{len(files)} image files do"
    return f"fit: {what} not exist, such as {files[0]}: give --image-folder"


def _reflections(path: Path) -> Iterator[str]:
    table = read_refl(path)
    yield f"{len(table)} reflections of {len(set(table.columns.get('id', ())))} experiments"
    flags = table.columns.get("flags")
    if flags is not None:
        yield f"{int(((flags.astype(np.int64) & INTEGRATED_SUM) > 0).sum())} integrated"
    expt = path.with_suffix(".expt")
    yield f"merge: {'takes it with ' + expt.name if expt.exists() else f'needs {expt.name} beside'}"


def _observations(data: Unmerged) -> Iterator[str]:
    yield data.describe()
    yield "cell " + " ".join(f"{x:.2f}" for x in data.cell.parameters)
    yield f"space group {data.space_group.xhm()}"
    offset = "there" if data.excitation_error is not None else "not there: all count as full"
    yield f"Ewald offset: {offset}"
    yield "merge: everything is there"


def _mtz(path: Path) -> Iterator[str]:
    mtz = gemmi.read_mtz_file(str(path), with_data=False)
    yield f"{mtz.nreflections} reflections; columns {', '.join(mtz.column_labels())}"
    try:
        yield from _observations(read_unmerged(path))
    except InputError as error:
        yield f"merge: {error}"
        yield "fit and merge: may serve as --reference"


def _xds(path: Path) -> Iterator[str]:
    yield from _observations(unmerged_of_xds(path))


def _hdf5(path: Path) -> Iterator[str]:
    with open_hdf5(path) as file:
        stacks: list[str] = []

        def note(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset) and item.ndim in (3, 4) and len(stacks) < 5:
                stacks.append(f"/{name}: {' × '.join(map(str, item.shape))} of {item.dtype}")

        file.visititems(note)
    yield from stacks or ["no stack of images"]
    yield "fit: images without orientations; index them, and give the .expt or .stream"


def _jungfraujoch(path: Path) -> Iterator[str]:
    try:
        found = experiments_of_jungfraujoch(path, None)
    except InputError as error:
        if "--space-group" not in str(error):
            raise
        found = experiments_of_jungfraujoch(path, ANY_GROUP)
        yield "no space group: give --space-group"
    yield from _stills(found)
    yield "fit: names of data sets can be given with --names FILE.toml"


def _list(path: Path) -> Iterator[str]:
    files = list(expanded([path]))
    yield f"{len(files)} files; the first, {files[0]}: {kind_of(files[0]).value}"


def _model(path: Path) -> Iterator[str]:
    yield "fit and merge: may serve as --reference"


def _nothing(path: Path) -> Iterator[str]:
    yield "fit and merge: cannot use it"


_DESCRIBE: dict[Kind, Callable[[Path], Iterator[str]]] = {
    Kind.EXPERIMENTS: _experiments,
    Kind.STREAM: _stream,
    Kind.GEOMETRY: _geometry,
    Kind.REFLECTIONS: _reflections,
    Kind.MTZ: _mtz,
    Kind.XDS: _xds,
    Kind.HDF5: _hdf5,
    Kind.LIST: _list,
    Kind.CIF: _model,
    Kind.PDB: _model,
}
