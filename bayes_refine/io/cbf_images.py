"""Images in CBF files: byte-offset (PILATUS, EIGER) and packed by CBFlib (CSPAD, Rayonix).

This module checks the headers of the binary sections before it unpacks anything: fabio would wait
for ever for the end of a section that is cut short.  A file with several sections is one image of
several panels.
"""

from __future__ import annotations

import base64
import hashlib
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..util.errors import InputError
from .boundary import refusing
from .image_shape import ImageShape

_MARK = b"--CIF-BINARY-FORMAT-SECTION--"
_START = b"\x0c\x1a\x04\xd5"
_MOST_HEADER = 2**16  # bytes of the header of one section
_TYPES = {
    "unsigned 8-bit integer": "u1",
    "signed 8-bit integer": "i1",
    "unsigned 16-bit integer": "u2",
    "signed 16-bit integer": "i2",
    "unsigned 32-bit integer": "u4",
    "signed 32-bit integer": "i4",
    "signed 32-bit real ieee": "f4",
    "signed 64-bit real ieee": "f8",
}


@dataclass(frozen=True)
class _Section:
    """A binary section: its compression, type, dimensions and bytes."""

    compression: str
    conversions: str
    dtype: np.dtype
    ny: int
    nx: int
    data: memoryview
    md5: str


def is_cbf(start: bytes) -> bool:
    """Whether a file that starts with these bytes is CBF."""
    return start.lstrip().startswith(b"###CBF")


def read_cbf(path: Path, shape: ImageShape, data: bytes) -> np.ndarray:
    """Counts (panel, y, x) of a CBF file.

    Args:
        path: the file's name. data: its content, unpacked.

    Raises:
        InputError: the file is damaged, cut short, compressed in an unknown way, or does not have
            the shape of the detector.
    """
    with refusing(path):
        sections = _sections(data, path)
        if len(sections) > 1:
            found: tuple[int, ...] = (len(sections), sections[0].ny, sections[0].nx)
            if {(s.ny, s.nx) for s in sections} != {found[1:]}:
                raise InputError(f"{path} has panels of several sizes, which cannot be read")
        else:
            found = (sections[0].ny, sections[0].nx)
        shape.check(found, path, "an image")
        panels = [_pixels(section, path) for section in sections]
        return shape.on_panels(np.concatenate(panels).reshape(found), path, "an image")


def _sections(data: bytes, path: Path) -> list[_Section]:
    sections, at = [], data.find(_MARK)
    while at >= 0:
        begin = data.find(_START, at, at + _MOST_HEADER)
        if begin < 0:
            if data[at + len(_MARK) : at + len(_MARK) + 2] == b"--":  # end of the previous section
                at = data.find(_MARK, at + len(_MARK))
                continue
            raise InputError(f"{path} cannot be read as an image: it is cut short; copy it anew")
        section, end = _section(data, at, begin, path)
        sections.append(section)
        at = data.find(_MARK, end)
        if data[at + len(_MARK) : at + len(_MARK) + 2] == b"--":
            at = data.find(_MARK, at + len(_MARK))
    if not sections:
        raise InputError(f"{path} cannot be read as an image: it holds none; copy it anew")
    return sections


def _section(data: bytes, at: int, begin: int, path: Path) -> tuple[_Section, int]:
    """The section whose header is data[at:begin], and the position of its end."""
    header = data[at:begin].decode("ascii", errors="replace")
    keys = {
        k.lower(): v.strip() for k, v in re.findall(r"^\s*([\w-]+):[ \t]*(.*?)\s*$", header, re.M)
    }
    found = re.search(r'conversions\s*=\s*"?(x-CBF_\w+)"?([^\r\n]*)', header, re.I)
    compression = found.group(1).lower() if found else "none"
    size = _whole(keys, "x-binary-size", path)
    nx = _whole(keys, "x-binary-size-fastest-dimension", path)
    ny = _whole(keys, "x-binary-size-second-dimension", path)
    kind = keys.get("x-binary-element-type", "signed 32-bit integer").strip('" ').lower()
    order = keys.get("x-binary-element-byte-order", "LITTLE_ENDIAN").upper()
    if kind not in _TYPES:
        raise InputError(f"{path} has pixels of type {kind[:40]!r}, which cannot be read")
    if begin + 4 + size > len(data):
        raise InputError(f"{path} cannot be read as an image: it is cut short; copy it anew")
    dtype = np.dtype((">" if "BIG" in order else "<") + _TYPES[kind])
    binary = memoryview(data)[begin + 4 : begin + 4 + size]
    conversions = found.group(2) if found else ""
    md5 = keys.get("content-md5", "")
    return _Section(compression, conversions, dtype, ny, nx, binary, md5), begin + 4 + size


