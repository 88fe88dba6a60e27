"""Seeded damage to bytes, lines and numbers: what tests of damaged files share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

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
    """Cut, bytes changed, a part twice, a part of noise, or a part of zeros."""
    n, kind = len(data), rng.integers(5)
    start, size = int(rng.integers(n)), int(rng.integers(1, max(n // 3, 2)))
    if kind == 0:
        return data[:start]
    if kind == 1:
        changed = bytearray(data)
        for at in rng.integers(n, size=int(rng.integers(1, 12))):
            changed[at] = int(rng.integers(256))
        return bytes(changed)
    if kind == 2:
        return data[: start + size] + data[start:]
    middle = rng.bytes(size) if kind == 3 else bytes(size)
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
        table[:, rng.integers(k)] *= rng.choice([-1.0, 1e-30, 1e30, 0.0])
    return table
