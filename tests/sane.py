"""What an experiment list and a table of observations must fulfil before a fit takes them."""

from __future__ import annotations

import numpy as np

from bayes_refine.geometry.detector import beam_frame, pixel_to_q, ray_to_pixel
from bayes_refine.geometry.experiments import Experiments
from bayes_refine.geometry.predict import candidate_indices, predict
from bayes_refine.io.unmerged import Unmerged
from bayes_refine.merging.merge import mergeable
from bayes_refine.merging.observations import prepare
from bayes_refine.util.errors import InputError


def check_experiments(experiments: Experiments) -> None:
    """What was read can be used: finite, of possible sizes, named once, without warnings."""
    names = [still.identifier for still in experiments.stills]
    assert len(set(names)) == len(names) > 0 and all(names)
    for still in experiments.stills:
        still.identifier.encode()
        assert still.identifier.isprintable() and still.frame >= 0
        beam, detector, crystal = still.beam, still.detector, still.crystal
        assert 1e-3 <= beam.wavelength <= 100 and 0 <= beam.polarization_fraction <= 1
        assert np.isfinite(crystal.A).all() and np.isfinite(crystal.cell.parameters).all()
        assert np.linalg.det(crystal.A) > 0 and np.isfinite(crystal.U).all()
        assert crystal.space_group is not None
        for name in ("origin_mm", "fast", "slow", "pixel_size_mm", "gain", "pedestal", "mu_per_mm"):
            assert np.isfinite(getattr(detector, name)).all(), name
        assert (detector.shape > 0).all() and (detector.gain > 0).all()
        assert not np.isnan(detector.trusted_range).any()
        frame = beam_frame(beam, detector)
        np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-9)
        panel = np.arange(detector.n_panels)
        centre = detector.shape[:, ::-1] / 2
        q = pixel_to_q(detector, beam, panel, centre)
        assert np.isfinite(q).all()
        s = beam.s0 + q
        found, xy = ray_to_pixel(detector, s / np.linalg.norm(s, axis=1, keepdims=True))
        assert np.isfinite(xy[found >= 0]).all()
        try:
            hkl = candidate_indices(crystal.cell, crystal.space_group, 8.0)
        except InputError:  # more than memory holds
            continue
        predicted = predict(still, hkl, 8.0, lambda d: 0 * d + 1e-3)
        assert np.isfinite(predicted.xy_px).all() and np.isfinite(predicted.polarisation).all()
        for panel_number, rectangles in enumerate(detector.untrusted):
            height, width = detector.shape[panel_number]
            assert all(
                0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height for x0, y0, x1, y1 in rectangles
            )


def check_unmerged(data: Unmerged, d_min: float = 0.0) -> Unmerged:
    """What of the data a merge is conditioned on: finite, of images numbered without gaps.

    Raises:
        InputError: the data cannot be merged.
    """
    found = mergeable(data, d_min)
    obs = prepare(found)
    for name in ("J", "sigma", "excitation_error", "norm_q", "log_G0", "log_Sigma0"):
        assert np.isfinite(np.asarray(getattr(obs, name))).all(), name
    assert (np.asarray(obs.sigma) > 0).all()
    assert len(np.unique(found.image)) == obs.n_images == found.image.max() + 1 > 1
    return found
