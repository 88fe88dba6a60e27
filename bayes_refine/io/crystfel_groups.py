"""Which panels of a CrystFEL geometry move together.

CrystFEL up to 0.10 names groups of panels (``rigid_group_a = p0,p1``) and collections of groups
(``rigid_group_collection_asics = a,b``); 0.11 and later a hierarchy (``group_q = p0,p1``,
``group_all = q,r``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..geometry.detector import FEW_PANELS, MOST_GROUPS

COLLECTION, RIGID, GROUP = "rigid_group_collection_", "rigid_group_", "group_"


def is_group(key: str) -> bool:
    """Whether a line of a geometry file says what moves together."""
    return key.startswith((RIGID, GROUP))


def groups_of(panels: Sequence[str], lines: Mapping[str, str]) -> tuple[int, ...]:
    """The smallest groups that are few enough, by panel; empty where each panel moves on its own.

    A detector of up to 16 panels moves panel by panel.  Groups that do not hold each panel once are
    passed over; where nothing is left, few panels move on their own and many stay in place.

    Args:
        panels: names, in the file's order. lines: value by name, of those that :func:`is_group`
            recognises.

    Raises:
        ValueError: a member that is neither a panel nor a group.
    """
    members = {
        key: [name for part in value.split(",") if (name := part.strip())]
        for key, value in lines.items()
    }
    held = {name: {name} for name in panels}
    for key, names in members.items():
        held[key] = _panels_in(key, names, members, set(panels), ())
    if len(panels) <= FEW_PANELS:
        return ()
    ways = [
        [held[RIGID + name] for name in names]
        for key, names in members.items()
        if key.startswith(COLLECTION)
    ]
    if not ways:
        ways = _levels([held[k] for k in members if k.startswith(GROUP)])
        ways.append([held[k] for k in members if k.startswith(RIGID)])
    whole = [way for way in ways if _once(way, panels) and 1 < len(way) <= MOST_GROUPS]
    if whole:
        finest = max(whole, key=len)
        return tuple(next(k for k, group in enumerate(finest) if p in group) for p in panels)
    return () if len(panels) <= MOST_GROUPS else (0,) * len(panels)


def _panels_in(
    key: str,
    names: Sequence[str],
    members: Mapping[str, Sequence[str]],
    panels: set[str],
    above: tuple[str, ...],
) -> set[str]:
    """All panels in a group, those of its groups included."""
    found: set[str] = set()
    prefix = RIGID if key.startswith(COLLECTION) else GROUP
    for name in names:
        inner = prefix + name
        if name in panels and not key.startswith(COLLECTION):
            found.add(name)
        elif inner in members and inner not in above and not _is_flat(key):
            found |= _panels_in(inner, members[inner], members, panels, (*above, key))
        else:
            raise ValueError(f"{key}: {name[:60]!r} is no panel and no group of the file")
    return found


def _is_flat(key: str) -> bool:
    """Whether a group holds panels alone."""
    return key.startswith(RIGID) and not key.startswith(COLLECTION)


def _levels(groups: Sequence[set[str]]) -> list[list[set[str]]]:
    """Ways to take a hierarchy apart: the smallest groups, and those of each size at least n."""
    sizes = sorted({len(group) for group in groups})
    return [
        [g for g in groups if len(g) >= n and not any(n <= len(h) and h < g for h in groups)]
        for n in sizes
    ]


def _once(groups: Sequence[set[str]], panels: Sequence[str]) -> bool:
    """Whether each panel is in one group."""
    return sorted(name for group in groups for name in group) == sorted(panels)
