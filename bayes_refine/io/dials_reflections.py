"""DIALS reflection tables (``.refl``): msgpack with columns of raw little-endian numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gemmi
import msgspec
import numpy as np

from ..geometry.detector import pixel_to_lab
from ..geometry.experiments import Still
from ..util.errors import InputError
from .expt import read_experiments
from .unmerged import Unmerged

KIND = "dials::af::reflection_table"
# type in the file: NumPy's, and numbers a row
TYPES: dict[str, tuple[str, tuple[int, ...]]] = {
    "double": ("<f8", ()),
    "int": ("<i4", ()),
    "std::size_t": ("<u8", ()),
    "bool": ("?", ()),
    "vec2<double>": ("<f8", (2,)),
    "vec3<double>": ("<f8", (3,)),
    "mat3<double>": ("<f8", (9,)),
    "cctbx::miller::index<>": ("<i4", (3,)),
    "int6": ("<i4", (6,)),
}
INTEGRATED_SUM, INTEGRATED_PROFILE = 256, 512  # bits of ``flags``
FAR_PX = 1e6  # no pixel is so far from the first one


@dataclass(frozen=True)
class ReflectionTable:
    """The columns of a table with n rows, and the experiment of each ``id``.

    Attributes:
        columns: (n,) or (n, k) by name; shoeboxes and strings are left out.
        identifiers: identifier of the experiment, by id; empty in old files.
        source: the file.
    """

    columns: Mapping[str, np.ndarray]
    identifiers: Mapping[int, str]
    source: str

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def column(self, name: str) -> np.ndarray:
        """A column of the table; InputError if the table does not have it."""
        if name not in self.columns:
            raise InputError(f"{self.source}: no column {name}; has it been integrated?")
        return self.columns[name]


def is_refl(path: Path) -> bool:
    """Whether a file begins as reflection tables do."""
    try:
        with path.open("rb") as file:
            return KIND.encode() in file.read(64)
    except OSError:
        return False


def read_refl(path: str | Path) -> ReflectionTable:
    """Read the table of a ``.refl`` file.

    Raises:
        InputError: the file is absent or no such table, or a column is shorter than stated.
    """
    path = Path(path)
    try:
        document = msgspec.msgpack.decode(path.read_bytes(), strict=False)
        kind, _, body = document
        rows = int(body["nrows"])
        columns = {
            name: _column(name, type_, data, rows)
            for name, (type_, data) in body["data"].items()
            if type_ in TYPES
        }
        identifiers = {int(k): str(v) for k, v in (body.get("identifiers") or {}).items()}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (msgspec.DecodeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: not a DIALS reflection table ({error})") from None
    if kind != KIND:
        raise InputError(f"{path}: not a DIALS reflection table but {kind!r}")
    return ReflectionTable(columns, identifiers, str(path))


def _column(name: str, type_: str, data: Sequence[Any], rows: int) -> np.ndarray:
    dtype, shape = TYPES[type_]
    n, raw = data
    if n != rows:
        raise ValueError(f"column {name} has {n} rows of {rows}")
    return np.frombuffer(raw, dtype).reshape(rows, *shape)


def refl_bytes(columns: Mapping[str, np.ndarray], identifiers: Mapping[int, str]) -> bytes:
    """Content of the ``.refl`` file of a table; :data:`COLUMN_TYPES` has the types of columns."""
    rows = len(next(iter(columns.values())))
    data = {}
    for name, values in columns.items():
        type_ = COLUMN_TYPES[name]
        raw = np.ascontiguousarray(values, TYPES[type_][0]).tobytes()
        data[name] = [type_, [rows, raw]]
    body = {"identifiers": dict(identifiers), "nrows": rows, "data": data}
    return msgspec.msgpack.encode([KIND, 1, body])


COLUMN_TYPES = {
    "miller_index": "cctbx::miller::index<>",
    "id": "int",
    "imageset_id": "int",
    "panel": "std::size_t",
    "flags": "std::size_t",
    "s1": "vec3<double>",
    "bbox": "int6",
    "xyzcal.px": "vec3<double>",
    "xyzcal.mm": "vec3<double>",
    "xyzobs.px.value": "vec3<double>",
    "xyzobs.px.variance": "vec3<double>",
} | dict.fromkeys(
    (
        *("d", "partiality", "delpsical.rad", "intensity.sum.value", "intensity.sum.variance"),
        *("intensity.prf.value", "intensity.prf.variance", "background.mean", "lp", "qe"),
        *("intensity.scale.value", "intensity.scale.variance", "inverse_scale_factor"),
    ),
    "double",
)


def unmerged_of_dials(
    pairs: Sequence[tuple[Path, Path]],
    space_group: gemmi.SpaceGroup | None = None,
    cell: gemmi.UnitCell | None = None,
) -> Unmerged:
    """Read integrated stills of DIALS; J is the summed intensity, and each experiment an image.

    ε_r = |s0 + A·h| − 1/λ follows from the crystal and the beam of each experiment.  Rows that were
    not integrated by summation are left out; no row is left out because it is weak.

    Args:
        pairs: (``.expt``, ``.refl``) of each part of the run.
        space_group, cell: of the crystals; by default those of the first crystal, and the median.

    Raises:
        InputError: a file cannot be read, an id has no experiment, crystals have different space
            groups, or nothing was integrated.
    """
    parts: list[tuple[np.ndarray, ...]] = []
    stills: list[Still] = []
    for expt, refl in pairs:
        some, table = read_experiments(expt).stills, read_refl(refl)
        which = _experiment_of(table, some, expt)
        flags = table.columns.get("flags", np.full(len(table), INTEGRATED_SUM))
        keep = (flags.astype(np.int64) & INTEGRATED_SUM) > 0
        keep &= table.column("miller_index").any(axis=1)
        variance = table.column("intensity.sum.variance")
        columns = (
            table.column("miller_index").astype(np.int32),
            table.column("intensity.sum.value"),
            np.sqrt(np.maximum(variance, 0.0)),
            which + len(stills),
            _excitation(table, which, some),
            _lab_mm(table, which, some),
        )
        parts.append(tuple(c[keep & (which >= 0)] for c in columns))
        stills += some
    hkl, intensity, sigma, image, excitation, xy = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    source = str(pairs[0][1]) + (f" and {len(pairs) - 1} more" if len(pairs) > 1 else "")
    if not len(hkl):
        raise InputError(f"{source}: no integrated reflection (none has the flag integrated_sum)")
    groups = {still.crystal.space_group.hm for still in stills}
    if space_group is None and len(groups) > 1:
        raise InputError(f"{source}: crystals of space groups {', '.join(sorted(groups))}")
    group = space_group or stills[0].crystal.space_group
    cells = [still.crystal.cell.parameters for still in stills]
    return Unmerged.observed(
        hkl=hkl,
        J=intensity,
        sigma=sigma,
        batch=image + 1,
        excitation_error=excitation,
        xy_px=xy,
        cell=cell or gemmi.UnitCell(*np.median(cells, axis=0)),
        space_group=group,
        source=source,
        names={n: still.identifier for n, still in enumerate(stills, start=1)},
        wavelength=float(np.mean([s.beam.wavelength for s in stills])),
    )


def _experiment_of(table: ReflectionTable, stills: Sequence[Still], expt: Path) -> np.ndarray:
    """(n,) index in ``stills`` of each row's experiment; −1 for rows of none (id below 0)."""
    ids = table.column("id").astype(int)
    used, which = np.unique(ids, return_inverse=True)
    place = np.full(len(used), -1)
    names = {still.identifier: i for i, still in enumerate(stills)}
    for n, k in enumerate(used.tolist()):
        if k in table.identifiers and table.identifiers[k] in names:
            place[n] = names[table.identifiers[k]]
        elif not table.identifiers and 0 <= k < len(stills):
            place[n] = k
        elif k >= 0:
            raise InputError(f"{table.source}: reflections of experiment {k}, which {expt} lacks")
    return place[which.reshape(ids.shape)]


def _excitation(table: ReflectionTable, which: np.ndarray, stills: Sequence[Still]) -> np.ndarray:
    A = np.array([still.crystal.A for still in stills])
    s0 = np.array([still.beam.s0 for still in stills])
    q = np.einsum("nij,nj->ni", A[which], table.column("miller_index").astype(float))
    return np.linalg.norm(s0[which] + q, axis=1) - np.linalg.norm(s0[which], axis=1)


def _lab_mm(table: ReflectionTable, which: np.ndarray, stills: Sequence[Still]) -> np.ndarray:
    """(n, 2) lab x and y of the predicted centres, mm; NaN where the table has none."""
    xy = np.full((len(table), 2), np.nan)
    if "xyzcal.px" not in table.columns or "panel" not in table.columns:
        return xy
    px, panel = table.columns["xyzcal.px"][:, :2], table.columns["panel"].astype(int)
    there = (panel >= 0) & (np.abs(px) < FAR_PX).all(axis=1)  # False for NaN
    for i, still in enumerate(stills):
        rows = np.flatnonzero((which == i) & there & (panel < still.detector.n_panels))
        xy[rows] = pixel_to_lab(still.detector, panel[rows], px[rows])[:, :2]
    return xy
