"""Text from files, made fit for files, pictures and terminals: names are data."""

from __future__ import annotations

import unicodedata

_NOT_TEXT = ("Cc", "Cs")  # control characters, halves of surrogate pairs


def printable(text: str) -> str:
    """``text`` on one line that can be encoded: line ends as spaces, what is no text escaped.

    Control characters and lone surrogates, which no UTF-8 file, CSV reader or terminal takes,
    become ``\\x00`` or ``\\ud800``.
    """
    if text.isprintable():
        return text
    one_line = " ".join(text.splitlines())
    return "".join(repr(c)[1:-1] if unicodedata.category(c) in _NOT_TEXT else c for c in one_line)


def ascii_title(text: str, length: int = 70) -> str:
    """``text`` for a title in an MTZ file: ASCII on one line, ? for other letters, not longer."""
    return printable(text).encode("ascii", "replace").decode()[:length]
