"""Colours and settings that all pictures share."""

from __future__ import annotations

from typing import Any

BLUE, RED, ORANGE, GREY = "#1f5fa8", "#c8382c", "#e07a1f", "0.55"
SHELLS = ("#1b4f8f", "#2a9d8f", ORANGE)  # low to high resolution
STYLE: Any = {
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titley": 1.0,  # else the labels of all axes with a title are laid out twice
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.markersize": 3.5,
}
