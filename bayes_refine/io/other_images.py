"""Images that fabio reads: SMV (ADSC, Rayonix), MarCCD, TIFF, EDF and others.

Where a header states the size of the image in words, the size is compared with the detector before
fabio reads the file.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import fabio
import numpy as np

from ..util.errors import InputError
from .boundary import head, refusing
from .image_shape import ImageShape

_HEADER = 2**16  # bytes that are searched for the numbers of rows and columns
_SIZES = re.compile(rb"(?:SIZE[123]|Dim_[123])\s*=\s*(-?[0-9]+)", re.I)


def read_other(path: Path, frame: int, shape: ImageShape, unpacked: bytes | None) -> np.ndarray:
    """Counts (panel, y, x) of frame ``frame``.

    Args:
        unpacked: the content of a file that is compressed with bz2 or gz.

    Raises:
        InputError: fabio cannot read the file, it has no such frame, or its images do not have the
            shape of the detector.
    """
    start = head(path, _HEADER) if unpacked is None else unpacked[:_HEADER]
    source = str(path) if unpacked is None else _named(unpacked, path)
    sizes = [int(n) for n in _SIZES.findall(start)]
    if not all(0 < n <= shape.pixels for n in sizes):
        raise InputError(
            f"{path} has an image of {' × '.join(map(str, sizes))} pixels, not one of this "
            "detector; use the .expt that belongs to it"
        )
    with refusing(path), fabio.open(source) as image:
        n = image.nframes
        if 0 <= frame < n:
            pixels = np.asarray(image.data if frame == 0 else image.get_frame(frame).data)
            if pixels.dtype.kind not in "biuf":
                raise InputError(f"{path} holds {pixels.dtype}, not real numbers")
            return shape.on_panels(pixels, path, "an image")
    raise InputError(f"{path} has {n} frames, no frame {frame}; correct the .expt")


def _named(data: bytes, path: Path) -> io.BytesIO:
    """The unpacked content of a file, as an object that fabio accepts."""
    stream = fabio.fabioutils.BytesIO(data)
    stream.name = str(path)
    return stream
