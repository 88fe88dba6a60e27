"""The statistics of a shoebox against Monte-Carlo of Poisson pixels.

The spots are integrated over pixels with the error function, not with the library's template.
"""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from math import erf, sqrt

import numpy as np
import pytest

from bayes_refine.measuring.background import ring_background
from bayes_refine.measuring.shoebox import Boxes, cut_shoeboxes, shoebox_for_width
from bayes_refine.measuring.statistics import measure
from bayes_refine.measuring.template import template_and_gradient
from bayes_refine.measuring.weights import moment_weights, score_weights
from bayes_refine.physics.observations import STATISTICS

PIXEL = 1.1e-3  # Å⁻¹
SIZE = 21  # pixels along a panel's edge
R1 = 1.0  # px
BOX = shoebox_for_width(R1)
DRAWS = 10_000
MIDDLE = np.array([10.3, 9.8])
EDGE = np.array([2.6, 10.2])  # loses a side of its box, and of its ring
WEIGHTS = pytest.mark.parametrize("weights", [score_weights, moment_weights])


def share(centre, widths=(R1, R1)) -> np.ndarray:
    """(SIZE, SIZE) share of exp(−x²/R_x² − y²/R_y²) in each pixel, slow × fast."""
    edges = np.arange(SIZE + 1)
    along = [
        np.diff([0.5 * erf((e - c) / w) for e in edges])
        for c, w in zip(centre, widths, strict=True)
    ]
    return np.outer(along[1], along[0])


def round_template(n, centre=None):
    """Frame with e1 along x and e2 along y, and the second moment of a round spot."""
    frame = np.tile(np.eye(2) * PIXEL, (n, 1, 1))
    moment = np.tile([(R1 * PIXEL) ** 2 / 2] * 2 + [0.0], (n, 1))
    return frame, moment


def measured(images, mask, centre, expected, weights=score_weights, read_noise=0.0):
    """Statistics of one spot a panel, all with the same predicted centre."""
    n = len(images)
    boxes = cut_shoeboxes(
        images, mask, np.arange(n), np.tile(centre, (n, 1)), np.ones(n, bool), BOX
    )
    frame, moment = round_template(n)
    return measure(boxes, frame, moment, np.full(n, float(expected)), BOX, read_noise, weights)


def noiseless(share_of_J, J, background, centre, expected=None, weights=score_weights):
    images = (background + J * share_of_J)[None]
    expected = J if expected is None else expected
    return measured(images, np.ones(images.shape, bool), centre, expected, weights)


def holes() -> np.ndarray:
    """A mask with pixels missing in the spot, beside it and in the ring."""
    mask = np.ones((SIZE, SIZE), bool)
    for y, x in [(9, 11), (11, 8), (10, 13), (4, 10), (5, 5), (16, 12)]:
        mask[y, x] = False
    return mask


# -- the template -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "accuracy"), [(0.3, 0.02), (0.45, 1e-3), (0.6, 1e-3), (1.0, 1e-3), (2.0, 1e-3)]
)
def test_template_is_the_pixel_integral(width, accuracy):
    """As good as promised, wherever in the pixel the spot is; the sum over all pixels is 1."""
    offsets = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)), -1).reshape(-1, 2)
    centre = 10.0 + np.stack(np.meshgrid([-0.4, -0.2, 0.0], [0.0, 0.15, 0.45]), -1).reshape(-1, 2)
    n = len(centre)
    frame = np.tile(np.eye(2) * PIXEL, (n, 1, 1))
    moment = np.tile([1.0, 1.0, 0.0], (n, 1)) * (width * PIXEL) ** 2 / 2
    template, _, _ = template_and_gradient(
        centre, frame, moment, np.full(n, width * PIXEL), offsets
    )
    for i in range(n):  # offsets are of pixel centres
        expected = share(centre[i] + 0.5, (width, width)).ravel()
        np.testing.assert_allclose(template[i], expected, atol=accuracy * expected.max())
        assert float(template[i].sum()) == pytest.approx(1, abs=2 * accuracy)


