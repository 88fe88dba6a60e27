"""Conditions that a run is to reach, such as ``"cc_half>0.5@2.0"``: read, check and forecast them.

    conditions = condition {"," condition}
    condition  = name (">" | "<") number ["@" resolution]

All conditions have to hold.  A resolution, in Å, stands for the shell that contains it; a condition
without a resolution is about all reflections together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..util.errors import InputError

# name in a condition: column of a shell table
NAMES = {
    "completeness": "completeness",
    "i_over_sigma": "mean_i_over_sigma",
    "cc_half": "cc_half",
    "multiplicity": "multiplicity",
    "r_split": "r_split",
    "cc_anom": "cc_anom",
}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
_CONDITION = re.compile(rf"\s*(\w+)\s*([<>])\s*({_NUMBER})\s*(?:@\s*({_NUMBER})\s*)?")

Row = Mapping[str, Any]  # of ``agreement.shell_table`` or of ``forecast.forecast``


@dataclass(frozen=True)
class Condition:
    """A limit that a number should pass, upwards or downwards, in the shell of a resolution ``d``
    (Å), or over all reflections (None)."""

    name: str
    above: bool
    limit: float
    d: float | None

    def __str__(self) -> str:
        at = "" if self.d is None else f"@{self.d:g}"
        return f"{self.name}{'>' if self.above else '<'}{self.limit:g}{at}"

    def row(self, table: Sequence[Row]) -> Row:
        """The row of a shell table that the condition is about.

        Raises:
            InputError: no shell has the resolution.
        """
        if self.d is None:
            return table[-1]
        for row in table[:-1]:
            if row["d_min"] <= self.d <= row["d_max"]:
                return row
        shells = table[:-1]
        raise InputError(
            f"--until {self}: no shell has {self.d:g} Å; they go from {shells[0]['d_max']:.2f} to "
            f"{shells[-1]['d_min']:.2f} Å"
        )

    def value(self, table: Sequence[Row]) -> float:
        """The number that the condition is about; NaN where the shell table lacks it."""
        value = self.row(table).get(NAMES[self.name])
        return math.nan if value is None else float(value)

    def holds(self, table: Sequence[Row]) -> bool:
        """Whether a shell table fulfils the condition."""
        return self._beyond(self.value(table))

    def _beyond(self, value: float) -> bool:
        return value > self.limit if self.above else value < self.limit

    def images(self, table: Sequence[Row], n_images: int, forecast: Sequence[Row]) -> str:
        """The number of images from which the condition will hold, by a forecast, in words."""
        name, row = NAMES[self.name], self.row(table)
        coming = [f for f in forecast if f["shell"] == row.get("shell") and name in f]
        if not coming:
            return "no forecast of this number"
        now = self.value(table)
        counts = np.array([n_images, *(f["images"] for f in coming)], float)
        sure, median, lucky = (
            _crossing(counts, [now, *(f[name][q] for f in coming)], self.limit, self.above)
            for q in ((0, 1, 2) if self.above else (2, 1, 0))
        )
        far = f"more than {counts[-1]:.0f}"
        if median is None:
            return f"{far} images" if lucky is None else f"{lucky:.0f} images or more"
        last = far if sure is None else f"{sure:.0f}"
        return f"about {median:.0f} images ({n_images if lucky is None else lucky:.0f} to {last})"


def _crossing(counts: np.ndarray, values: Sequence[Any], limit: float, above: bool) -> float | None:
    """The number of images, linear in its logarithm, where values first pass a limit, or None."""
    sign = 1 if above else -1
    found = np.array([math.nan if v is None else v for v in values], float)
    for k in range(1, len(found)):
        one, two = sign * (found[k - 1] - limit), sign * (found[k] - limit)
        if two > 0:
            if not one < 0:
                return float(counts[k - 1])
            share = one / (one - two)
            return float(counts[k - 1] * (counts[k] / counts[k - 1]) ** share)
    return None


def conditions_of(text: str) -> tuple[Condition, ...]:
    """The conditions that a text states.

    >>> str(conditions_of("cc_half>0.5@2.0")[0])
    'cc_half>0.5@2'

    Raises:
        InputError: a part of the text is no condition.
    """
    found = []
    for part in text.split(","):
        said = _CONDITION.fullmatch(part)
        if said is None or said[1] not in NAMES:
            raise InputError(
                f"--until {text!r}: cannot read {part.strip()!r}; write conditions such as "
                f"cc_half>0.5@2.0, with commas between them, of {', '.join(NAMES)}"
            )
        d = None if said[4] is None else float(said[4])
        if d is not None and not d > 0:
            raise InputError(f"--until {text!r}: a resolution is positive, in Å")
        found.append(Condition(said[1], said[2] == ">", float(said[3]), d))
    return tuple(found)
