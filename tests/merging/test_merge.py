"""``bayes-refine merge``: complete and readable files, the free set, and how it fails."""

from __future__ import annotations

import csv
import io
import json
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import arviz as az
import gemmi
import numpy as np
import pytest
import reciprocalspaceship as rs
import xarray as xr

from bayes_refine import cli, load_model
from bayes_refine.io.mtz import write_merged
from bayes_refine.io.unmerged_mtz import read_unmerged
from bayes_refine.merging import merge, pieces
from bayes_refine.merging.agreement import pearson
from bayes_refine.merging.observations import prepare
from bayes_refine.physics.reference import free_set
from bayes_refine.results import merge as results
from bayes_refine.results.merge import write_merge
from bayes_refine.simulation.unmerged import UnmergedSimulation, simulate_unmerged
from bayes_refine.util import large_arrays

FILES = [
    "half1.mtz",
    "half2.mtz",
    "images.csv",
    "log.txt",
    "merged.mtz",
    "posterior.mtz",
    "posterior.nc",
    "report.html",
    "settings.toml",
    "summary.json",
    "unmerged_scaled.mtz",
]
RUN = UnmergedSimulation(n_images=40, each=150, difference=5e-3, model_error=0.1)


def write_mtz(path, data, drop=(), cell=None):
    """What an integration program leaves: original indices and a BATCH an image."""
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = data.space_group
    mtz.set_cell_for_all(cell or data.cell)
    mtz.add_dataset("d").wavelength = 1.3
    columns = {
        "I": ("J", data.J),
        "SIGI": ("Q", data.sigma),
        "BATCH": ("B", data.batch),
        "EPSILON_R": ("R", data.excitation_error),
    }
    columns = {label: column for label, column in columns.items() if label not in drop}
    for label, (kind, _) in columns.items():
        mtz.add_column(label, kind)
    table = np.column_stack([data.hkl, *(values for _, values in columns.values())])
    mtz.set_data(np.float32(table))
    mtz.write_to_file(str(path))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder, simulation, exit status and what was printed of one anomalous merge."""
    folder = tmp_path_factory.mktemp("merge")
    simulated = simulate_unmerged(RUN)
    unmerged = write_mtz(folder / "unmerged.mtz", simulated.data)
    truth = simulated.truth
    reference = {"F": ("F", np.sqrt(truth.intensity))}
    write_merged(folder / "reference.mtz", truth.hkl, reference, truth.cell, truth.space_group, 1.3)
    line = [unmerged, "--reference", folder / "reference.mtz", "--anomalous", "--out", folder / "m"]
    with redirect_stdout(io.StringIO()) as printed:
        status = exit_status("merge", *line, "--refit-halves")
    return folder, simulated, status, printed.getvalue()


def exit_status(*arguments) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(a) for a in arguments])
    return end.value.code or 0


def columns_of(path: Path):
    mtz = gemmi.read_mtz_file(str(path))
    return mtz, {c.label: np.array(c.array, float) for c in mtz.columns}


def test_files(run):
    folder, simulated, status, printed = run
    assert status == 0
    assert sorted(f.name for f in (folder / "m").iterdir()) == FILES
    assert "40 images" in printed and "CC_anom" in printed and "refitted" in printed
    page = (folder / "m" / "report.html").read_text("utf-8")
    assert "bayes-refine merge" in page and "could not be drawn" not in page
    with (folder / "m" / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["identifier"] for row in rows] == [str(b) for b in range(1, 41)]
    log_G = np.log([float(row["G"]) for row in rows])
    assert pearson(log_G, simulated.log_G) > 0.95
    assert all(float(row["G_sd"]) > 0 and float(row["B_sd"]) > 0 for row in rows)


def test_merged_mtz(run):
    folder, simulated, *_ = run
    mtz, column = columns_of(folder / "m" / "merged.mtz")
    column |= columns_of(folder / "m" / "posterior.mtz")[1]
    hkl = mtz.make_miller_array()
    assert mtz.datasets[1].wavelength == pytest.approx(1.3)
    np.testing.assert_array_equal(column["FREE"], free_set(hkl, 0.05, 0, mtz.spacegroup))
    n = [column["N(+)"], column["N(-)"]]
    np.testing.assert_array_equal(n[0] + n[1], column["N"])
    assert column["N"].sum() == 40 * 150
    place = {tuple(h): k for k, h in enumerate(simulated.hkl.tolist())}
    F = simulated.amplitude[[place[tuple(h)] for h in hkl.tolist()]]
    for k, mate in enumerate("+-"):
        seen = n[k] > 0
        assert pearson(column[f"FPOST({mate})"][seen], F[seen, k]) > 0.9
        pull = (column[f"FPOST({mate})"] - _scaled(column, F) * F[:, k]) / column[
            f"SIGFPOST({mate})"
        ]
        assert 0.8 < np.nanstd(pull) < 1.25
    both = (n[0] > 0) & (n[1] > 0)
    difference = column["FPOST(+)"] - column["FPOST(-)"]
    assert pearson(difference[both], (F[:, 0] - F[:, 1])[both]) > 0.3
    data = rs.read_mtz(str(folder / "m" / "posterior.mtz"))
    assert data.merged and data.dtypes["FPOST(+)"].mtztype == "G"


def test_scaled_observations_merge_to_imean(run):
    """gemmi's deposition check (``mtz2cif --depo``): within 0.5 % of IMEAN; by rs, as observed."""
    folder, simulated, *_ = run
    path = folder / "m" / "unmerged_scaled.mtz"
    merged, scaled = (gemmi.Intensities() for _ in range(2))
    merged.import_mtz(gemmi.read_mtz_file(str(folder / "m" / "merged.mtz")), gemmi.DataType.Mean)
    mtz = gemmi.read_mtz_file(str(path))
    scaled.import_mtz(mtz, gemmi.DataType.Unmerged)
    scaled.merge_in_place(gemmi.DataType.Mean)
    found = dict(zip(map(tuple, scaled.miller_array.tolist()), scaled.value_array, strict=True))
    again = [found[tuple(h)] for h in merged.miller_array.tolist()]
    np.testing.assert_allclose(again, merged.value_array, rtol=5e-3, atol=1e-4)
    assert [b.number for b in mtz.batches] == list(range(1, 41))
    data = rs.read_mtz(str(path)).reset_index().sort_values(["BATCH", "H", "K", "L"])
    of = simulated.data
    order = np.lexsort((*of.hkl.T[::-1], of.batch))
    np.testing.assert_array_equal(data[["H", "K", "L"]].to_numpy(int), of.hkl[order])
    raw = data["I"].to_numpy(float) / data["SCALEUSED"].to_numpy(float)
    np.testing.assert_allclose(raw, of.J[order], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(data["EPSILON_R"], of.excitation_error[order], rtol=1e-5)


@pytest.mark.slow
def test_a_large_run_is_merged_part_by_part(run, tmp_path, monkeypatch):
    """The numbers are those of the whole; scaled observations are in several files."""
    data, model = run[1].data, load_model("latent")
    whole = merge.merge_run(data, model)
    write_merge(tmp_path / "whole", whole)
    monkeypatch.setattr(pieces, "GRAIN", 64)
    monkeypatch.setattr(pieces, "PART", 512)
    monkeypatch.setattr(pieces, "SMALL_PART", 512)
    monkeypatch.setattr(large_arrays, "LARGE", 2000)
    monkeypatch.setattr(results, "ROWS", 2500)
    write_merge(tmp_path / "parts", merge.merge_run(data, model))
    files = sorted(path.name for path in (tmp_path / "parts").glob("unmerged_scaled*"))
    assert files == [f"unmerged_scaled_00{k}.mtz" for k in (1, 2, 3)]

    def table(folder, name):
        mtz = gemmi.read_mtz_file(str(tmp_path / folder / name))
        assert len(mtz.batches) in (0, 40)
        return mtz.array.copy()

    for name in ("merged.mtz", "posterior.mtz", "half1.mtz"):
        np.testing.assert_allclose(table("parts", name), table("whole", name), rtol=2e-3, atol=1e-3)
    parts = np.concatenate([table("parts", name) for name in files])
    np.testing.assert_allclose(parts, table("whole", "unmerged_scaled.mtz"), rtol=2e-3, atol=1e-3)
    one, other = (
        read_table(tmp_path / folder / "images.csv")["cc_model"] for folder in ("whole", "parts")
    )
    np.testing.assert_allclose(one, other, rtol=1e-4)
    monkeypatch.setattr(results, "ROWS", len(data))
    write_merge(tmp_path / "parts", whole)
    files = [path.name for path in (tmp_path / "parts").glob("unmerged_scaled*")]
    assert files == ["unmerged_scaled.mtz"]


def read_table(path: Path) -> dict[str, list[float]]:
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {"cc_model": [float(row["cc_model"]) for row in rows]}


def _scaled(column, F):
    """The gauge: simulated amplitudes to those of the merge."""
    f = np.sqrt((F**2).mean(axis=1))
    return (column["FPOST"] @ f) / (f @ f)


def test_summary(run):
    folder, *_ = run
    summary = json.loads(
        (folder / "m" / "summary.json").read_text("utf-8"),
        parse_constant=lambda name: pytest.fail(f"{name} is no JSON"),
    )
    assert summary["prior"] == "wilson" and summary["command"][:2] == ["bayes-refine", "merge"]
    assert summary["globals"]["dispersion_angstrom"]["value"] == pytest.approx(2e-3, rel=0.4)
    assert [row["shell"] for row in summary["agreement"]] == [*range(10), "all"]
    last = summary["agreement"][-1]
    for name in ("cc_half", "cc_star", "r_split", "cc_ref", "cc_free", "cc_half_refitted"):
        assert 0 < last[name] < 1, name
    assert last["cc_anom"] > 0.1 and last["n_anom"] > 200
    assert {"read", "scales", "intensities", "halves", "posterior"} <= set(summary["seconds"])
    low, high = summary["prior_numbers"]["one_minus_mates_correlation"]
    assert 1e-3 < low < 3e-2 and 1e-3 < high < 3e-2  # simulated: 5e-3


def test_posterior_opens_in_arviz(run):
    found = az.from_netcdf(run[0] / "m" / "posterior.nc")
    posterior = found["posterior"]
    assert posterior["log_G"].dims == ("chain", "draw", "image")
    assert posterior["log_Sigma"].dims == ("chain", "draw", "knot")
    assert dict(posterior.sizes)["draw"] == 100
    np.testing.assert_allclose(posterior["log_G"].mean("image"), 0, atol=1e-9)
    J = found["observed_data"]["intensity"]
    replicate = found["posterior_predictive"]["intensity"]
    assert replicate.shape == (1, 100, 40 * 150) and J.shape == (40 * 150,)
    low, high = replicate.quantile([0.05, 0.95], ("chain", "draw"))
    assert 0.86 < float(((low < J) & (J < high)).mean()) < 0.97
    assert np.isfinite(found["log_likelihood"]["intensity"]).all()


def test_draws_of_intensities_on_request(run, tmp_path):
    folder = run[0]
    common = ["--out", tmp_path, "--draws", "40"]
    reference = ["--reference", folder / "reference.mtz", "--prior", "reference"]
    assert exit_status("merge", folder / "unmerged.mtz", *reference, *common) == 0
    with xr.open_dataset(tmp_path / "posterior.nc", group="posterior", engine="h5netcdf") as found:
        assert found["I"].dims == ("chain", "draw", "unique") and found.sizes["draw"] == 40
        _, column = columns_of(tmp_path / "posterior.mtz")
        assert len(column["IPOST"]) == found.sizes["unique"]
        np.testing.assert_array_equal(found["unique_h"], column["H"])
        away = (found["F"].mean(("chain", "draw")) - column["FPOST"]) / column["SIGFPOST"]
        assert abs(float(away.mean())) < 0.05 and float(away.std()) < 0.25  # 1/√40 = 0.16
    summary = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    assert summary["prior"] == "reference" and summary["model"] == "latent_reference"
    assert len(summary["prior_numbers"]["tau_over_Sigma"]) == 4


def test_the_free_set_is_never_informed(run):
    """Other reference intensities in the free set: not one number of the merge moves."""
    _, simulated, *_ = run
    truth, settings = simulated.truth, merge.MergeSettings(free_fraction=0.2)
    free = free_set(truth.hkl, 0.2, 0, truth.space_group)
    changed = replace(truth, intensity=np.where(free, 7 * truth.intensity[::-1], truth.intensity))
    model = load_model("latent_reference")
    a, b = (merge.merge_run(simulated.data, model, settings, reference=r) for r in (truth, changed))
    assert a.free.sum() > 150
    np.testing.assert_array_equal(a.scaled.log_G, b.scaled.log_G)
    np.testing.assert_array_equal(
        a.intensities.posterior.intensity, b.intensities.posterior.intensity
    )
    prior = a.scaled.prior
    assert not prior.informed[a.free].any() and not np.asarray(prior.centre)[a.free].any()
    unshared = np.exp(prior.log_variance - prior.log_mean)[~a.free]  # 1 − r²
    assert np.median(unshared) < 0.36


# -- what cannot be merged ------------------------------------------------------------------


def test_bad_input(run, tmp_path, capsys):
    folder, simulated, *_ = run
    good, data = folder / "unmerged.mtz", simulated.data
    out = ("--out", tmp_path / "out")

    def refused(*line):
        assert exit_status("merge", *line, *out) == 2
        error = capsys.readouterr().err.strip().replace("\n", " ")
        assert "bayes-refine: " in error or "Usage" in error
        assert not (tmp_path / "out" / "summary.json").exists()
        return error

    assert "nowhere.mtz: no such file" in refused(tmp_path / "nowhere.mtz")
    for label in ("SIGI", "BATCH", "I"):
        path = write_mtz(tmp_path / f"no_{label}.mtz", data, drop=[label])
        assert f"no column {label}" in refused(path)
    nothing = replace(data, J=np.full(len(data), np.nan))
    path = write_mtz(tmp_path / "nan.mtz", nothing)
    assert "no reflection with an intensity" in refused(path)
    assert "no reflection to 99" in refused(good, "--d-min", 99)
    assert "must be positive" in refused(good, "--d-min", -1)
    for prior in ("reference", "double-wilson"):
        assert "needs a reference" in refused(good, "--prior", prior)
    assert "--prior" in refused(good, "--prior", "frenchwilson")
    reference = ("--reference", folder / "reference.mtz")
    assert "have a Wilson prior" in refused(good, *reference, "--anomalous", "--prior", "reference")
    assert "Friedel pairs have no draws" in refused(good, "--anomalous", "--draws", 10)
    other = write_mtz(tmp_path / "cell.mtz", data, cell=gemmi.UnitCell(44, 44, 60, 90, 90, 90))
    assert "cell" in refused(other, *reference)
    (tmp_path / "p.toml").write_text("R0 = 1e-4\n")
    assert "unknown prior 'R0'" in refused(good, "--priors", tmp_path / "p.toml")
    truncated = tmp_path / "truncated.mtz"
    truncated.write_bytes(good.read_bytes()[:200])
    assert "truncated.mtz" in refused(truncated)


def test_some_bad_rows_are_left_out(run, tmp_path):
    data = run[1].data
    J = data.J.copy()
    J[::7] = np.nan
    path = write_mtz(tmp_path / "some.mtz", replace(data, J=J))
    assert len(read_unmerged(path)) == np.isfinite(J).sum()
    assert len(prepare(read_unmerged(path)).J) == np.isfinite(J).sum()
