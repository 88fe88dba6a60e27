"""Text that came from files, made safe to write to files, pictures and terminals."""

from __future__ import annotations

import unicodedata

_NOT_TEXT = ("Cc", "Cs")  # control characters, halves of surrogate pairs


def printable(text: str) -> str:
    """``text`` on one line that can be encoded: line ends become spaces.

    Control characters and lone surrogates, which break UTF-8 files, CSV readers and terminals, are
    escaped: ``\\x00``, ``\\ud800``.
    """
    if text.isprintable():
        return text
    one_line = " ".join(text.splitlines())
    return "".join(repr(c)[1:-1] if unicodedata.category(c) in _NOT_TEXT else c for c in one_line)


def shortened(text: str, length: int = 900) -> str:
    """``text``, without its middle if it is longer than ``length``."""
    if len(text) <= length:
        return text
    return f"{text[: 2 * length // 3]} […] {text[-length // 4 :]}"


def ascii_title(text: str, length: int = 70) -> str:
    """``text`` as a title in an MTZ file: one line of ASCII, ? for other letters, cut to length."""
    return printable(text).encode("ascii", "replace").decode()[:length]
