"""Which images of a run can be read at all, found out before any is fitted."""

from __future__ import annotations

from collections.abc import Sequence

from ..geometry.experiments import Still
from ..io.images import ImageReader
from ..util.errors import InputError
from ..util.status import Kind, Status

Unread = tuple[tuple[Still, Status], ...]


def readable(stills: Sequence[Still], reader: ImageReader) -> tuple[list[Still], Unread]:
    """The stills whose images can be read, and the others with what was wrong.

    Each image is read once for this.  The fit is that of a list without the unreadable images, to
    the bit.

    Raises:
        InputError: no image can be read.
    """
    good: list[Still] = []
    unread: list[tuple[Still, Status]] = []
    for still in stills:
        try:
            reader.read(still)
            good.append(still)
        except InputError as error:
            unread.append((still, Status(Kind.NOT_READ, str(error))))
    if not good:
        raise InputError(f"no image can be used; the first one: {unread[0][1]}")
    return good, tuple(unread)
