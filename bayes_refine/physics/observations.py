"""The data of the model of stills: statistics and geometry of spots, padded by image (JAX)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np

Array = jax.Array | np.ndarray

STATISTICS = ("intensity", "centroid_radial", "centroid_tangential", "spread", "plus", "cross")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Metadata:
    """Where on the detector each reflection is, and when its image was taken.

    Attributes:
        panel: (n, m) number of the panel. x_px, y_px: (n, m) predicted centre on the panel.
        x_mm, y_mm: (n, m) predicted centre in the lab frame, one frame for all panels.
        order: (n, 1) place of the image in its run, from 0 to 1.
    """

    panel: Array
    x_px: Array
    y_px: Array
    x_mm: Array
    y_mm: Array
    order: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sweeps:
    """Which frames are of one turning crystal: rows of images, as ``geometry.experiments.InSweep``.

    Attributes:
        member: (n, S). smooth, starts: (n, r). turned: (n, 3, 3).
    """

    member: Array
    smooth: Array
    starts: Array
    turned: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SpotStatistics:
    """The data of a model of stills: n images, each with up to m reflections, padded to m.

    Reflections are the last axis of every array, so that arithmetic on them is contiguous.  The
    current state is the state at which the images were predicted and measured.

    Attributes:
        fit: (n, m) bool, reflections that inform the fit (padding and the free set do not).
        statistics: (n, 6, m) frozen T_k; response (n, 6, 6, m); variance_background,
            variance_signal (n, 6, m); width, saturation (n, m): as ``Statistics``.
        template_moment: (n, 3, m) second moment of the template, Å⁻².
        intensity_reference: (n, m) polarisation × I_ref; reference_error: (n, m) its relative sd.
        norm_q (n, m): 1/d, Å⁻¹; sin_theta, cos_theta (n, m); e1, e2, s_hat (n, 3, m).
        q: (n, 3, m) A as indexed times h, Å⁻¹. excitation_error: (n, m) at the current state, Å⁻¹.
        detector_axes: (n, 2, 3, m) change of (ε_1, ε_2) at a fixed pixel, Å⁻¹ per mm of beam
            centre x, beam centre y and distance.
        azimuth: (n, 2, m) cos and sin of the angle from the panel's fast axis to e1.
        wavevector: (n, 1) 1/λ, Å⁻¹; bandwidth: rms fraction that the run is expected to have.
        strain_basis: (n, K, 3, 3) symmetric matrices that keep the crystal system;
        current_setting: (n, 3, 3) exp([ω]×)(1+E) at the current state;
        current_shift: (n, 3) shift of beam centre x, y and distance at the current state, mm.
        log_G0: ln of the run's first estimate of G.
        pixel_inv_angstrom: median size of a pixel in ε_t, Å⁻¹.
        metadata: places on the detector and order of images; None where no piece of the model
            depends on them.
        half_turn: (n, 3, m) path of a relp along ŝ, e1 and e2 in half of the exposure, while the
            crystal turns, Å⁻¹; None for stills.
        panel_group: (n, m) group of panels that a spot is on. panel_axes: (n, 2, 3, m) change of
            (ε_1, ε_2) at a fixed pixel, Å⁻¹ per px of the group's x and y and per mrad of its turn.
            current_panels: (n, g, 3) moves of the groups at the current state.  All three are None
            where panels stay in place.
        wavelength: (n, 1) Å as the files state, where the wavelength of each shot is an unknown;
            else None.
        log_pulse_energy: (n, 1) ln of the shot's energy over the run's median, NaN where unknown;
            None for a run without pulse energies.
        sweeps: frames of one turning crystal; None where each image has a crystal of its own.
    """

    fit: Array
    statistics: Array
    response: Array
    variance_background: Array
    variance_signal: Array
    width: Array
    saturation: Array
    template_moment: Array
    intensity_reference: Array
    reference_error: Array
    norm_q: Array
    sin_theta: Array
    cos_theta: Array
    e1: Array
    e2: Array
    s_hat: Array
    q: Array
    excitation_error: Array
    detector_axes: Array
    azimuth: Array
    wavevector: Array
    bandwidth: Array
    strain_basis: Array
    current_setting: Array
    current_shift: Array
    log_G0: Array
    pixel_inv_angstrom: Array
    metadata: Metadata | None = None
    half_turn: Array | None = None
    panel_group: Array | None = None
    panel_axes: Array | None = None
    current_panels: Array | None = None
    wavelength: Array | None = None
    log_pulse_energy: Array | None = None
    sweeps: Sweeps | None = None
