"""Seeded damage to bytes, lines, numbers and HDF5 objects: what tests of damaged files share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

WORDS = (
    *("?", ".", "nan", "-inf", "1e400", "1e30", "-1e30", "0", "-1", "99999999999999999999", "''"),
    *(
        "0x10",
        "1,5",
        "1e-320",
        "é",
        "\0",
        ";",
        "'",
        "data_",
        "loop_",
        "#",
        "_cell.length_a",
        "-0.0",
    ),
)
NUMBERS = (np.nan, np.inf, -np.inf, 1e30, -1e30, 3e38, 1e-38, 0.0, -1.0, 1e6, 2.0**31, 0.5)


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """TimeoutError after so many seconds, in whatever Python code is then running."""

    def stop(number, frame):
        raise TimeoutError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def damaged_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    """Cut, bytes changed (anywhere or near the start), a part twice, a part of noise, of zeros or
    of ones, or noise at the end.
    """
    n, kind = len(data), rng.integers(7)
    if n == 0:
        return rng.bytes(3)
    start, size = int(rng.integers(n)), int(rng.integers(1, max(n // 3, 2)))
    if kind == 0:
        return data[:start]
    if kind in (1, 2):
        changed = bytearray(data)
        for at in rng.integers(n if kind == 1 else min(n, 1024), size=int(rng.integers(1, 12))):
            changed[at] = int(rng.integers(256))
        return bytes(changed)
    if kind == 3:
        return data[: start + size] + data[start:]
    if kind == 4:
        return data + rng.bytes(size)
    middle = rng.bytes(size) if kind == 5 else bytes([rng.choice([0, 255])]) * size
    return data[:start] + middle + data[start + size :]


def damaged_text(rng: np.random.Generator, text: str) -> str:
    """Lines lost, twice, elsewhere or cut; words in place of words; columns shifted."""
    lines = text.split("\n")
    for _ in range(int(rng.integers(1, 4))):
        at, kind = int(rng.integers(len(lines))), rng.integers(7)
        line = lines[at]
        if kind == 0:
            del lines[at : at + int(rng.integers(1, 8))]
        elif kind == 1:
            lines.insert(int(rng.integers(len(lines) + 1)), line)
        elif kind == 2:
            lines[at] = line[: int(rng.integers(len(line) + 1))]
        elif kind == 3:
            lines[at] = " " * int(rng.integers(1, 4)) + line
        elif kind == 4:
            lines[at:] = [each[:-3] for each in lines[at : at + 200]]
        else:
            words = line.split(" ")
            words[int(rng.integers(len(words)))] = str(rng.choice(WORDS))
            lines[at] = " ".join(words)
        lines = lines or [""]
    return "\n".join(lines)


def damaged_numbers(rng: np.random.Generator, table: np.ndarray) -> np.ndarray:
    """One number, one column, one row or many numbers that should not be there; (n, k) float."""
    table = np.array(table, float)
    n, k = table.shape
    number, kind = rng.choice(NUMBERS), rng.integers(5)
    if kind == 0:
        table[rng.integers(n), rng.integers(k)] = number
    elif kind == 1:
        table[:, rng.integers(k)] = number
    elif kind == 2:
        table[rng.integers(n)] = number
    elif kind == 3:
        table[rng.random((n, k)) < rng.choice([0.01, 0.3])] = number
    else:
        with np.errstate(all="ignore"):
            table[:, rng.integers(k)] *= rng.choice([-1.0, 1e-30, 1e30, 0.0])
    return table


def replacements(path: Path, pixels: np.ndarray) -> dict[str, Callable[[h5py.Group, str], object]]:
    """Name → what may stand where numbers are expected; ``pixels`` (n, ny, nx) is what is sound."""
    shape = n, ny, nx = pixels.shape
    fifo = path.with_name("fifo.h5")
    if not fifo.exists():
        os.mkfifo(fifo)
    return {
        "text": lambda f, k: f.create_dataset(k, data="words"),
        "texts": lambda f, k: f.create_dataset(k, data=[b"a", b"b", b"c"]),
        "compound": lambda f, k: f.create_dataset(k, data=np.zeros(shape, "i4,f8")),
        "complex": lambda f, k: f.create_dataset(k, data=pixels.astype(complex)),
        "group": lambda f, k: f.create_group(k),
        "empty": lambda f, k: f.create_dataset(k, data=h5py.Empty("i4")),
        "no images": lambda f, k: f.create_dataset(k, data=pixels[:0]),
        "no pixels": lambda f, k: f.create_dataset(k, data=pixels[:, :, :0]),
        "a number": lambda f, k: f.create_dataset(k, data=7),
        "not a number": lambda f, k: f.create_dataset(k, data=np.full(shape, np.nan)),
        "infinite": lambda f, k: f.create_dataset(k, data=np.full(shape, -np.inf)),
        "huge numbers": lambda f, k: f.create_dataset(k, data=np.full(shape, 1e300)),
        "a row": lambda f, k: f.create_dataset(k, data=pixels[0, 0]),
        "five dimensions": lambda f, k: f.create_dataset(k, data=pixels[None, None]),
        "another shape": lambda f, k: f.create_dataset(k, data=pixels[:, 1:]),
        "one image": lambda f, k: f.create_dataset(k, data=pixels[0]),
        "big-endian": lambda f, k: f.create_dataset(k, data=pixels.astype(">i8")),
        "half precision": lambda f, k: f.create_dataset(k, data=pixels.astype("f2")),
        "long double": lambda f, k: f.create_dataset(k, data=pixels.astype(np.longdouble)),
        "truth values": lambda f, k: f.create_dataset(k, data=pixels > 500),
        "lists": lambda f, k: f.create_dataset(k, (3,), h5py.vlen_dtype("i4")),
        "references": lambda f, k: f.create_dataset(k, (3,), h5py.ref_dtype),
        "opaque": lambda f, k: f.create_dataset(k, data=np.zeros(3, "V7")),
        "10⁹ images": lambda f, k: f.create_dataset(
            k, (10**9, ny, nx), "i4", chunks=(1, ny, nx)
        ),
        "200,000²": lambda f, k: f.create_dataset(k, (200_000,) * 2, "i4", chunks=(1, 100)),
        "one chunk for all": lambda f, k: f.create_dataset(
            k, (10**6, ny, nx), "i4", chunks=(10**6, ny, nx), maxshape=(None, ny, nx)
        ),
        "never written": lambda f, k: f.create_dataset(k, shape, "i4"),
        "link to nowhere": lambda f, k: f.__setitem__(k, h5py.SoftLink("/nowhere")),
        "link to itself": lambda f, k: f.__setitem__(k, h5py.SoftLink("/" + k)),
        "link to the root": lambda f, k: f.__setitem__(k, h5py.SoftLink("/")),
        "absent file": lambda f, k: f.__setitem__(k, h5py.ExternalLink("absent.h5", k)),
        "own file": lambda f, k: f.__setitem__(k, h5py.ExternalLink(path.name, k)),
        "a folder": lambda f, k: f.__setitem__(k, h5py.ExternalLink(".", k)),
        "a pipe": lambda f, k: f.__setitem__(k, h5py.ExternalLink("fifo.h5", k)),
        "own source": lambda f, k: f.create_virtual_dataset(
            k, _over(".", "/" + k, shape, n)
        ),
        "absent source": lambda f, k: f.create_virtual_dataset(
            k, _over("absent.h5", "data", shape, n)
        ),
        "source of another shape": lambda f, k: f.create_virtual_dataset(
            k, _over(".", "/entry/instrument/detector/pixel_mask", (ny, nx), n)
        ),
    }  # fmt: skip


def _over(name: str, key: str, shape: tuple[int, ...], n: int) -> h5py.VirtualLayout:
    layout = h5py.VirtualLayout((n, *shape[-2:]), np.int32)
    source = h5py.VirtualSource(name, key, shape=shape)
    if len(shape) == 3:
        layout[...] = source
    else:
        layout[0] = source
    return layout


def damage_objects(
    path: Path, rng: np.random.Generator, names: Sequence[str], pixels: np.ndarray
) -> str:
    """Replace one of the objects ``names`` of an HDF5 file, or an attribute; say what was done."""
    name = str(rng.choice(names))
    with h5py.File(path, "a") as file:
        if rng.random() < 0.2:
            values = [7, [1.5, 2.5], "x" * 60_000, b"\xff\xfe", "data_1", h5py.Empty("f4"), "../.."]
            k = int(rng.integers(len(values)))
            attribute = str(rng.choice(["signal", "NX_class", "units", "image_nr_low"]))
            if name in file:
                file[name].attrs[attribute] = values[k]
            return f"attribute {attribute} of {name}: {str(values[k])[:10]!r}"
        choices = replacements(path, pixels)
        kind = str(rng.choice(list(choices)))
        if name in file:
            del file[name]
        elif file.get(name, getlink=True) is not None:
            del file[name]
        choices[kind](file, name)
    return f"{kind} for {name}"
