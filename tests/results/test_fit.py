"""The contract of every file that a fit leaves."""

from __future__ import annotations

import csv
import json
from functools import partial
from html import unescape

import gemmi
import h5py
import numpy as np
import pytest
import reciprocalspaceship as rs

from bayes_refine.demo import errors
from bayes_refine.fitting import posterior_draws, tables
from bayes_refine.io.expt import read_experiments
from bayes_refine.io.reference import read_reference
from bayes_refine.io.unmerged_mtz import read_unmerged
from bayes_refine.merging.average import merge
from bayes_refine.physics.reference import free_set
from bayes_refine.report import charts, overview, sections
from bayes_refine.report.gallery import shoebox_gallery
from bayes_refine.results import fit as results
from bayes_refine.results import posterior
from bayes_refine.util.errors import InputError
from bayes_refine.util.progress import Listener

FILES = (
    "half1.mtz",
    "half2.mtz",
    "images.csv",
    "merged.mtz",
    "overview.png",
    "posterior.mtz",
    "posterior.nc",
    "refined.expt",
    "report.html",
    "summary.json",
    "unmerged.mtz",
    "unmerged_scaled.mtz",
)


def mtz_columns(path):
    mtz = gemmi.read_mtz_file(str(path))
    return (
        mtz,
        {c.label: np.array(c.array, float) for c in mtz.columns},
        [c.type for c in mtz.columns],
    )


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_all_files_and_nothing_else(small_run):
    of_the_command = ["log.txt", "settings.toml"]
    assert sorted(f.name for f in small_run.out.iterdir()) == sorted([*FILES, *of_the_command])


def test_unmerged(small_run):
    mtz, column, types = mtz_columns(small_run.out / "unmerged.mtz")
    assert list(column)[:5] == ["H", "K", "L", "M/ISYM", "BATCH"]
    assert types == list("HHHYBJQRRRJRRII")
    assert [b.number for b in mtz.batches] == list(range(1, 6))  # three cannot be read
    assert set(column["BATCH"]) == {1, 2, 3, 4}  # the four that could be fitted
    for label in ("I", "SIGI", "PARTIALITY", "EPSILON_R", "SCALE", "XDET", "YDET"):
        assert np.isfinite(column[label]).all(), label
    assert (column["SIGI"] > 0).all() and (column["SCALE"] > 0).all()
    assert column["I"].min() < 0  # nothing was left out for being weak
    ref = read_reference(small_run.data / "reference.mtz")
    hkl = mtz.make_miller_array()
    known = np.isfinite(column["IMODEL"])
    expected = column["SCALE"] * ref.lookup(hkl)
    np.testing.assert_allclose(column["IMODEL"][known], expected[known], rtol=1e-5)
    np.testing.assert_array_equal(column["FREE"], free_set(hkl, 0.05, 0, ref.space_group))


def test_excitation_errors_are_those_of_the_refined_geometry(small_run):
    found = read_unmerged(small_run.out / "unmerged.mtz")
    stills = read_experiments(small_run.out / "refined.expt").stills
    for i in range(4):
        of_image = found.batch == i + 1
        s0, A = stills[i].beam.s0, stills[i].crystal.A
        expected = np.linalg.norm(s0 + found.hkl[of_image] @ A.T, axis=1) - np.linalg.norm(s0)
        np.testing.assert_allclose(found.excitation_error[of_image], expected, atol=1e-8)


def test_merged_is_the_merge_of_unmerged(small_run):
    _, column, types = mtz_columns(small_run.out / "merged.mtz")
    assert list(column) == "H K L IMEAN SIGIMEAN N FREE".split()
    assert types == list("HHHJQII")
    found = read_unmerged(small_run.out / "unmerged.mtz")
    scale = mtz_columns(small_run.out / "unmerged.mtz")[1]["SCALE"]
    again = merge(found.hkl_asu, found.J, found.sigma**2, scale, found.image)
    np.testing.assert_array_equal(column["N"], again.n)
    # where one image has measured it there is nothing to weigh
    single = (again.n == 1) & np.isfinite(column["IMEAN"])
    np.testing.assert_allclose(column["IMEAN"][single], again.intensity[single], rtol=1e-4)
    # weights are of expected variances: strong reflections come out as any sane weights have them
    strong = (again.intensity > 20 * again.sigma) & ~single
    assert abs(np.median(column["IMEAN"][strong] / again.intensity[strong]) - 1) < 0.03


