"""Tables of a fit: numbers that no draw bounds stay finite."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from bayes_refine.results import fit_tables


def test_a_scale_that_draws_do_not_bound_says_nothing(monkeypatch):
    batch = SimpleNamespace(
        images=slice(0, 1), predictions=range(4), where=SimpleNamespace(flat=np.asarray)
    )
    run = SimpleNamespace(batches=[batch], observed=SimpleNamespace(parts=[0.0]))
    scales = iter([[1.0, np.nan, 2.0, 1.0], [1.0, 1.0, np.inf, np.e]])
    monkeypatch.setattr(fit_tables, "of_batch", lambda run, draws, images: draws)
    monkeypatch.setattr(fit_tables.infer, "evaluate", lambda *_: {"scale": next(scales)})
    sd = fit_tables.scale_uncertainty(run, None, None, {"log_G": np.zeros(2)})
    unbounded = fit_tables.UNBOUNDED
    np.testing.assert_allclose(sd, [0.0, unbounded, unbounded, 0.5**0.5])