def test_template_of_a_sheared_frame_and_an_oblique_spot():
    """Against a sum over 60 × 60 points a pixel."""
    offsets = np.stack(np.meshgrid(np.arange(-6, 7), np.arange(-6, 7)), -1).reshape(-1, 2)
    frame = np.array([[[0.9, 0.5], [-0.4, 1.2]]]) * PIXEL
    M = np.array([[0.8, 0.3], [0.3, 1.4]]) * PIXEL**2
    centre = np.array([[0.2, -0.3]])
    moment = np.array([[M[0, 0], M[1, 1], M[0, 1]]])
    rho = np.sqrt(np.trace(M))[None]
    template, _, moments = template_and_gradient(centre, frame, moment, rho, offsets)
    fine = (np.arange(60) + 0.5) / 60 - 0.5
    inside = np.stack(np.meshgrid(fine, fine), -1).reshape(-1, 2)
    epsilon = (offsets[:, None] + inside - centre[0]) @ frame[0].T
    density = np.exp(-0.5 * np.einsum("kpi,ij,kpj->kp", epsilon, np.linalg.inv(M), epsilon))
    density *= np.linalg.det(frame[0]) / (2 * np.pi * np.sqrt(np.linalg.det(M)))
    expected = density.mean(axis=1)
    np.testing.assert_allclose(template[0], expected, atol=1e-4 * expected.max())
    at = (offsets - centre[0]) @ frame[0].T / rho
    plain = [at[:, 0], at[:, 1], (at**2).sum(1) / 2, (at[:, 0] ** 2 - at[:, 1] ** 2) / 2]
    np.testing.assert_allclose(moments[0], [*plain, at[:, 0] * at[:, 1]], atol=1e-12)


def test_gradient_is_the_slope_of_the_pixel_integral():
    """Central differences of the error-function integral along the centre and both widths;
    the cross term along a rotation by 45° of the plus term: it is ∂²P/∂x∂y (heat equation)."""
    offsets = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)), -1).reshape(-1, 2)
    frame, moment = round_template(1)
    rho = np.array([R1 * PIXEL])
    _, gradient, _ = template_and_gradient(MIDDLE[None] - 0.5, frame, moment, rho, offsets)
    h = 1e-3

    def slope(of):
        return ((of(h) - of(-h)) / (2 * h)).ravel()

    def moved(dx, dy):
        return share(MIDDLE + np.array([dx, dy]))

    def wider(m1, m2):  # M in units of ρ² from ½: width √(2M)
        return share(MIDDLE, (R1 * sqrt(1 + 2 * m1), R1 * sqrt(1 + 2 * m2)))

    cross = (moved(h, h) - moved(h, -h) - moved(-h, h) + moved(-h, -h)) / (4 * h * h)
    expected = [
        slope(lambda e: moved(e * R1, 0)),
        slope(lambda e: moved(0, e * R1)),
        slope(lambda e: wider(e, e)),
        slope(lambda e: wider(e, -e)),
        cross.ravel(),
    ]
    for k in range(5):
        np.testing.assert_allclose(
            gradient[0, k], expected[k], atol=2e-3 * np.abs(expected[k]).max(), err_msg=str(k)
        )


# -- shoeboxes --------------------------------------------------------------------------------


def test_pixels_of_a_shoebox():
    """Signal within the radius of the predicted centre, ring beyond; what is masked is out."""
    y, x = np.indices((SIZE, SIZE))
    images = (100.0 * y + x)[None]
    mask = holes()[None]
    boxes = cut_shoeboxes(images, mask, np.zeros(1, int), MIDDLE[None], np.ones(1, bool), BOX)
    r = np.hypot(x + 0.5 - MIDDLE[0], y + 0.5 - MIDDLE[1])
    signal = np.sort(images[0][(r < BOX.signal_radius) & mask[0]])
    np.testing.assert_array_equal(np.sort(boxes.signal[boxes.usable]), signal)
    ring = images[0][(r >= BOX.ring_inner) & (r <= BOX.ring_outer) & mask[0]]
    np.testing.assert_array_equal(np.sort(boxes.ring[np.isfinite(boxes.ring)]), np.sort(ring))
    np.testing.assert_allclose(boxes.centre, [MIDDLE - np.floor(MIDDLE) - 0.5])
    assert len(ring) > 80 and not boxes.contested.any()


