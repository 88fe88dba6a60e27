"""``report.html``: what a run did and how good it is, on one page that needs nothing else.

``fit_report`` writes it from a fit, ``run_report`` from plain arrays (a merge has no pixels and
no geometry: sections without data are left out), ``write_report`` from sections of your own.
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