def test_posterior_intensities(small_run):
    mtz, column, types = mtz_columns(small_run.out / "posterior.mtz")
    assert list(column) == "H K L IPOST SIGIPOST FPOST SIGFPOST FREE".split()
    assert types == list("HHHJQFQI")
    merged, likelihood, _ = mtz_columns(small_run.out / "merged.mtz")
    np.testing.assert_array_equal(mtz.make_miller_array(), merged.make_miller_array())
    column = {**likelihood, **column}
    I, sd, F, sd_F = (column[k] for k in ("IPOST", "SIGIPOST", "FPOST", "SIGFPOST"))  # noqa: E741
    assert (I > 0).all() and (sd > 0).all() and (F > 0).all() and (sd_F > 0).all()
    np.testing.assert_allclose(I, F**2 + sd_F**2, rtol=1e-4)  # E F² = (E F)² + Var F
    assert np.nanmin(column["IMEAN"]) < 0
    # a prior adds information: it never makes the sigmas of weak reflections larger
    weak = column["IMEAN"] < 2 * column["SIGIMEAN"]
    assert np.mean(sd[weak] < column["SIGIMEAN"][weak]) > 0.95
    strong = column["IMEAN"] > 20 * column["SIGIMEAN"]
    assert strong.sum() > 10
    np.testing.assert_allclose(I[strong], column["IMEAN"][strong], rtol=0.2)


def test_halves(small_run):
    whole = mtz_columns(small_run.out / "merged.mtz")[1]
    place = {tuple(h): k for k, h in enumerate(np.stack([whole[x] for x in "HKL"], 1).astype(int))}
    seen = 0
    for k in (1, 2):
        mtz, column, types = mtz_columns(small_run.out / f"half{k}.mtz")
        assert list(column) == "H K L IMEAN SIGIMEAN".split() and types == list("HHHJQ")
        assert np.isfinite(column["IMEAN"]).all() and (column["SIGIMEAN"] > 0).all()
        at = [place[tuple(h)] for h in mtz.make_miller_array().tolist()]
        # sigma of a half is that of a subset of the observations, at intensities of its own
        assert np.median(column["SIGIMEAN"] / whole["SIGIMEAN"][at]) >= 0.99
        seen += len(at)
    assert np.isfinite(whole["IMEAN"]).sum() <= seen < 2 * len(whole["IMEAN"])


def validated(out) -> bool:
    """gemmi's deposition check (``mtz2cif --depo``): scaled observations merge to IMEAN, 0.5 %."""
    merged, unmerged = (
        gemmi.read_mtz_file(str(out / name)) for name in ("merged.mtz", "unmerged_scaled.mtz")
    )
    of = [gemmi.Intensities(), gemmi.Intensities()]
    kind = gemmi.DataType.MergedAM if "I(+)" in merged.column_labels() else gemmi.DataType.Mean
    of[0].import_mtz(merged, kind)
    of[1].import_mtz(unmerged, gemmi.DataType.Unmerged)
    return gemmi.validate_merged_intensities(*of)


def test_scaled_observations_are_those_that_were_merged(small_run):
    assert validated(small_run.out)
    raw = rs.read_mtz(str(small_run.out / "unmerged.mtz")).reset_index()
    scaled = rs.read_mtz(str(small_run.out / "unmerged_scaled.mtz")).reset_index()
    both = raw.merge(scaled, on=["H", "K", "L", "BATCH"], suffixes=("", "_scaled"))
    assert len(both) == len(scaled) <= len(raw)
    np.testing.assert_allclose(both["I_scaled"], both["I"] * both["SCALEUSED"], rtol=1e-5)
    np.testing.assert_allclose(both["SCALEUSED"], 1 / both["SCALE"], rtol=1e-5)


def test_positions_are_in_the_frame_of_the_laboratory(small_run):
    """x and y in mm: the ray along ŝ of each reflection meets the refined detector there."""
    found = read_unmerged(small_run.out / "unmerged.mtz")
    stills = read_experiments(small_run.out / "refined.expt").stills
    for i in range(4):
        rows, still = found.batch == i + 1, stills[i]
        s = still.beam.s0 + found.hkl[rows] @ still.crystal.A.T
        normal, origin = still.detector.normal[0], still.detector.origin_mm[0]
        lab = s * (origin @ normal / (s @ normal))[:, None]
        # as predicted before the last round moved the geometry by less than a tenth of a pixel
        np.testing.assert_allclose(found.xy_px[rows], lab[:, :2], atol=0.0172)