def test_contested_pixels():
    """Two spots six pixels apart: what both may claim is neither's; nobody's wing in a ring."""
    at = np.array([[7.5, 10.5], [12.5, 10.5]])
    image = np.random.default_rng(0).poisson(5.0, (1, SIZE, SIZE)).astype(float)
    y, x = np.indices((SIZE, SIZE)) + 0.5
    near = [np.hypot(x - a, y - b) < BOX.signal_radius for a, b in at]

    def cut(claimed):
        return cut_shoeboxes(
            image, np.ones(image.shape, bool), np.zeros(2, int), at, np.array(claimed), BOX
        )

    both, shared = cut([True, True]), near[0] & near[1]
    for i in range(2):
        assert both.contested[i].sum() == shared.sum() > 0
        assert both.usable[i].sum() == (near[i] & ~shared).sum()
        r = np.hypot(x - at[i, 0], y - at[i, 1])
        ring = (r >= BOX.ring_inner) & (r <= BOX.ring_outer) & ~near[1 - i]
        assert np.isfinite(both.ring[i]).sum() == ring.sum()
    first = cut([True, False])  # the second is far from the sphere: it spoils nothing
    assert first.usable[0].sum() == near[0].sum() and not first.contested[0].any()
    assert first.contested[1].sum() == shared.sum()
    nobody = cut([False, False])
    assert not nobody.contested.any()

    frame, moment = round_template(2)
    statistics = measure(both, frame, moment, np.full(2, 50.0), BOX)
    for i in range(2):
        expected = share(at[i])[shared].sum(), share(at[i])[near[i] & ~shared].sum()
        assert statistics.contested[i] == pytest.approx(expected[0], abs=1e-3)
        assert statistics.covered[i] == pytest.approx(expected[1], abs=1e-3)


def test_a_larger_box_takes_nothing_from_a_neighbour():
    """What a bright spot may claim is its own size, not that of the box it is measured in."""
    at = np.array([[6.5, 10.5], [14.5, 10.5]])
    image = np.zeros((1, SIZE, SIZE))
    larger = replace(BOX, signal_radius=BOX.signal_radius + 2)
    valid, panel, bright = np.ones(image.shape, bool), np.zeros(2, int), np.ones(2, bool)
    plain = cut_shoeboxes(image, valid, panel, at, bright, BOX)
    wide = cut_shoeboxes(image, valid, panel, at, bright, larger)
    assert not plain.contested.any()
    own = np.hypot(*larger.signal_offsets.T) < BOX.signal_radius  # spots centred on a pixel
    assert wide.usable[:, own].all()
    assert (wide.usable.sum(1) > plain.usable.sum(1)).all()


# -- Monte-Carlo of mean and variance -----------------------------------------------------------


CASES = {
    "strong": dict(J=1000.0, background=3.0, centre=MIDDLE, mask=None),
    "weak": dict(J=20.0, background=3.0, centre=MIDDLE, mask=None),
    "strong, edge": dict(J=1000.0, background=3.0, centre=EDGE, mask=None),
    "weak, holes": dict(J=20.0, background=3.0, centre=MIDDLE, mask=holes()),
    "strong, holes": dict(J=1000.0, background=30.0, centre=MIDDLE, mask=holes()),
}


def poisson_run(J, background, centre, mask, weights, expected=None, seed=1, **spot):
    """Statistics of many Poisson images of a spot of J photons."""
    rng = np.random.default_rng(seed)
    images = rng.poisson(background + J * share(spot.get("at", centre)), (DRAWS, SIZE, SIZE))
    mask = np.ones((SIZE, SIZE), bool) if mask is None else mask
    images = np.where(mask, images, 40_000).astype(float)  # what is masked is junk
    every = np.broadcast_to(mask, images.shape)
    return measured(images, every, centre, J if expected is None else expected, weights)


@cache
def case_run(case, weights):
    return poisson_run(**CASES[case], weights=weights)


