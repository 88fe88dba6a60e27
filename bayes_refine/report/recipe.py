"""The sections on what was run, and on the unknowns that all images share."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .glance import Summary
from .page import Section, heading, note, number, two_columns, with_sd
from .quantities import quantity

_LOG_PRIORS = {  # shared unknowns: prior median, ln sd
    "R0_inv_angstrom": ("R0_inv_angstrom", "log_R0_sd"),
    "mosaic_mrad": ("mosaic_spread_mrad", "log_mosaic_spread_sd"),
    "model_error": ("model_error", "log_model_error_sd"),
    "shape_error": ("shape_error", "log_shape_error_sd"),
    "nu": ("student_t_nu", "log_student_t_nu_sd"),
    "nu_moments": ("student_t_nu", "log_student_t_nu_sd"),
}


def what_was_run(summary: Summary) -> Section | None:
    """The section with command, versions, noise, settings, priors, rounds and time."""
    parts = []
    if summary.get("command"):
        line = shlex.join(str(word) for word in summary["command"])
        parts.append(f"<pre>{escape(line)}</pre>")
    facts = [
        (label, str(summary[name]))
        for name, label in (
            ("model", "model"),
            ("method", "method"),
            ("reference", "reference"),
            ("prior", "prior of intensities"),
            ("space_group", "space group"),
        )
        if summary.get(name)
    ]
    if message := (summary.get("posterior") or {}).get("message"):
        facts.append(("draws", message))
    if summary.get("cell"):
        a, b, c, *angles = (f"{x:.2f}" for x in summary["cell"])
        facts.append(("mean cell", f"{a}, {b}, {c} Å; {', '.join(angles)}°"))
    if noise := summary.get("noise"):
        text = f"gain {number(noise.get('gain'))} counts per photon, "
        facts.append(("noise", text + f"read-out {number(noise.get('read_noise'))} photons rms"))
    columns = [f"<h3>Run</h3>{two_columns(facts)}"] if facts else []
    if summary.get("settings"):
        units = {"d_min": " Å", "margin": " R0_eff", "read_noise": " photons rms"}
        rows = [(k, _plain(v) + units.get(k, "")) for k, v in summary["settings"].items()]
        columns.append(f"<h3>Settings</h3>{two_columns(rows)}")
    if summary.get("seconds"):
        rows = [(k, f"{number(v)} s") for k, v in summary["seconds"].items()]
        columns.append(f"<h3>Time</h3>{two_columns(rows)}")
    if columns:
        inner = "\n".join(f"<div>{column}</div>" for column in columns)
        parts.append(f'<div class="columns">\n{inner}\n</div>')
    if rounds := summary.get("convergence", {}).get("rounds"):
        parts.append(_rounds(rounds))
    if summary.get("priors"):
        parts.append(_prior_table(summary["priors"]))
    if summary.get("versions"):
        rows = [(k, str(v)) for k, v in summary["versions"].items()]
        parts.append(_folded("Versions", rows))
    return Section("run", "What was run", "\n".join(parts)) if parts else None


def _rounds(rounds: Sequence[Mapping[str, Any]]) -> str:
    columns = (
        ("rotation_mrad", "orientations moved", "mrad rms"),
        ("log_G", "ln G moved", "rms"),
        ("log_R1", "ln R1 moved", "rms"),
        ("iterations", "Newton steps", ""),
        ("seconds_measure", "measured in", "s"),
        ("seconds_fit", "fitted in", "s"),
    )
    head = heading("round") + "".join(heading(label, unit) for _, label, unit in columns)
    lines = "".join(
        f"<tr><td>{k + 1}</td>"
        + "".join(f"<td>{number(row.get(name))}</td>" for name, *_ in columns)
        + "</tr>\n"
        for k, row in enumerate(rounds)
    )
    return (
        f"<h3>Rounds of predict, measure, fit</h3>\n<table><thead><tr>{head}</tr></thead><tbody>\n"
        f"{lines}</tbody></table>\n" + note("A good run moves less from round to round.")
    )


def _prior_table(priors: Mapping[str, Any]) -> str:
    def unit(name: str) -> str:
        if name.startswith("log_"):
            return " (natural logarithm)"
        if name in ("B_mean", "B_sd"):
            return " Å²"
        units = {"_inv_angstrom": " Å⁻¹", "_mrad": " mrad", "_mm": " mm", "_px": " px"}
        return next((text for suffix, text in units.items() if name.endswith(suffix)), "")

    rows = [(k, ("∞" if v is None else _plain(v)) + unit(k)) for k, v in priors.items()]
    return _folded("Priors", rows)


def _folded(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """A table in two columns behind its title; it is open in print."""
    half = (len(rows) + 1) // 2
    sides = "".join(f"<div>{two_columns(part)}</div>" for part in (rows[:half], rows[half:]))
    inner = f'<div class="columns">{sides}</div>'
    return f"<details><summary>{escape(title)}</summary>{inner}</details>"


def shared_unknowns(summary: Summary) -> Section | None:
    """The section with the unknowns that the images share: value, sd and prior."""
    if not summary.get("globals"):
        return None
    priors = summary.get("priors") or {}
    lines = []
    for name, found in summary["globals"].items():
        unit = quantity(name)
        value, sd = with_sd(unit.factor * found["value"], unit.factor * found["sd"])
        shift = ""
        if "shift" in found:
            shift = with_sd(unit.factor * found["shift"], unit.factor * found["sd"])[0]
        cells = [value, sd, unit.unit, shift, _prior_of(name, priors)]
        lines.append(
            f'<tr data-name="{escape(name)}"><td class="text">{escape(unit.label)}</td>'
            + "".join(f"<td>{escape(cell)}</td>" for cell in cells[:2])
            + f'<td class="text">{escape(cells[2])}</td>'
            + "".join(f"<td>{escape(cell)}</td>" for cell in cells[3:])
            + "</tr>\n"
        )
    names = ("quantity", "value", "sd", "unit", "shift from the input", "prior")
    head = "".join(
        heading(name, attributes=' class="text"' if name in ("quantity", "unit") else "")
        for name in names
    )
    return Section(
        "shared",
        "Shared by all images",
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{''.join(lines)}</tbody></table>",
        "In a good run each sd is much smaller than that of the prior; ×÷ is one sd of a factor.",
    )


def _prior_of(name: str, priors: Mapping[str, Any]) -> str:
    unit = quantity(name)
    if name in _LOG_PRIORS and all(k in priors for k in _LOG_PRIORS[name]):
        median, sd = (priors[k] for k in _LOG_PRIORS[name])
        return f"{number(unit.factor * median)} ×÷ {math.exp(sd):.2g}"
    if name == "bandwidth" and "log_bandwidth_sd" in priors:
        return f"input ×÷ {math.exp(priors['log_bandwidth_sd']):.2g}"
    if name == "speckle_variance" and "speckle_variance_sd" in priors:
        return f"{number(priors[name])} ± {number(priors['speckle_variance_sd'])}"
    fall = re.match("(model_error|position_error)_fall", name)
    if fall and (key := f"{fall[0]}_sd_angstrom") in priors:
        return f"0 ± {number(priors[key])}"
    if name.startswith("position_error") and "position_error_px" in priors:
        sd = math.exp(priors.get("log_position_error_sd", 0))
        return f"{number(priors['position_error_px'])} px ×÷ {sd:.2g}"
    key = "distance_sd_mm" if name == "distance_mm" else "beam_center_sd_mm"
    if name in ("distance_mm", "beam_center_x_mm", "beam_center_y_mm") and key in priors:
        return f"input ± {number(priors[key])}"
    return ""


def _plain(value: Any) -> str:
    if isinstance(value, bool | str) or value is None:
        return str(value)
    return number(value, 6) if isinstance(value, int | float) else json.dumps(value)
