"""The status of an image: a kind that programs count and a detail that people read."""

from __future__ import annotations

from enum import StrEnum

import numpy as np


class Kind(StrEnum):
    """The kind of an image's status, as ``images.csv`` and ``summary.json`` name it.

    Only images whose kind is :attr:`usable` inform the result and enter the files of intensities.
    """

    CONVERGED = "converged"
    NOT_CONVERGED = "not converged"
    NOT_READ = "not read"
    LOST = "lost"
    TOO_FEW = "too few reflections"
    NO_SIGNAL = "no signal"
    NOT_FINITE = "not finite"
    NO_MAXIMUM = "no maximum"
    DOUBTFUL = "doubtful"

    @property
    def usable(self) -> bool:
        """Whether the image has a posterior that tells something about the crystal."""
        return self in (Kind.CONVERGED, Kind.NOT_CONVERGED)

    @property
    def meaning(self) -> str:
        """One sentence for a person."""
        return _MEANING[self]


_MEANING = {
    Kind.CONVERGED: "The search for the image's posterior mode ended there.",
    Kind.NOT_CONVERGED: "The search was still on its way to the mode when it stopped.",
    Kind.NOT_READ: "The file of the image is absent, damaged or of another shape.",
    Kind.LOST: "The image's batch ended three worker processes one after the other.",
    Kind.TOO_FEW: "No reflection of the image could be measured and compared with a reference.",
    Kind.NO_SIGNAL: "The image's photons are no evidence that a crystal diffracted at all.",
    Kind.NOT_FINITE: "The image's numbers overflowed, or are not numbers.",
    Kind.NO_MAXIMUM: "The density has no maximum in the image's unknowns.",
    Kind.DOUBTFUL: "The image agrees with its indexing no better than a wrong indexing would.",
}


class Status(str):
    """A kind with a detail; its text is ``kind`` or ``kind (detail)``.

    A status equals its text, so that tables compare and write it like any other string.

    >>> Status(Kind.TOO_FEW, "3")
    'too few reflections (3)'
    """

    kind: Kind
    detail: str

    def __new__(cls, kind: Kind, detail: str = "") -> Status:
        self = super().__new__(cls, f"{kind} ({detail})" if detail else str(kind))
        self.kind, self.detail = kind, detail
        return self

    def __getnewargs__(self) -> tuple[Kind, str]:  # type: ignore[override]
        return self.kind, self.detail

    @classmethod
    def parse(cls, text: str) -> Status:
        """The status that a table's text stands for.

        Raises:
            ValueError: the text begins with no kind.
        """
        for kind in Kind:
            if text == kind:
                return cls(kind)
            if text.startswith(f"{kind} (") and text.endswith(")"):
                return cls(kind, text[len(kind) + 2 : -1])
        raise ValueError(f"no status of an image: {text!r}")


def usable(status: np.ndarray) -> np.ndarray:
    """(n,) bool: whether each of n statuses, or of their texts, is of a usable image."""
    return np.array([Status.parse(str(s)).kind.usable for s in status], bool)


def settled(converged: np.ndarray) -> np.ndarray:
    """(n,) statuses of searches that reached the mode or did not, (n,) bool."""
    kinds = (Status(Kind.NOT_CONVERGED), Status(Kind.CONVERGED))
    return np.array([kinds[int(x)] for x in converged], object)