def assert_mean_and_variance(statistics, J, deviation=None):
    """Mean J·(r_0 + r·η) and variance V_bg + J·V_sig within 5 standard errors (60 numbers in
    all: one in 10⁵ false alarms).  The error of a variance comes from the fourth moment."""
    deviation = np.r_[1.0, np.zeros(5) if deviation is None else deviation]
    excess = statistics.value - J * statistics.response @ deviation
    expected = np.mean(statistics.variance_background + J * statistics.variance_signal, axis=0)
    variance = np.var(excess, axis=0)
    fourth = np.mean((excess - excess.mean(axis=0)) ** 4, axis=0)
    error = np.sqrt((fourth - variance**2) / DRAWS)
    pull = np.mean(excess, axis=0) / np.sqrt(variance / DRAWS)
    for k, name in enumerate(STATISTICS):
        assert abs(pull[k]) < 5, (name, pull)
        assert abs(variance[k] - expected[k]) < 5 * error[k], (name, variance / expected)
    return excess


@WEIGHTS
@pytest.mark.parametrize("case", CASES)
def test_mean_and_variance(case, weights):
    assert_mean_and_variance(case_run(case, weights), CASES[case]["J"])


@WEIGHTS
@pytest.mark.parametrize(("J", "expected"), [(200.0, 20.0), (5.0, 200.0)])
def test_mean_and_variance_where_the_weights_expected_something_else(weights, J, expected):
    """The weights are frozen, so mean and variance stay linear in the J that is true."""
    statistics = poisson_run(J, 3.0, MIDDLE, None, weights, expected=expected)
    assert_mean_and_variance(statistics, J)


def known_background(J, background, weights):
    """As :func:`poisson_run` in the middle, but the ring holds the background without noise."""
    rng = np.random.default_rng(3)
    images = rng.poisson(background + J * share(MIDDLE), (DRAWS, SIZE, SIZE)).astype(float)
    at, n = np.tile(MIDDLE, (DRAWS, 1)), DRAWS
    mask = np.ones(images.shape, bool)
    boxes = cut_shoeboxes(images, mask, np.arange(n), at, np.ones(n, bool), BOX)
    boxes = boxes._replace(ring=np.where(np.isfinite(boxes.ring), background, np.nan))
    return measure(boxes, *round_template(n), np.full(n, J), BOX, 0.0, weights)


@WEIGHTS
@pytest.mark.parametrize("J", [20.0, 1000.0])
def test_total_and_spread_share_no_noise(weights, J):
    """Given the background they are uncorrelated: 3 standard errors of a correlation, 1/√N."""
    value = known_background(J, 3.0, weights).value
    assert abs(np.corrcoef(value[:, 0], value[:, 3])[0, 1]) < 3 / sqrt(DRAWS)
    if weights is score_weights:  # all six
        off = np.corrcoef(value.T) - np.eye(6)
        assert np.abs(off).max() < 4.5 / sqrt(DRAWS)  # the largest of fifteen


@WEIGHTS
def test_what_the_background_s_error_correlates(weights):
    """The error of Bg is common to all: Cov(T_k, T_l) = Σa_k Σa_l Var(Bg), some 5–10 %."""
    statistics = case_run("weak", weights)
    found = np.corrcoef(statistics.value.T)[0, 3]
    # the weights, once more, in double precision
    frame, moment = round_template(1)
    y, x = np.indices((SIZE, SIZE))
    offsets = np.stack([x.ravel(), y.ravel()], 1)
    near = np.hypot(*(offsets + 0.5 - MIDDLE).T) < BOX.signal_radius
    parts = template_and_gradient(
        MIDDLE[None] - 0.5, frame * 1e3, moment * 1e6, np.array([R1 * PIXEL * 1e3]), offsets[near]
    )
    variance = 3.0 + 20.0 * parts[0]
    a = np.asarray(weights(*parts, variance))[0]
    ring = np.hypot(x + 0.5 - MIDDLE[0], y + 0.5 - MIDDLE[1])
    count = np.sum((ring >= BOX.ring_inner) & (ring <= BOX.ring_outer))
    sums = a.sum(axis=1)
    covariance = (a * np.asarray(variance)) @ a.T + np.outer(sums, sums) * 3.0 / count
    expected = covariance[0, 3] / np.sqrt(covariance[0, 0] * covariance[3, 3])
    assert 0.02 < expected < 0.15
    assert found == pytest.approx(expected, abs=4 / sqrt(DRAWS))


