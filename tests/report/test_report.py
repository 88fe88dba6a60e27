"""The report: complete, self-contained, true to the numbers, and there whatever is missing."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from bayes_refine import infer, report
from bayes_refine.fitting.tables import image_table
from bayes_refine.report import charts, drawing, glance, images, page, sections
from bayes_refine.report.images import failed
from bayes_refine.util.errors import InputError

ALL = (
    "headline run shared images intensities residuals shoeboxes agreement calibration posterior"
).split()
CHARTS = (
    "across-G across-B across-R1 across-rot_x_mrad across-mosaic_image_mrad across-cc_model "
    "observed-expected partiality by-resolution by-image by-detector displacements predictions "
    "gallery "
    "agreement-chart pulls probability pull-width pairs couplings"
).split()
VOID = {"meta", "input", "br", "img", "link", "hr"}


class Page(HTMLParser):
    """What a test asks of a page: sections, figures, tables by id, cards, text, addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: list[str] = []
        self.figures: dict[str, dict[str, str | None]] = {}
        self.tables: dict[str, list[list[tuple[dict, str]]]] = {}
        self.rows: list[dict] = []
        self.cards: dict[str, str] = {}
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.stray: list[str] = []
        self._table = ""
        self._key = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "section":
            self.sections.append(values["id"])
        elif tag == "figure":
            self.figures[values["id"]] = values
        elif tag == "table":
            self._table = values.get("id", f"table-{len(self.tables)}")
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append([])
            if self._table == "image-table":
                self.rows.append(values)
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append((values, ""))
        self.addresses += [
            v for k, v in attrs if k in ("src", "href", "xlink:href", "action") and v
        ]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.stray.append(tag)

    def handle_data(self, data):
        if not self.open:
            return
        if self.open[-1] == "dt":
            self._key = data
        elif "dd" in self.open and self._key and self.open[-1] == "dd":
            self.cards.setdefault(self._key, data.strip())
        if ("td" in self.open or "th" in self.open) and self.tables[self._table][-1]:
            values, text = self.tables[self._table][-1][-1]
            self.tables[self._table][-1][-1] = (values, text + data)


