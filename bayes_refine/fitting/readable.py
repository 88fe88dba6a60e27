"""Find out which images of a run can be read, before any image is fitted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial

from ..geometry.experiments import Still
from ..infer.executor import IN_PROCESS, Executor, Shared
from ..io.protocols import Images
from ..util.errors import InputError
from ..util.status import Kind, Status
from ..util.threads import in_threads
from .problem import IMAGE_BYTES

BATCH = 16  # images that are tried together

Unread = tuple[tuple[Still, Status], ...]


def readable(
    stills: Sequence[Still], reader: Images, executor: Executor = IN_PROCESS
) -> tuple[list[Still], Unread]:
    """The stills whose images can be read, and the other stills with the reason.

    Each image is read once.  To the bit, the fit is that of a list without the unreadable images.

    Raises:
        InputError: no image can be read.
    """
    some = [stills[k : k + BATCH] for k in range(0, len(stills), BATCH)]

    def lost(stills: Sequence[Still], why: str) -> list[Status | None]:
        return [Status(Kind.LOST, why)] * len(stills)

    said = executor.map(partial(_said, executor.share(reader)), some, lost=lost)
    pairs = list(zip(stills, itertools.chain.from_iterable(said), strict=True))
    unread = tuple((still, why) for still, why in pairs if why is not None)
    if unread and len(unread) == len(pairs):
        raise InputError(f"no image can be used; the first one: {unread[0][1]}")
    return [still for still, why in pairs if why is None], unread


def _said(reader: Shared[Images], stills: Sequence[Still]) -> list[Status | None]:
    """What is wrong with each image; None with one that can be read."""

    def of(still: Still) -> Status | None:
        try:
            reader.get().read(still)
        except InputError as error:
            return Status(Kind.NOT_READ, str(error))
        return None

    return in_threads(of, stills, IMAGE_BYTES * math.prod(stills[0].detector.image_shape))