def test_friedel_mates_apart(small_run, tmp_path):
    arguments = {"anomalous": True, "pictures": False, "out_dir": tmp_path}
    summary = results.write_results(**{**small_run.arguments, **arguments})
    mtz, column, _ = mtz_columns(tmp_path / "merged.mtz")
    posterior_mtz, of_posterior, _ = mtz_columns(tmp_path / "posterior.mtz")
    kinds = {c.label: c.type for m in (mtz, posterior_mtz) for c in m.columns}
    assert not set(column) & set(of_posterior) - {"H", "K", "L", "FREE"}
    column |= of_posterior
    for stem, value, sigma in (("I", "K", "M"), ("IPOST", "K", "M"), ("FPOST", "G", "L")):
        for mate in "+-":
            assert kinds[f"{stem}({mate})"] == value
            assert kinds[f"SIG{stem}({mate})"] == sigma
    n = [column["N(+)"], column["N(-)"]]
    np.testing.assert_array_equal(n[0] + n[1], column["N"])
    for k, mate in enumerate("+-"):
        np.testing.assert_array_equal(np.isfinite(column[f"IPOST({mate})"]), n[k] > 0)
    centric = mtz.spacegroup.operations().centric_flag_array(mtz.make_miller_array())
    assert not n[1][centric].any()
    both = (n[0] > 0) & (n[1] > 0)
    assert both.sum() > 20
    mean = (column["IPOST(+)"] + column["IPOST(-)"])[both] / 2
    np.testing.assert_allclose(column["IPOST"][both], mean, rtol=1e-4)
    assert summary["agreement"][-1]["n_anom"] >= 0
    foretold = [row for row in summary["forecast"] if row["shell"] == 2]
    share = [row["anomalous_completeness"][1] for row in foretold]
    sigma = [row["anomalous_sigma"][1] for row in foretold]
    assert len(share) == 3 and share == sorted(share) and share[-1] > share[0] > 0
    assert all(np.isfinite(sigma)) and sigma[-1] < sigma[0]
    data = rs.read_mtz(str(tmp_path / "merged.mtz"))
    assert data.dtypes["I(+)"].mtztype == "K" and data.dtypes["SIGI(-)"].mtztype == "M"
    assert validated(tmp_path)
    pairs = data[[label for label in data.columns if "(" in label]]
    assert len(pairs.stack_anomalous()) > len(pairs)  # what phenix-like readers do with them


def test_reciprocalspaceship_reads_both(small_run):
    merged = rs.read_mtz(str(small_run.out / "merged.mtz"))
    unmerged = rs.read_mtz(str(small_run.out / "unmerged.mtz"))
    assert merged.merged and not unmerged.merged
    assert merged.spacegroup.number == unmerged.spacegroup.number == 96
    assert len(merged) == len(unmerged.hkl_to_asu().groupby(["H", "K", "L"]).size())


def test_images_csv(small_run):
    table = rows(small_run.out / "images.csv")
    first = "identifier status n_reflections G G_sd B B_sd R1 R1_sd".split()
    rotations = [f"rot_{x}_mrad{sd}" for x in "xyz" for sd in ("", "_sd")]
    assert list(table[0])[: len(first) + 6] == [*first, *rotations]
    assert "cc_model" in table[0] and "strain_1" in table[0]
    order = [0, 1, 2, 3, 6, 5, 7, 4]  # by the names of files, those that cannot be read last
    assert [row["identifier"] for row in table] == [f"simulated-{i:04d}" for i in order]
    for row in table[:4]:
        assert row["status"] in ("converged", "not converged")
        assert float(row["G"]) > 0 and float(row["G_sd"]) > 0 and float(row["cc_model"]) > 0.9
    for row, why in zip(table[4:], ("too few", "missing.h5", "shape", "truncated.h5"), strict=True):
        assert why in row["status"]
        assert row["G"] == row["cc_model"] == ""


def test_refined_geometry_is_nearer_to_the_truth_and_bad_images_keep_theirs(small_run):
    indexed = read_experiments(small_run.data / "indexed.expt").stills
    refined = read_experiments(small_run.out / "refined.expt").stills
    assert len(refined) == len(indexed)
    refined = sorted(refined, key=lambda still: still.identifier)
    assert [s.identifier for s in refined] == [s.identifier for s in indexed]
    with h5py.File(small_run.data / "truth.h5") as file:
        A = file["A"][()]
    for i in range(4):
        wrong = [np.abs(s[i].crystal.A - A[i]).max() for s in (indexed, refined)]
        assert wrong[1] < 0.5 * wrong[0]
    for i in range(4, 8):
        np.testing.assert_array_equal(refined[i].crystal.A, indexed[i].crystal.A)
        np.testing.assert_array_equal(refined[i].detector.origin_mm, indexed[i].detector.origin_mm)


def test_errors_against_the_truth(small_run):
    found = {e.name: e for e in errors(small_run.given["run"], small_run.data / "truth.h5")}
    assert found["orientation (deg)"].after < 0.2 * found["orientation (deg)"].before
    for name in ("ln G", "B (Å²)", "distance (mm)", "beam centre x (mm)", "beam centre y (mm)"):
        assert found[name].pull < 4, name