@pytest.fixture(scope="module")
def fitted(small_run, tmp_path_factory):
    """The report of the small run: (text, page, arguments of ``write_results``, summary)."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    run, reader = (small_run.given[name] for name in ("run", "reader"))
    summary = json.loads((small_run.out / "summary.json").read_text())
    draws = infer.laplace_draws(run.fit, 40, rng=np.random.default_rng(0))
    report.fit_report(path, run, summary, draws, reader)
    text = path.read_text(encoding="utf-8")
    return text, Page(text), run, summary


def test_everything_is_there(fitted):
    text, found, _, _ = fitted
    assert found.sections == ALL
    assert set(found.figures) == set(CHARTS)
    assert "could not be drawn" not in text
    assert not found.stray and not found.open  # every tag closed, in order
    assert len(set(found.ids)) == len(found.ids)
    assert len(text) < 1.5e6


def test_nothing_comes_from_elsewhere(fitted):
    text, found, _, _ = fitted
    outside = [a for a in found.addresses if not a.startswith(("#", "data:image/png;base64,"))]
    assert not outside
    assert "http" not in re.sub(r"http-equiv", "", text)  # nor in styles and scripts
    assert "default-src 'none'" in text  # and the browser is told so
    anchors = {a[1:] for a in found.addresses if a.startswith("#")}
    assert anchors <= set(found.ids)


def test_a_row_an_image_those_that_failed_first(fitted):
    _, found, run, _ = fitted
    _, *rows = found.tables["image-table"]
    assert [int(row[0][1]) for row in rows] == [4, 5, 6, 7, 0, 1, 2, 3]
    said = [*run.status, *(status for _, status in run.unread)]
    why = {row["data-image"]: row["data-status"] for row in found.rows[1:]}
    assert why == {str(i): status for i, status in enumerate(said)}
    told = {int(row[0][1]): row[2][1] for row in found.tables["failures"]}
    assert told == {i: said[i] for i in range(4, 8)}
    assert [row["class"] for row in found.rows[1:5]] == ["bad"] * 4


def test_numbers_of_the_images(fitted):
    _, found, run, _ = fitted
    head, *rows = found.tables["image-table"]
    column = {values.get("data-name"): k for k, (values, _) in enumerate(head)}
    table = image_table(run)
    for name, factor in (("G", 1), ("B", 1), ("R1", 1e3), ("rot_y_mrad", 1), ("cc_model", 1)):
        shown = {int(r[0][1]): r[column[name]][0]["data-v"] for r in rows}
        for i in range(4):
            assert float(shown[i]) == pytest.approx(factor * table[name][i], rel=1e-6)
        assert {shown[i] for i in range(4, 8)} == {""}  # sorted last
    text = dict((int(r[0][1]), r[column["B"]][1]) for r in rows)[0]
    value, sd = (float(x) for x in text.split(" ± "))
    assert value == pytest.approx(table["B"][0], abs=0.05)
    assert sd == pytest.approx(table["B_sd"][0], abs=0.005)
    assert head[column["B"]][0]["data-unit"] == "Å²"


def test_numbers_of_the_run(fitted):
    _, found, _, summary = fitted
    overall = summary["agreement"][-1]
    assert found.cards["images used"] == str(summary["counts"]["images_used"])
    assert float(found.cards["CC½"]) == pytest.approx(overall["cc_half"], abs=5e-4)
    assert float(found.cards["CC_free"]) == pytest.approx(overall["cc_free"], abs=5e-4)
    assert float(found.cards["R_split"]) == pytest.approx(100 * overall["r_split"], abs=0.05)
    distance = summary["globals"]["distance_mm"]
    assert float(found.cards["distance"]) == pytest.approx(distance["value"], abs=distance["sd"])
    shells = next(t for t in found.tables.values() if t[0][0][1].startswith("shell"))
    assert len(shells) - 1 == len(summary["agreement"])
    labels = [text for _, text in shells[0]]
    for row, expected in zip(shells[1:], summary["agreement"], strict=True):
        assert int(row[labels.index("unique")][1]) == expected["n_unique"]
        if expected["cc_ref"] is not None:
            shown = float(row[labels.index("CC_ref")][1].replace("−", "-"))
            assert shown == pytest.approx(expected["cc_ref"], abs=6e-4)


def test_a_point_an_image_to_hover_over(fitted):
    text, found, _, _ = fitted
    assert json.loads(found.figures["across-G"]["data-images"]) == [0, 1, 2, 3]
    group = text[text.index('id="images-G"') :]
    assert group[: group.index("</g>\n</g>")].count("<use") == 4


def test_what_stands_out(fitted):
    _, _, run, summary = fitted
    lines = glance.attention(summary, image_table(run))
    assert lines[0].startswith("4 of 8 images failed")
    assert not glance.attention({"counts": {"images": 3, "images_failed": 0}})
    moving = {"convergence": {"rounds": [{"rotation_mrad": 0.5}]}}
    assert "still moved by 0.5 mrad" in glance.attention(moving)[0]
    table = {"status": np.array(["converged"] * 3), "cc_model": np.array([0.9, 0.2, np.nan])}
    assert glance.attention({}, table) == ["1 used image has CC(J, J_model) below 0.5: 1."]


def test_what_free_reflections_are_compared_with(small_run, fitted):
    """σ at J_model of the same formula as the fitted ones: counting, and an error ∝ J."""
    run = small_run.given["run"]
    r = report.run.observed_and_expected(run)
    seen = run.reflections
    usable = seen.measured & (seen.image < 4) & np.isfinite(seen.J_model)
    assert r.fitted.sum() == seen.informs.sum()
    assert r.free.sum() == (seen.free & usable).sum() > 20
    np.testing.assert_allclose(r.sigma[r.fitted] ** 2, seen.variance[seen.informs], rtol=1e-5)
    # a smooth function of J_model and ε_r: the nearest fitted reflection has nearly the same
    for k in np.flatnonzero(r.free & (r.J_model > 100)):
        far = np.abs(np.log(np.maximum(r.J_model, 1e-9) / r.J_model[k]))
        far += 1e4 * np.abs(np.abs(r.excitation_error) - np.abs(r.excitation_error[k]))
        near = np.argsort(np.where(r.fitted, far, np.inf))[:5]
        assert r.sigma[k] == pytest.approx(np.median(r.sigma[near]), rel=0.4)
    assert np.sqrt(np.mean(r.pull[r.free] ** 2)) == pytest.approx(1, abs=0.35)


# -- plain arrays ---------------------------------------------------------------------------


def observed_and_expected(
    n=3000, n_images=6, seed=0, nu=math.inf, wide=1.0, free=0.1
) -> report.ObservedAndExpected:
    """Reflections whose pulls follow the likelihood, times ``wide``."""
    rng = np.random.default_rng(seed)
    J_model = 10 ** rng.uniform(-1, 4, n)
    sigma = np.sqrt(20 + J_model + (0.05 * J_model) ** 2)
    z = wide * (rng.standard_normal(n) if math.isinf(nu) else rng.standard_t(nu, n))
    held_out = rng.random(n) < free
    return report.ObservedAndExpected(
        np.sort(rng.integers(0, n_images, n)),
        J_model + sigma * z,
        J_model,
        sigma,
        rng.uniform(2, 20, n),
        ~held_out,
        held_out,
    )


def rows_of_shells() -> list[dict]:
    shell = {"d_max": 20.0, "d_min": 3.0, "n_unique": 50, "n_observations": 90}
    shell |= {"completeness": 0.9, "multiplicity": 1.8, "mean_i_over_sigma": 4.0}
    shell |= {"cc_half": 0.95, "cc_star": 0.98, "r_split": 0.2, "n_both_halves": 40}
    absent = dict.fromkeys(("cc_ref", "r1_ref", "cc_free"))
    return [{"shell": 0, **shell, **absent, "n_free": 0}, {"shell": "all", **shell, **absent}]


def test_a_merge_has_neither_pixels_nor_geometry(tmp_path):
    table = {
        "identifier": np.array([f"batch {k}" for k in range(6)], object),
        "status": np.array(["converged"] * 6, object),
        "G": np.linspace(1, 2, 6),
        "G_sd": np.full(6, 0.1),
    }
    summary = {"command": ["bayes-refine", "merge", "<x>.mtz"], "agreement": rows_of_shells()}
    report.run_report(
        tmp_path / "report.html",
        "bayes-refine merge",
        summary,
        report.Content(table, observed_and_expected(free=0.0)),
    )
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    found = Page(text)
    assert found.sections == (
        "headline run images intensities residuals agreement calibration".split()
    )
    assert "could not be drawn" not in text and not found.stray
    assert "partiality" not in found.figures and "by-detector" not in found.figures
    assert "&lt;x&gt;.mtz" in text  # escaped
    shells = next(t for t in found.tables.values() if t[0][0][1].startswith("shell"))
    assert "CC_ref" not in [cell for _, cell in shells[0]]  # there was no reference


def test_a_summary_alone_is_enough(tmp_path):
    report.run_report(tmp_path / "report.html", "merge", {})
    assert Page((tmp_path / "report.html").read_text()).sections == ["headline"]
    with pytest.raises(InputError, match="cannot be written"):
        report.run_report(tmp_path / "none" / "report.html", "merge", {})


def drawn(draw, *args) -> None:
    """Draw as the page does, but let what goes wrong be seen, and axes that stay empty."""
    axes = []

    def noted(figure):
        draw(figure, *args)
        axes.extend(figure.axes)

    text = page.chart("test", noted, "A caption.")
    assert "could not be drawn" not in text, text
    assert "<svg" in text
    assert axes and all(each.has_data() for each in axes)


REFLECTION_CHARTS = (
    charts.observed_expected,
    charts.residuals_by_resolution,
    lambda figure, r: charts.residuals_by_image(figure, r, 6),
    lambda figure, r: charts.pull_histogram(figure, r, 4.0),
    lambda figure, r: charts.probability(figure, r, 4.0),
    lambda figure, r: charts.pull_width(figure, r, 4.0),
)


@pytest.mark.parametrize("n", [1, 3, 40])
def test_few_reflections_of_one_image(n):
    r = observed_and_expected(n, n_images=1, free=0.0)
    for draw in REFLECTION_CHARTS:
        drawn(draw, r)
    whole = replace(
        r,
        excitation_error=np.zeros(n),
        partiality=np.ones(n),
        xy_mm=np.zeros((n, 2)),
    )
    drawn(charts.partiality_curve, whole)
    drawn(charts.residuals_on_detector, whole)


def test_many_reflections_become_a_histogram():
    text = page.chart(
        "many", lambda f: charts.observed_expected(f, observed_and_expected(60_000)), "A caption."
    )
    assert "(darker: more)" in text and "free, " in text
    assert len(text) < 4e5


def test_an_image_without_numbers_and_a_run_that_failed_altogether(tmp_path):
    table = {
        "identifier": np.array(["a", "b"], object),
        "status": np.array(["not read (no file)", "too few reflections (0)"], object),
        "n_reflections": np.array([0, 0]),
        "G": np.full(2, np.nan),
        "G_sd": np.full(2, np.nan),
        "cc_model": np.full(2, np.nan),
    }
    assert failed(table).all()
    report.run_report(tmp_path / "r.html", "fit", {}, report.Content(table))
    found = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert found.sections == ["headline", "images"] and not found.figures
    assert len(found.rows) == 3


def test_a_fit_without_a_reference(small_run, tmp_path):
    run = small_run.given["run"]
    seen = replace(
        run.reflections,
        intensity_reference=np.full(len(run.reflections), np.nan),
        informs=np.zeros(len(run.reflections), bool),
        free=np.zeros(len(run.reflections), bool),
    )
    run = replace(run, reflections=seen)
    report.fit_report(tmp_path / "r.html", run, {}, None, small_run.given["reader"])
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert Page(text).sections == ["headline", "images", "posterior"]
    assert "could not be drawn" not in text


def test_thousands_of_images_do_not_make_a_page_of_many_megabytes(monkeypatch):
    monkeypatch.setattr(images, "MAX_ROWS", 100)
    status = np.array(["converged"] * 20_000, object)
    status[19_000:] = "too few reflections (7)"
    table = {
        "identifier": np.array([f"i{k}" for k in range(20_000)], object),
        "status": status,
        "G": np.random.default_rng(0).lognormal(size=20_000),
        "G_sd": np.full(20_000, 0.01),
    }
    text = images.images(table).html
    assert text.count("data-image=") == 100 and "Only 100 of 20000 images" in text
    assert 'data-image="19000"' in text  # those that failed stand first
    assert "and 988 more" in text
    assert 'id="images-G"' not in text and "data-images" not in text  # none to hover over
    assert len(text) < 4e5


def test_residuals_of_thousands_of_images_are_one_picture_of_pixels():
    r = observed_and_expected(n=20_000, n_images=8_000)
    text = sections.residuals(r, 8_000).html
    assert "could not be drawn" not in text and 'id="images-pull_rms"' not in text
    assert len(text) < 6e5
    few = sections.residuals(observed_and_expected(), 6).html
    assert 'id="images-pull_rms"' in few


def test_a_picture_that_fails_costs_no_report():
    def broken(figure):
        raise ValueError("no <axes>")

    text = page.chart("broken", broken, "A caption.")
    assert "could not be drawn: no &lt;axes&gt;" in text


# -- do the pictures say what they should ---------------------------------------------------


@pytest.mark.parametrize("nu", [math.inf, 4.0])
def test_expected_pulls(nu):
    # tables of the Student-t distribution: P(t₄ < 2.132) = 0.95
    point, p = (1.6449, 0.95) if math.isinf(nu) else (2.1318, 0.95)
    assert charts.expected_cdf(np.array([point]), nu)[0] == pytest.approx(p, abs=1e-4)
    half = charts.expected_half_width(nu)
    central = np.diff(charts.expected_cdf(np.array([-half, half]), nu))[0]
    assert central == pytest.approx(0.682689, abs=1e-5)


def test_miscalibrated_free_reflections_stand_out():
    summary = {"priors": {"student_t_nu": None}}
    assert not glance.attention(summary, None, observed_and_expected())
    (line,) = glance.attention(summary, None, observed_and_expected(wide=2.0))
    assert "times as wide" in line and "too small" in line


def test_the_partiality_curve_is_that_of_the_data():
    """p = exp(−ε²/R²) in the data, half of it in the model: points at twice the lines."""
    from matplotlib.figure import Figure

    rng = np.random.default_rng(1)
    r = observed_and_expected(20_000, free=0.0)
    epsilon = rng.uniform(-5e-4, 5e-4, len(r))
    p = np.exp(-((epsilon / 3e-4) ** 2))
    h = 1e3
    r = replace(r, J_model=h * p / 2, J=h * p, sigma=np.full(len(r), 10.0))
    r = replace(r, excitation_error=epsilon, partiality=p / 2)
    figure = Figure()
    charts.partiality_curve(figure, r)
    measured = [c.lines[0].get_xydata() for c in figure.axes[0].containers]
    assert len(measured) == 3
    for x, y in np.concatenate(measured):
        assert y == pytest.approx(np.exp(-((x * 1e-3 / 3e-4) ** 2)), abs=0.02)


def test_couplings_are_named_and_median(fitted):
    _, _, run, _ = fitted
    names, correlation = report.run.couplings(run)
    assert correlation.shape == (len(names), len(names))
    np.testing.assert_allclose(np.diag(correlation), 1)
    assert {"G", "B", "R1", "rot_x_mrad", "run:R0_inv_angstrom"} <= set(names)
    draws = infer.laplace_draws(run.fit, 4000, rng=np.random.default_rng(1))
    g, b = draws["log_G"][..., 0], draws["B"][..., 0]
    expected = np.median([np.corrcoef(g[:, i], b[:, i])[0, 1] for i in range(4)])
    assert correlation[names.index("G"), names.index("B")] == pytest.approx(expected, abs=0.04)


def test_posterior_leaves_out_what_has_no_spread():
    draws = {"R0_inv_angstrom": np.arange(10.0), "fixed_mm": np.ones(10)}
    assert sections.posterior(draws) is None
    assert sections.posterior({}) is None


@pytest.mark.parametrize(
    ("value", "sd", "expected"),
    [
        (109.99791, 0.0044, ("109.9979", "0.0044")),
        (-1.3224, 1.954, ("−1.3", "2.0")),
        (143.2, 24.9, ("143", "25")),
        (0.5, math.nan, ("0.5", "")),
    ],
)
def test_numbers_have_as_many_digits_as_they_deserve(value, sd, expected):
    assert page.with_sd(value, sd) == expected


def test_numbers_as_text():
    assert page.number(None) == page.number(math.nan) == "–"
    assert page.number(1234567) == "1\u202f234\u202f567"
    assert page.number(2.5e-7) == "2.5·10⁻⁷" and page.number(-0.25) == "−0.25"


def test_a_sample_is_the_same_each_time():
    rows = np.arange(100)
    np.testing.assert_array_equal(drawing.sample(rows, 10), drawing.sample(rows, 10))
    assert len(drawing.sample(rows, 200)) == 100