def test_score_centroids_are_the_sharper_ones():
    """sd of the displacement T/(J·r), in px, against the Cramér–Rao bound of the pixels.

    On a background of 3 the plain moment weighs noise far from the centre.
    """
    sd = {}
    for weights in (score_weights, moment_weights):
        for case in ("weak", "strong"):
            s = case_run(case, weights)
            for k in (1, 2):
                estimate = s.value[:, k] / (CASES[case]["J"] * s.response[:, k, k])
                sd[weights, case, k] = np.std(estimate) * R1
    for k in (1, 2):
        assert sd[score_weights, "weak", k] < 0.8 * sd[moment_weights, "weak", k]
        # at most equal where photons are plenty; 1 % is a standard error of each sd
        assert sd[score_weights, "strong", k] < 1.02 * sd[moment_weights, "strong", k]
    for case in ("weak", "strong"):
        J, v = CASES[case]["J"], CASES[case]["background"] + CASES[case]["J"] * share(MIDDLE)
        h = 1e-3
        for k, step in ((1, [h, 0]), (2, [0, h])):
            slope = J * (share(MIDDLE + step) - share(MIDDLE - np.array(step))) / (2 * h)
            bound = np.sum(slope**2 / v) ** -0.5
            assert sd[score_weights, case, k] == pytest.approx(bound, rel=0.06)


# -- what the spot did --------------------------------------------------------------------------


def truth(deviation) -> np.ndarray:
    """(SIZE, SIZE) spot displaced by (η_1, η_2)ρ, its second moments changed by η_3 ± η_4."""
    widths = (
        sqrt(1 + 2 * (deviation[2] + deviation[3])),
        sqrt(1 + 2 * (deviation[2] - deviation[3])),
    )
    return share(MIDDLE + R1 * np.array(deviation[:2]), R1 * np.array(widths))


@WEIGHTS
@pytest.mark.parametrize("direction", range(4))
def test_response_is_the_first_order(weights, direction):
    """Without noise T = J(r_0 + r·η) up to η²: a halved η leaves a quarter of the error.

    Along the centre ±η are averaged over sign, which leaves odd orders: an eighth.
    """
    J, error = 500.0, []
    for size in (0.2, 0.1):
        deviation = np.zeros(5)
        deviation[direction] = size
        s = noiseless(truth(deviation), J, 4.0, MIDDLE, weights=weights)
        here = noiseless(share(MIDDLE), J, 4.0, MIDDLE, weights=weights)
        change = (s.value - here.value)[0] / J
        linear = s.response[0, :, 1 + direction] * size
        scale = s.response[0, 1 + direction, 1 + direction]  # how the statistic itself responds
        error.append((change - linear)[1 + direction] / scale)
        # 0.2 of a width moves a Gaussian's score by second orders of η²/2 to η² and more
        assert abs(error[-1]) < 1.5 * size**2
    assert abs(error[1]) < 0.35 * abs(error[0]) + 1e-4


@WEIGHTS
def test_displaced_and_broadened_in_poisson_noise(weights):
    """Displaced by 0.06 ρ, J = 20: within the noise the response is linear."""
    deviation = np.array([0.06, -0.03, 0, 0, 0])
    at = MIDDLE + R1 * deviation[:2]
    statistics = poisson_run(20.0, 3.0, MIDDLE, None, weights, at=at)
    assert_mean_and_variance(statistics, 20.0, deviation)
    pull = statistics.value[:, 1].mean() / (statistics.value[:, 1].std() / sqrt(DRAWS))
    assert pull > 5  # and it would be seen if it were not


# -- background ---------------------------------------------------------------------------------


@pytest.mark.parametrize("background", [3.0, 30.0])
def test_clipping_leaves_the_mean_alone(background):
    """Unbiased within 1 % by 10⁴ rings of 160 pixels: their own mean is good to 0.05 %."""
    rng = np.random.default_rng(7)
    ring = rng.poisson(background, (DRAWS, 160)).astype(float)
    mean, kept, pixel = (np.asarray(x) for x in ring_background(ring, np.median(ring, axis=1), 0.0))
    assert mean.mean() == pytest.approx(background, rel=0.01)
    assert pixel.mean() == pytest.approx(background, rel=0.01)
    pulls = (mean - background) / np.sqrt(pixel / kept.sum(axis=1))
    assert pulls.std() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("background", [3.0, 30.0])