def _whole(keys: dict[str, str], name: str, path: Path) -> int:
    text = keys.get(name, "")
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise InputError(
            f"{path} cannot be read as an image: its header has no {name}; copy it anew"
        )
    return int(text)


def _pixels(section: _Section, path: Path) -> np.ndarray:
    """(ny·nx,) pixels of one section."""
    n = section.ny * section.nx
    if section.md5 and section.md5 != _md5(section.data):
        raise InputError(
            f"{path} cannot be read as an image: its pixels are not those that were written "
            "(wrong checksum); copy it anew"
        )
    if section.compression == "x-cbf_byte_offset":
        from fabio.compression import decByteOffset  # slow to import, and rarely needed

        pixels = np.asarray(decByteOffset(bytes(section.data), n, section.dtype.newbyteorder("=")))
        pixels = pixels.astype(section.dtype.newbyteorder("="), copy=False)
    elif section.compression in ("x-cbf_packed", "x-cbf_packed_v2", "x-cbf_canonical"):
        pixels = _by_cbflib(section, n, path)
    elif section.compression in ("none", "x-cbf_none"):
        pixels = np.frombuffer(section.data, section.dtype)
    else:
        raise InputError(f"{path} is compressed by {section.compression}, which cannot be read")
    if len(pixels) != n:
        raise InputError(
            f"{path} cannot be read as an image: it has {len(pixels)} of {n} pixels; copy it anew"
        )
    return pixels


def _md5(data: memoryview) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _cbflib() -> Any:
    with warnings.catch_warnings():
        # the wrapper of CBFlib warns on Python 3.12, and crashes where the warning is an error
        warnings.simplefilter("ignore")
        import pycbf
    return pycbf


def _by_cbflib(section: _Section, n: int, path: Path) -> np.ndarray:
    """Unpack a section with CBFlib, from a file of this section alone with a header known good."""
    count = int.from_bytes(section.data[:8], "little") if len(section.data) >= 32 else -1
    if section.compression != "x-cbf_canonical" and count != n:
        raise InputError(
            f"{path} cannot be read as an image: it holds another number of packed pixels than its "
            "header says; copy it anew"
        )
    kind = next(k for k, code in _TYPES.items() if section.dtype.str.endswith(code))
    uncorrelated = '; "uncorrelated_sections"' if "uncorrelated" in section.conversions else ""
    flat = "; flat" if "flat" in section.conversions else ""
    header = "\r\n".join(
        [
            "###CBF: VERSION 1.5\r\ndata_x\r\n_array_data.data\r\n;",
            _MARK.decode(),
            "Content-Type: application/octet-stream;",
            f'     conversions="x{section.compression[1:].upper()}"{uncorrelated}{flat}',
            "Content-Transfer-Encoding: BINARY",
            f"X-Binary-Size: {len(section.data)}",
            "X-Binary-ID: 1",
            f'X-Binary-Element-Type: "{kind.replace("ieee", "IEEE")}"',
            "X-Binary-Element-Byte-Order: LITTLE_ENDIAN",
            f"X-Binary-Number-of-Elements: {n}",
            f"X-Binary-Size-Fastest-Dimension: {section.nx}",
            f"X-Binary-Size-Second-Dimension: {section.ny}",
            "X-Binary-Size-Padding: 0\r\n\r\n",
        ]
    )
    end = f"\r\n{_MARK.decode()}--\r\n;\r\n"
    pycbf = _cbflib()
    handle = pycbf.cbf_handle_struct()
    handle.read_buffer(
        header.encode() + _START + bytes(section.data) + end.encode(), pycbf.MSG_NODIGEST
    )
    handle.find_category("array_data")
    handle.find_column("data")
    real = section.dtype.kind == "f"
    packed = handle.get_realarray_as_string() if real else handle.get_integerarray_as_string()
    return np.frombuffer(packed, section.dtype.newbyteorder("="))
