"""From the checked entries of an ``.expt`` file to beams, detectors and crystals, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ...geometry.crystal import Crystal, crystal_of_axes
from ...geometry.detector import FEW_PANELS, MOST_GROUPS, Beam, Detector, lies_ahead
from ...util.errors import InputError
from .schema import BeamEntry, CrystalEntry, DetectorEntry, Node, PanelEntry

_NO_LENGTH = 1e-9  # a vector shorter than this is no direction
_NEAREST_MM = 0.1  # of a panel's plane to the sample; a nearer panel is seen edge-on


def beam_of(entry: BeamEntry) -> Beam:
    """The beam of an entry; it travels against ``direction``.

    The bandwidth is 0, since the format does not have it.

    Raises:
        InputError: the direction has no length, or the normal of polarisation is along the beam.
    """
    along = -unit(entry.direction, "direction")
    normal = unit(entry.polarization_normal, "polarization_normal")
    if abs(normal @ along) > 0.5:
        raise InputError("polarization_normal lies along the beam, it must be normal to it")
    return Beam(entry.wavelength, along, normal, entry.polarization_fraction)


def crystal_of(entry: CrystalEntry) -> Crystal:
    """The crystal of an entry, in a tabulated setting.

    Raises:
        InputError: as :func:`bayes_refine.geometry.crystal.crystal_of_axes`.
    """
    axes = np.array([entry.real_space_a, entry.real_space_b, entry.real_space_c])
    return crystal_of_axes(axes, entry.space_group_hall_symbol)


def detector_of(entry: DetectorEntry) -> Detector:
    """The detector of an entry, in the lab frame; the frames of its hierarchy are composed.

    Raises:
        InputError: axes that are not perpendicular, a panel whose plane passes through the sample,
            or pixels that are displaced by maps.
    """
    panels = entry.panels
    lab = _frames(panels, [f"panels[{n}]" for n in range(len(panels))])
    rigid: tuple[int, ...] = () if len(panels) <= MOST_GROUPS else (0,) * len(panels)
    root = entry.hierarchy
    if root is not None and (root.children or root.fast_axis is not None):
        places = _places(root)
        groups = _frames([p.group for p in places], [p.name for p in places])
        for k, place in enumerate(places[1:], 1):
            groups[k] = groups[place.parent] @ groups[k]
        leaves = [
            (child.panel, k)
            for k, place in enumerate(places)
            for child in place.group.children
            if child.panel is not None
        ]
        if sorted(n for n, _ in leaves) != list(range(len(panels))):
            raise InputError("hierarchy: it does not hold each panel once")
        holders = [k for _, k in sorted(leaves)]
        lab = groups[holders] @ lab
        if len(panels) > FEW_PANELS:
            rigid = _rigid(holders, [place.parent for place in places]) or rigid
    distance = np.abs(np.einsum("pi,pi->p", lab[:, :3, 3], lab[:, :3, 2]))
    if (near := np.flatnonzero(distance < _NEAREST_MM)).size:
        raise InputError(
            f"panels[{near[0]}]: its plane passes through the sample ({distance[near[0]]:.3g} mm)"
        )
    offsets = tuple(panel.raw_image_offset or (0, 0) for panel in panels)
    sizes = sorted({panel.image_size for panel in panels})
    if len(sizes) > 1 and len(set(offsets)) == 1:
        raise InputError(
            f"panels: sizes differ ({sizes[0]} and {sizes[1]} pixels) and no raw_image_offset says "
            "where they lie in the image"
        )
    strategies = [p.px_mm_strategy.type if p.px_mm_strategy else "" for p in panels]
    if any(strategy.startswith("Offset") for strategy in strategies):
        raise InputError("panels: pixels are displaced by maps dx and dy, which cannot be used")
    parallax = np.array(["Parallax" in strategy for strategy in strategies], float)
    return Detector(
        origin_mm=lab[:, :3, 3],
        fast=lab[:, :3, 0],
        slow=lab[:, :3, 1],
        pixel_size_mm=np.array([panel.pixel_size for panel in panels]),
        shape=np.array([panel.image_size[::-1] for panel in panels]),
        trusted_range=np.array([panel.trusted_range for panel in panels]),
        gain=np.array([panel.gain for panel in panels]),
        pedestal=np.array([panel.pedestal for panel in panels]),
        thickness_mm=np.array([panel.thickness for panel in panels]) * parallax,
        mu_per_mm=np.array([panel.mu for panel in panels]) * parallax,
        untrusted=tuple(tuple(_rectangles(panel)) for panel in panels),
        raw_image_offset=offsets,
        groups=rigid,
    )


def check_in_the_beam(beam: Beam, detector: Detector) -> None:
    """Refuse a detector that no forward-scattered photon can meet: a sign in it is wrong."""
    if not lies_ahead(detector, beam):
        raise InputError(
            "the whole detector lies behind the sample, where the beam comes from; check the signs "
            "of the beam's direction and of the panels' origins"
        )


def unit(vector: tuple[float, ...], name: str) -> np.ndarray:
    """(3,) unit vector along ``vector``; InputError if it has no length."""
    v = np.array(vector, float)
    length = float(np.linalg.norm(v))
    if not length > _NO_LENGTH:
        raise InputError(f"{name}: {vector} is not a direction")
    return v / length


def _rectangles(panel: PanelEntry) -> Iterator[tuple[int, int, int, int]]:
    """The masked rectangles of a panel, clipped to it."""
    width, height = panel.image_size
    for x0, y0, x1, y1 in panel.mask or ():
        clipped = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
        if clipped[0] < clipped[2] and clipped[1] < clipped[3]:
            yield clipped


class _Place(NamedTuple):
    """A group of the hierarchy, its parent's index in the list of groups, and its name."""

    group: Node
    parent: int
    name: str