def test_a_neighbour_in_the_ring_is_clipped(background):
    """300 photons of a spot nobody claimed, 1.9 a pixel of the ring, are clipped.

    What stays is what hides in single pixels, below 3.5 sd + 1: the bound on the bias.
    """
    rng = np.random.default_rng(8)
    spot = 300 * share([10.5, 10.5])[6:15, 6:15].ravel()
    expected = np.full((2000, 160), background)
    expected[:, : len(spot)] += spot
    ring = rng.poisson(expected).astype(float)
    mean, _, _ = ring_background(ring, np.median(ring, axis=1), 0.0)
    assert ring.mean() - background == pytest.approx(300 / 160, rel=0.05)
    hidden = spot[spot < 3.5 * sqrt(background) + 1].sum() / 160
    assert -0.01 * background < float(mean.mean()) - background < hidden + 0.01 * background
    assert hidden < 0.3 * 300 / 160


@pytest.mark.parametrize("edge", [False, True])
def test_a_background_that_falls_across_the_box_moves_nothing(edge):
    """2 % a pixel: under a constant background it shifts the centroid by many standard errors.

    With half of the ring off the panel too, where its mean is not the background of the spot.
    """
    rng = np.random.default_rng(11)
    y, x = np.indices((SIZE, SIZE)) + 0.5
    J, slope = 60.0, np.array([0.4, -0.2])
    background = 20 + (x - MIDDLE[0]) * slope[0] + (y - MIDDLE[1]) * slope[1]
    images = rng.poisson(background + J * share(MIDDLE), (DRAWS, SIZE, SIZE)).astype(float)
    valid = np.ones((SIZE, SIZE), bool)
    if edge:
        valid[:, int(MIDDLE[0]) + 5 :] = False
    s = measured(images, np.broadcast_to(valid, images.shape), MIDDLE, J)
    assert_mean_and_variance(s, J)
    # pixels are clipped about the mean, not about the plane: 1 % of the slope
    np.testing.assert_allclose(s.slope.mean(axis=0), slope, atol=0.02 * np.abs(slope).max())
    assert s.background.mean() == pytest.approx(20, rel=0.005)


def test_a_ring_of_too_few_pixels():
    """Fewer than ten: no background, and the spot counts as not covered."""
    mask = np.zeros((SIZE, SIZE), bool)
    y, x = np.indices((SIZE, SIZE)) + 0.5
    r = np.hypot(x - MIDDLE[0], y - MIDDLE[1])
    mask[r < BOX.signal_radius] = True
    statistics = measured(np.full((1, SIZE, SIZE), 4.0), mask[None], MIDDLE, 10.0)
    assert statistics.covered[0] == 0 and np.isinf(statistics.background_variance[0])
    assert np.isfinite(statistics.value).all()


# -- variances are expected ones ----------------------------------------------------------------


def test_variances_do_not_look_at_the_spot():
    """Same ring, another draw of the spot, or no spot at all: same variance and response."""
    rng = np.random.default_rng(9)
    images = rng.poisson(3.0 + 1000 * share(MIDDLE), (3, SIZE, SIZE)).astype(float)
    y, x = np.indices((SIZE, SIZE)) + 0.5
    near = np.hypot(x - MIDDLE[0], y - MIDDLE[1]) < BOX.signal_radius
    images[:, ~near] = images[0, ~near]
    images[2, near] = 3.0
    s = measured(images, np.ones(images.shape, bool), MIDDLE, 1000.0)
    for name in ("variance_background", "variance_signal", "response", "background"):
        values = getattr(s, name)
        np.testing.assert_array_equal(values[1:], np.broadcast_to(values[0], values[1:].shape))
    assert abs(s.value[0, 0] - s.value[1, 0]) > 1  # the draws do differ
    # 1000 photons that did not come: σ² ≈ J(1 + a little background), 30 σ of evidence
    sigma = np.sqrt(s.variance_background[2, 0] + 1000 * s.variance_signal[2, 0])
    assert 31 < sigma < 36
    assert (s.value[2, 0] - 1000 * s.response[2, 0, 0]) / sigma < -27