def test_summary(small_run):
    summary = json.loads(
        (small_run.out / "summary.json").read_text(encoding="utf-8"),
        parse_constant=lambda name: pytest.fail(f"{name} is no JSON"),
    )
    for name in ("R0_inv_angstrom", "model_error", "distance_mm", "beam_center_x_px"):
        assert summary["globals"][name]["sd"] > 0
    assert summary["counts"]["images_failed"] == 4
    kinds = summary["counts"]["status"]
    (why,) = summary["experiments_left_out"]
    assert "experiment[8]: it has no crystal" in why
    assert kinds["not read"] == 3 and kinds["too few reflections"] == 1
    assert [row["shell"] for row in summary["agreement"]] == [*range(10), "all"]
    assert summary["noise"] == {"gain": 1.0, "read_noise": 0.0}
    assert len(summary["convergence"]["rounds"]) == 2
    assert {"read", "noise", "fit", "merge", "posterior"} <= set(summary["seconds"])
    assert summary["command"][:2] == ["bayes-refine", "fit"]
    assert summary["versions"]["jax"]
    assert summary["priors"]["rotation_sd_mrad"] == small_run.given["priors"].rotation_sd_mrad


def test_pictures(small_run):
    assert (small_run.out / "overview.png").read_bytes().startswith(b"\x89PNG")
    figure = shoebox_gallery(small_run.given["run"], small_run.given["reader"], n=1)
    (ax,) = figure.axes
    assert len(ax.texts) == 4 + 4 + 3 and len(ax.images) == 1  # kinds, titles, columns


def test_the_distance_is_where_the_beam_meets_the_detector(small_run):
    still = small_run.given["run"].indexed[0]
    place = tables.beam_place(still)  # of Simulation: 110.1 mm, (240.3, 239.8) px of 0.172 mm
    assert place["distance"] == pytest.approx(110.1)
    assert place["beam_center_x"] == pytest.approx(240.3 * 0.172)
    assert place["beam_center_y"] == pytest.approx(239.8 * 0.172)


def test_a_failure_leaves_nothing_that_looks_complete(small_run, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(posterior, "write_posterior", full)
    (tmp_path / "images.csv").write_text("of an earlier run")
    with pytest.raises(InputError, match="No space left"):
        results.write_results(**{**small_run.arguments, "out_dir": tmp_path})
    assert [f.name for f in tmp_path.iterdir()] == ["images.csv"]
    assert (tmp_path / "images.csv").read_text() == "of an earlier run"


def test_a_failing_picture_loses_no_result(small_run, tmp_path, monkeypatch):
    def broken(*_args, **_kwargs):
        raise ValueError("no\nfont")

    monkeypatch.setattr(overview, "overview", broken)
    monkeypatch.setattr(sections, "agreement", broken)
    monkeypatch.setattr(charts, "pull_histogram", broken)
    (tmp_path / "overview.png").write_text("of an earlier run")
    told: list[str] = []
    arguments = {"out_dir": tmp_path, "progress": Listener(told.append)}
    results.write_results(**{**small_run.arguments, **arguments})
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(set(FILES) - {"overview.png"})
    failed = [line for line in told if line.endswith("; all other results are complete")]
    for name in (
        "report.html: section 'agreement'",
        "report.html: picture 'pulls'",
        "overview.png",
    ):
        (line,) = [line for line in failed if line.startswith(f"{name} could not be drawn")]
        assert "no font" in line
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "What could not be drawn" in page and "section 'agreement' could" in unescape(page)
    assert page.count("This picture could not be drawn: no font.") == 1


def test_a_report_that_cannot_be_written_loses_no_result(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr(results.report, "fit_report", lambda path, *_: path.write_text(1))
    results.write_results(**{**small_run.arguments, "out_dir": tmp_path, "pictures": False})
    left = set(FILES) - {"overview.png", "report.html"}
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(left)


def test_map_holds_the_scales_fixed(small_run, tmp_path):
    method = partial(posterior_draws.at_mode, n_draws=4)
    arguments = {"method": method, "pictures": False, "out_dir": tmp_path}
    results.write_results(**{**small_run.arguments, **arguments})
    fixed, free = (mtz_columns(f / "merged.mtz")[1] for f in (tmp_path, small_run.out))
    both = np.isfinite(fixed["SIGIMEAN"]) & np.isfinite(free["SIGIMEAN"])
    ratio = (fixed["SIGIMEAN"] / free["SIGIMEAN"])[both]  # at expected I, which moves too
    assert (ratio < 1.02).all() and np.median(ratio) < 0.999
    assert not (tmp_path / "overview.png").exists()
