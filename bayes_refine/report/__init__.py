"""``report.html``: what a run did and how good it is, on one page that opens offline.

``fit_report`` writes the page from a fit, ``run_report`` from plain arrays, ``write_report`` from
sections of your own.  Sections without data are left out: a merge has no pixels and no geometry.
"""

from .charts import ObservedAndExpected
from .page import Section, chart, note, write_report
from .run import Content, fit_report, run_report

__all__ = [
    "Content",
    "ObservedAndExpected",
    "Section",
    "chart",
    "fit_report",
    "note",
    "run_report",
    "write_report",
]
