"""Put sections on one HTML page, which contains its styles, script and pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from io import StringIO
from pathlib import Path
from string import Template
from typing import Any, TypeVar

import numpy as np

from ..util.errors import InputError
from .style import STYLE

T = TypeVar("T")
_failed: ContextVar[list[str] | None] = ContextVar("failed", default=None)


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        ident: anchor of the section. title: plain text. lead: one plain sentence below the title.
        body: HTML.
    """

    ident: str
    title: str
    body: str
    lead: str = ""

    @property
    def html(self) -> str:
        """The HTML of the section."""
        lead = f'<p class="lead">{escape(self.lead)}</p>\n' if self.lead else ""
        title = escape(self.title)
        return f'<section id="{self.ident}">\n<h2>{title}</h2>\n{lead}{self.body}\n</section>'


def write_report(
    path: str | Path, title: str, sections: Sequence[Section | None], subtitle: str = ""
) -> None:
    """Write a self-contained page; sections that are None are left out.

    Raises:
        InputError: ``path`` cannot be written.
    """
    own = files(__package__)
    kept = [section for section in sections if section is not None]
    links = "\n".join(f'<a href="#{s.ident}">{escape(s.title)}</a>' for s in kept)
    page = Template(own.joinpath("page.html").read_text("utf-8")).substitute(
        title=escape(title),
        subtitle=escape(subtitle),
        style=own.joinpath("style.css").read_text("utf-8"),
        script=own.joinpath("page.js").read_text("utf-8"),
        links=links,
        sections="\n".join(s.html for s in kept),
    )
    try:
        Path(path).write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


# -- what cannot be drawn -------------------------------------------------------------------


@contextmanager
def failures() -> Iterator[list[str]]:
    """A list of failures: inside the block ``chart`` and ``attempt`` add a sentence for each."""
    found: list[str] = []
    token = _failed.set(found)
    try:
        yield found
    finally:
        _failed.reset(token)


def attempt(what: str, make: Callable[[], T]) -> T | None:
    """``make()``, or None if it fails; the failure goes to the list of ``failures``."""
    try:
        return make()
    except Exception as error:
        _tell(what, error)
        return None


def _tell(what: str, error: Exception) -> str:
    """Add a failure to the list of ``failures``; return the reason in words."""
    why = " ".join(f"{error}".split()) or type(error).__name__
    if (told := _failed.get()) is not None:
        told.append(f"{what} could not be drawn: {why}")
    return why


# -- pictures -------------------------------------------------------------------------------


def chart(
    name: str,
    draw: Callable[[Any], Any],
    caption: str,
    size: tuple[float, float] = (5.2, 3.5),
    images: np.ndarray | None = None,
) -> str:
    """A ``<figure>`` with the picture that ``draw`` makes on an empty Matplotlib figure, as SVG.

    If drawing fails, the page shows the reason in place of the picture: a picture must not cost a
    run its results.

    Args:
        name: unique on the page.
        caption: plain text.
        size: inches; a picture wider than 7 spans both columns.
        images: image of each point in the collections with gid ``images-<column>``; the page links
            points to rows of its table of images.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style = {**STYLE, **margins(size), "svg.fonttype": "none", "svg.hashsalt": name}
    kind = " wide" if size[0] > 7 else ""
    data = "" if images is None else f" data-images='{json.dumps(np.asarray(images).tolist())}'"
    try:
        with matplotlib.rc_context(style):
            figure = Figure(figsize=size)
            figure = draw(figure) or figure
            drawn = _svg(figure, name, caption)
    except Exception as error:
        why = _tell(f"picture '{name}'", error)
        drawn = f"<p>This picture could not be drawn: {escape(why)}.</p>"
        kind += " failed"
    return (
        f'<figure id="{name}" class="chart{kind}"{data}>\n{drawn}\n'
        f"<figcaption>{escape(caption)}</figcaption>\n</figure>"
    )


def margins(
    size: tuple[float, float],
    left: float = 0.68,
    right: float = 0.1,
    bottom: float = 0.45,
    top: float = 0.3,
) -> dict[str, float]:
    """Matplotlib's settings for margins in inches, of a figure with a given size in inches.

    Matplotlib could find the margins, but that would double the time for a figure.
    """
    wide, high = size
    sides = {"left": left / wide, "right": 1 - right / wide}
    sides |= {"bottom": bottom / high, "top": 1 - top / high}
    return {f"figure.subplot.{name}": value for name, value in sides.items()}


def figures(*parts: str | None, columns: int = 2) -> str:
    """Pictures side by side; a picture that is None is left out."""
    kept = "\n".join(part for part in parts if part)
    return f'<div class="figures in{columns}">\n{kept}\n</div>' if kept else ""


def note(text: str) -> str:
    """A small remark, plain text."""
    return f'<p class="note">{escape(text)}</p>'


def _svg(figure: Any, name: str, label: str) -> str:
    """Inline SVG, without the parts that only a separate file needs, and with unique ids."""
    buffer = StringIO()
    figure.savefig(buffer, format="svg", dpi=130)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    used = set(re.findall(r"#([\w.-]+)", text))
    text = re.sub(
        r' id="([^"]*)"',
        lambda m: m[0] if m[1] in used or m[1].startswith("images-") else "",
        text,
    )
    text = re.sub(r"(font: [\d.]+px|font: \d+ [\d.]+px)[^;\"]*'[^;\"]*", r"\1 sans-serif", text)
    size = re.match(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', text)
    assert size, "Matplotlib writes a viewBox"
    alternative = escape(label.split(". ")[0], quote=True)
    opening = f'<svg viewBox="{size[1]}" role="img" aria-label="{alternative}">'
    return re.sub(r"\n\s+", "\n", opening + text[size.end() :])


# -- tables ---------------------------------------------------------------------------------


def number(value: Any, digits: int = 3) -> str:
    """A number as text with ``digits`` significant digits; a dash if it is not finite or None."""
    if value is None or (isinstance(value, float | np.floating) and not np.isfinite(value)):
        return "–"
    if isinstance(value, int | np.integer):
        return f"{int(value):,}".replace(",", "\u202f")
    if abs(value) >= 10**digits and abs(value) < 1e7:
        return f"{value:.0f}"
    text = f"{value:.{digits}g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        superscript = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        text = f"{mantissa}·10{superscript}"
    return text.replace("-", "−")


def with_sd(value: float, sd: float) -> tuple[str, str]:
    """Value and sd as text, both to the second significant digit of the sd."""
    if not (np.isfinite(value) and np.isfinite(sd) and sd > 0):
        return number(float(value), 4), ""
    decimals = 1 - int(np.floor(np.log10(sd)))
    if decimals > 6 or decimals < -2:
        return number(float(value), 4), number(float(sd), 2)
    decimals = max(decimals, 0)
    return f"{value:.{decimals}f}".replace("-", "−"), f"{sd:.{decimals}f}"


def heading(label: str, unit: str = "", attributes: str = "", button: bool = False) -> str:
    """A ``<th>``."""
    inner = escape(label) + (f'<span class="unit">{escape(unit)}</span>' if unit else "")
    return f"<th{attributes}>{f'<button>{inner}</button>' if button else inner}</th>"


def two_columns(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values, plain text."""
    lines = "".join(
        f'<tr><td class="text">{escape(k)}</td><td class="text">{escape(v)}</td></tr>\n'
        for k, v in rows
    )
    return f'<table class="facts"><tbody>\n{lines}</tbody></table>'
