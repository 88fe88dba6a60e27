"""The images of a run: a table, and what changes across the run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape

import numpy as np

from ..util.status import Kind, Status, usable
from . import run_charts
from .charts import ObservedAndExpected
from .drawing import MAX_HOVER
from .page import Section, chart, figures, heading, note, number, with_sd
from .quantities import quantity

MAX_FAILED = 12  # images whose failure is shown in full
MAX_ROWS = 4000  # rows of the table of images, about 1 kB each
PRINTED_ROWS = 60  # rows of that table in print; page.js has the same number


def failed(table: Mapping[str, np.ndarray]) -> np.ndarray:
    """(n,) bool: whether an image was left out."""
    return ~usable(table["status"])


def images(table: Mapping[str, np.ndarray], r: ObservedAndExpected | None = None) -> Section | None:
    """The section with the table of images, failed ones first, and their values across the run.

    Args:
        table: columns of ``images.csv``, each (n,), ``identifier`` and ``status`` among them.
    """
    n = len(table["status"])
    if not n:
        return None
    bad = failed(table)
    if r is not None and len(r):
        square = np.bincount(r.image[r.fitted], r.pull[r.fitted] ** 2, n)
        with np.errstate(invalid="ignore", divide="ignore"):
            rms = np.sqrt(square / np.bincount(r.image[r.fitted], minlength=n))
        table = {**table, "pull_rms": rms}
    columns = [k for k in table if k not in ("identifier", "status") and not k.endswith("_sd")]
    front = [k for k in ("n_reflections", "cc_model", "pull_rms") if k in columns]
    columns = front + [k for k in columns if k not in front]
    shown = [k for k in columns if k not in ("n_reflections", "pull_rms") and not _text(table[k])]
    families: list[tuple[str, ...]] = []
    for name in shown:
        if name.startswith("rot_"):
            if name == "rot_x_mrad":
                families.append(("rot_x_mrad", "rot_y_mrad", "rot_z_mrad"))
        elif not name.startswith(("strain_", "mosaic_shape_", "reindex")):
            families.append((name,))
    families.sort(key=lambda names: names == ("cc_model",))
    strips = [
        _across(table, names, bad)
        for names in families
        if np.isfinite(np.asarray(table[names[0]], float)[~bad]).any()
    ]
    return Section(
        "images",
        "Images",
        _what_failed(table, bad) + _image_table(table, columns, bad) + figures(*strips),
        "Failed images come first. Click a heading to sort; point at a row or a dot to highlight "
        "the same image everywhere on the page.",
    )


_STORIES = {
    "G": "Photons per unit of the reference. In a good run G varies as crystals and pulses do, "
    "without a trend, and by far more than the bars (1 sd).",
    "B": "B relative to the reference. A good run has one typical value; outliers are crystals "
    "that diffract less far, or wrongly indexed images.",
    "R1": "Width of the spots normal to the diffracted ray. In a good run it is nearly constant.",
    "rot_x_mrad": "Correction of the indexed orientation about the lab axes. In a good run the "
    "corrections scatter about zero; a common offset means a wrong beam centre.",
    "mosaic_image_mrad": "Mosaic spread of each crystal. A good run has no trend.",
    "cc_model": "Of all measured reflections, with the free set. In a good run it is near 1; low "
    "values mean wrong indexing, several crystals, or an empty image.",
}


def _across(table: Mapping[str, np.ndarray], names: tuple[str, ...], bad: np.ndarray) -> str:
    finite = np.flatnonzero(np.isfinite(np.asarray(table[names[0]], float)) & ~bad)
    story = _STORIES.get(names[0], "Bars: 1 sd.")
    title = quantity(names[0]).label.removesuffix(" x")
    return chart(
        f"across-{names[0]}",
        partial(run_charts.across_images, table=table, names=names, bad=bad),
        f"{title[0].upper()}{title[1:]} of each image. {story}"
        + (" Red crosses: failed." if bad.any() else ""),
        (5.2, 2.3),
        finite if len(finite) <= MAX_HOVER else None,
    )


def _what_failed(table: Mapping[str, np.ndarray], bad: np.ndarray) -> str:
    """Why images failed, in full; one image of each kind of failure comes first."""
    if not bad.any():
        return ""
    status = np.asarray(table["status"], str)
    where = np.flatnonzero(bad)
    kinds = [Status.parse(status[i]).kind for i in where]
    seen = np.array([kinds[:k].count(kind) for k, kind in enumerate(kinds[:2000])])
    shown = np.sort(where[: len(seen)][np.argsort(seen, kind="stable")[:MAX_FAILED]])
    lines = "".join(
        f'<tr><td>{i}</td><td class="text">{escape(str(table["identifier"][i]))}</td>'
        f'<td class="text why">{escape(status[i])}</td></tr>\n'
        for i in shown
    )
    more = len(where) - len(shown)
    rest = note(f"and {more} more; see the status column.") if more else ""
    return f'<h3>What failed</h3>\n<table id="failures"><tbody>\n{lines}</tbody></table>\n{rest}'


def _short(status: str, most: int = 34) -> str:
    """A status short enough for a column: only the last part of paths, an ellipsis at the end."""
    text = re.sub(r"\S*/(\S+)", r"\1", status)
    return escape(text if len(text) <= most else f"{text[: most - 1].rstrip()}…")


def _image_table(table: Mapping[str, np.ndarray], names: Sequence[str], bad: np.ndarray) -> str:
    status = np.asarray(table["status"], str)
    late = ~bad & (status != Kind.CONVERGED)
    order = np.lexsort((np.arange(len(bad)), ~late, ~bad))[:MAX_ROWS]
    sort = ' class="text"'
    head = heading("image", "", ' data-name="image"', True)
    head += heading("identifier", "", sort, True) + heading("status", "", sort, True)
    for name in names:
        unit = quantity(name)
        marks = sort * _text(table[name])
        marks += f' data-name="{name}" data-unit="{escape(unit.unit)}"'
        head += heading(unit.label, unit.unit, marks, True)
    columns = [_cells(table, name, order) for name in names]
    lines = []
    for rank, i in enumerate(order):
        kinds = ["bad"] * bool(bad[i]) + ["poor"] * bool(late[i])
        kinds += ["unprinted"] * (rank >= PRINTED_ROWS)
        label, why = escape(str(table["identifier"][i])), escape(status[i])
        mark = f' class="{" ".join(kinds)}"' if kinds else ""
        lines.append(
            f'<tr{mark} data-image="{i}" data-identifier="{label}" data-status="{why}">'
            f'<td data-v="{i}">{i}</td><td class="text" data-v="{label}">{label}</td>'
            f'<td class="text status" data-v="{why}" title="{why}">{_short(status[i])}</td>'
            + "".join(column[rank] for column in columns)
            + "</tr>"
        )
    more = ""
    if len(order) > PRINTED_ROWS:
        text = f"The first {PRINTED_ROWS} of {len(order)} rows; images.csv has them all."
        more = f'<p class="note printed">{text}</p>'
    if len(bad) > MAX_ROWS:
        more += note(f"Only {MAX_ROWS} of {len(bad)} images; images.csv has them all.")
    return (
        '<div class="tools"><label>find <input type="search" id="search" '
        'placeholder="identifier or status"></label>'
        '<label><input type="checkbox" id="failed"> only images with a problem</label></div>\n'
        '<div class="scroll"><table class="sortable" id="image-table">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n"
        + "\n".join(lines)
        + f"\n</tbody></table></div>\n{more}"
    )


def _text(column: np.ndarray) -> bool:
    """Whether a column of the table holds text."""
    return np.asarray(column).dtype.kind in "OUS"


def _cells(table: Mapping[str, np.ndarray], name: str, rows: np.ndarray) -> list[str]:
    """Cells of a column: text, or values in the unit of the heading, ± sd if there is one."""
    values = np.asarray(table[name])[rows]
    if _text(values):
        words = [escape(str(v)) for v in values]
        return [f'<td class="text" data-v="{word}">{word}</td>' for word in words]
    if values.dtype.kind in "iu":
        return [f'<td data-v="{v}">{v}</td>' for v in values]
    factor = quantity(name).factor
    values = factor * values.astype(float)
    sds = table.get(f"{name}_sd")
    if sds is None:
        return [
            f'<td data-v="{v:.7g}">{number(float(v), 4)}</td>'
            if np.isfinite(v)
            else '<td data-v=""></td>'
            for v in values
        ]
    cells = []
    for v, sd in zip(values, factor * np.asarray(sds, float)[rows], strict=True):
        if not np.isfinite(v):
            cells.append('<td data-v=""></td>')
            continue
        value, error = with_sd(v, sd)
        spread = f" <small>± {error}</small>" if error else ""
        cells.append(f'<td data-v="{v:.7g}">{value}{spread}</td>')
    return cells