def test_a_spike_where_little_is_expected_is_improbable():
    """500 photons on two pixels, which could be a spot, are many σ with J_model = 5, not a spot
    with a wide error."""
    image = np.full((1, SIZE, SIZE), 3.0)
    image[0, 9, 10:12] += 250
    s = measured(image, np.ones(image.shape, bool), MIDDLE, 5.0)
    sigma = np.sqrt(s.variance_background[0, 0] + 5 * s.variance_signal[0, 0])
    assert sigma < 8 and (s.value[0, 0] - 5) / sigma > 20


@WEIGHTS
def test_read_noise(weights):
    """Photons after a gain of 4 counts, read noise of 8 counts: 2 photons rms a pixel."""
    rng = np.random.default_rng(10)
    gain, J, background = 4.0, 60.0, 3.0
    counts = gain * rng.poisson(background + J * share(MIDDLE), (DRAWS, SIZE, SIZE))
    photons = (counts + 8.0 * rng.standard_normal(counts.shape)) / gain
    every = np.ones(photons.shape, bool)
    with_it = measured(photons, every, MIDDLE, J, weights, read_noise=2.0)
    assert_mean_and_variance(with_it, J)
    assert with_it.background.mean() == pytest.approx(background, rel=0.01)
    # left out it is missed: the same check fails
    with pytest.raises(AssertionError):
        assert_mean_and_variance(measured(photons, every, MIDDLE, J, weights), J)


def test_no_ring_no_spot_no_crash():
    """A wholly masked shoebox gives finite numbers and counts as uncovered."""
    image = np.full((1, SIZE, SIZE), 7.0)
    s = measured(image, np.zeros(image.shape, bool), MIDDLE, 50.0)
    assert s.covered[0] == 0 and s.value[0, 0] == 0
    for name in ("value", "response", "variance_background", "variance_signal"):
        assert np.isfinite(getattr(s, name)).all(), name


def test_more_shoeboxes_than_a_chunk_keep_their_order():
    """1024 shoeboxes go at a time; each must come back as it does alone."""
    rng = np.random.default_rng(11)
    n = 1030
    boxes = Boxes(
        centre=rng.uniform(-0.5, 0.5, (n, 2)),
        signal=rng.poisson(9.0, (n, len(BOX.signal_offsets))).astype(float),
        usable=rng.random((n, len(BOX.signal_offsets))) < 0.9,
        contested=np.zeros((n, len(BOX.signal_offsets)), bool),
        ring=rng.poisson(4.0, (n, len(BOX.ring_offsets))).astype(float),
    )
    frame, moment = round_template(n)
    expected = rng.exponential(50, n)
    together = measure(boxes, frame, moment, expected, BOX)
    last = [1023, 1024, 1029]
    alone = measure(
        Boxes(*(a[last] for a in boxes)), frame[last], moment[last], expected[last], BOX
    )
    np.testing.assert_allclose(together.value[last], alone.value, rtol=1e-5, atol=1e-4)
    assert len(together.value) == n


@pytest.mark.parametrize("width", [0.25, 0.5, 1.0])
def test_a_spot_of_which_next_to_nothing_is_seen_is_not_measured(width):
    """Pixels at the box's edge alone are usable: 1e-5 to 1e-90 of the spot is there."""
    mask = np.ones((SIZE, SIZE), bool)
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    away = np.hypot(x - MIDDLE[0], y - MIDDLE[1])
    mask[away < BOX.signal_radius - 0.5] = False
    images = np.full((1, SIZE, SIZE), 3.0)
    boxes = cut_shoeboxes(images, mask[None], np.zeros(1, int), MIDDLE[None], np.ones(1, bool), BOX)
    frame, moment = round_template(1)
    s = measure(boxes, frame, width**2 * moment, np.full(1, 1e6), BOX)
    assert s.covered == 0 and np.all(s.variance_background == 1)
    assert np.all(s.value == 0) and np.all(s.response == 0)
    for f in fields(s):
        assert np.isfinite(getattr(s, f.name)).all(), f.name