def _places(root: Node) -> list[_Place]:
    """The groups of a hierarchy, each after its parent."""
    places = [_Place(root, 0, "hierarchy")]
    for k, place in enumerate(places):  # the list grows meanwhile
        places += [
            _Place(child, k, f"{place.name}.children[{n}]")
            for n, child in enumerate(place.group.children)
            if child.panel is None
        ]
    return places


def _rigid(holders: Sequence[int], parents: Sequence[int]) -> tuple[int, ...]:
    """For each panel, the number of the group it moves with; empty if there are no such groups.

    Groups are those of the lowest level of the hierarchy that has few enough.

    Args:
        holders: number of the group that each panel hangs in. parents: parent of each group.
    """
    while len(kinds := sorted(set(holders))) > MOST_GROUPS:
        holders = [parents[k] for k in holders]
    return tuple(kinds.index(k) for k in holders) if len(kinds) > 1 else ()


def _frames(entries: Sequence[PanelEntry | Node], places: Sequence[str]) -> np.ndarray:
    """(n, 4, 4) affine matrices; their columns are fast, slow, fast × slow and the origin (mm)."""
    for entry, place in zip(entries, places, strict=True):
        if entry.fast_axis is None or entry.slow_axis is None or entry.origin is None:
            raise InputError(f"{place}: fast_axis, slow_axis or origin is missing")
    axes = np.array([[entry.fast_axis, entry.slow_axis] for entry in entries], float)
    length = np.linalg.norm(axes, axis=2, keepdims=True)
    unit_axes = axes / np.maximum(length, _NO_LENGTH)
    bad = (length[:, :, 0] < _NO_LENGTH).any(1)
    bad |= np.abs(np.einsum("ni,ni->n", unit_axes[:, 0], unit_axes[:, 1])) > 1e-3
    if bad.any():
        place = places[int(np.argmax(bad))]
        raise InputError(f"{place}: fast_axis and slow_axis are not perpendicular directions")
    frames = np.zeros((len(entries), 4, 4))
    frames[:, :3, :2] = np.swapaxes(unit_axes, 1, 2)
    frames[:, :3, 2] = np.cross(unit_axes[:, 0], unit_axes[:, 1])
    frames[:, :3, 3] = [entry.origin for entry in entries]
    frames[:, 3, 3] = 1
    return frames
