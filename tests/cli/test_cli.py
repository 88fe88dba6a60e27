"""The command line: what it prints, and how it fails."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from bayes_refine import cli
from bayes_refine.simulation.files import simulate_run
from bayes_refine.simulation.truth import Simulation

NOISE = ("--gain", "1", "--read-noise", "0")  # there is too little here to find it in


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A simulated run that no test here gets as far as fitting."""
    folder = tmp_path_factory.mktemp("data")
    simulate_run(Simulation(n_images=2, n_pixels=128), folder)
    return folder


def status(*arguments) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(a) for a in arguments])
    return end.value.code or 0


def fit(data, *more):
    return ("fit", data / "indexed.expt", "--reference", data / "reference.mtz", *more)


def test_one_bad_image_does_not_sink_a_run(small_run):
    assert small_run.status == 0
    assert "4 of 8 images" in small_run.printed
    assert "4 images failed" in small_run.printed and "simulated-0005" in small_run.printed


def test_help_and_version(capsys):
    assert status("--help") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("fit", "merge", "simulate", "demo"))
    assert status("fit", "--help") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("svi", "nuts", "--chains"))
    assert status("--version") == 0
    assert "bayes-refine 0." in capsys.readouterr().out


def edited(data, name, change):
    """A copy of the experiments in the same folder, changed."""
    document = json.loads((data / "indexed.expt").read_text())
    change(document)
    (data / name).write_text(json.dumps(document))
    return data / name


def longer_cell(document):
    for crystal in document["crystal"]:
        crystal["real_space_a"] = [1.2 * x for x in crystal["real_space_a"]]


def no_images(document):
    for imageset in document["imageset"]:
        imageset["images"] = ["nowhere.h5"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--d-min", "-1"), "must be positive"),
        (("--d-min", "500"), "no reflection"),
        (("--images", "5:9"), "has 2, 0 to 1"),
        (("--images", "two"), "a:b"),
        (("--model", "stil"), "no model named 'stil'"),
        (("--model", "nowhere.py"), "nowhere.py"),
        ((*NOISE, "--model", "per_pixel"), "`compare` pixels"),
        ((*NOISE, "--model", "latent"), "`merge` integrated intensities"),
        (("--reference-column", "FOO"), "FOO"),
        (("--priors", "nowhere.toml"), "nowhere.toml"),
        (("--gain", "-3"), "gain"),
        (("--free-fraction", "2"), "--free-fraction"),
        (("--free-fraction", "nan"), "--free-fraction nan: must be from 0 to 0.5"),
        (("--d-min", "0"), "must be positive"),
        (("--d-min", "nan"), "must be positive"),
        (("--d-min", "inf"), "must be positive"),
        (("--d-min", "0.3"), "--d-min 0.3: no reflection has d below half the wavelength"),
        (("--bandwidth", "nan"), "--bandwidth nan: must be from 0 to 0.2"),
        (("--gain", "inf"), "--gain inf: must be from 1e-06 to 1e+09 counts per photon"),
        (("--gain", "0"), "--gain 0: must be from"),
        (("--read-noise", "nan"), "--read-noise nan: must be"),
        (("--pedestal", "nan"), "--pedestal nan: must be"),
        (("--sensor-mu", "inf"), "--sensor-mu inf: must be"),
        (("--sensor-thickness-mm", "nan"), "--sensor-thickness-mm nan: must be"),
        (("--student-t", "nan"), "--student-t nan: must be 1 or more"),
        (("--seed", "-1"), "--seed"),
        (("--seed", str(2**63)), "--seed"),
        (("--seed", "1e3"), "--seed"),
        (("--images", "9" * 5000 + ":"), "a:b"),
        (("--images", "0:1:2"), "a:b"),
    ],
)
def test_options_that_cannot_be(data, tmp_path, capsys, options, words):
    assert status(*fit(data, "--out", tmp_path, *options)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("\nx = 1", "my_model.py defines no callable named 'model'"),
        (
            "def model(obs, priors):\n    obs.counts",
            "my_model.py, line 2: the model asks for 'counts'",
        ),
        ("def model(obs, priors):\n    priors.R0", "line 2: the model asks for 'R0'"),
        (
            "def model(obs, priors):\n    obs.metadata.x_px",
            "my_model.py, line 2: the model fails, AttributeError: 'NoneType'",
        ),
    ],
)
def test_a_model_of_ones_own_that_cannot_be(data, tmp_path, capsys, body, words):
    (tmp_path / "my_model.py").write_text(body + "\n")
    options = (*NOISE, "--out", tmp_path, "--model", tmp_path / "my_model.py")
    assert status(*fit(data, *options)) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error


def test_an_unknown_prior(data, tmp_path, capsys):
    (tmp_path / "priors.toml").write_text("R0 = 1e-4\n")
    assert status(*fit(data, "--out", tmp_path, "--priors", tmp_path / "priors.toml")) == 2
    assert "unknown prior 'R0'" in capsys.readouterr().err


def test_files_that_cannot_be_used(data, tmp_path, capsys):
    reference = ("--reference", data / "reference.mtz", "--out", tmp_path)
    assert status("fit", data / "nowhere.expt", *reference) == 2
    assert "nowhere.expt" in capsys.readouterr().err
    assert status("fit", data / "reference.mtz", *reference) == 2
    assert "merge takes it" in capsys.readouterr().err
    assert status("fit", edited(data, "cell.expt", longer_cell), *reference) == 2
    assert "cell" in capsys.readouterr().err
    assert status("fit", edited(data, "gone.expt", no_images), *reference) == 2
    assert "nowhere.h5 does not exist" in capsys.readouterr().err
    assert status("fit", data / "indexed.expt", "--out", tmp_path) == 2
    assert "resolution limit --d-min" in capsys.readouterr().err
    truncated = tmp_path / "reference.mtz"
    truncated.write_bytes((data / "reference.mtz").read_bytes()[:300])
    assert status("fit", data / "indexed.expt", "--reference", truncated, "--out", tmp_path) == 2
    assert "reference.mtz" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(data, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert status(*fit(data, "--out", tmp_path / "file")) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_errors_are_one_sentence(data, tmp_path, capsys):
    status(*fit(data, "--out", tmp_path, "--model", "stil"))
    error = capsys.readouterr().err.strip()
    assert error.startswith("bayes-refine: ") and "\n" not in error and "Traceback" not in error


def test_simulate(tmp_path, capsys):
    assert status("simulate", "--out", tmp_path / "s", "--images", 1, "--pixels", 96) == 0
    names = ["indexed.expt", "master.h5", "reference.mtz", "simulation.json", "truth.h5"]
    assert sorted(f.name for f in (tmp_path / "s").iterdir()) == names
    assert "bayes-refine fit" in capsys.readouterr().out
    again = ("simulate", "--out", tmp_path / "s", "--images", 1, "--pixels", 96, "--seed", 2)
    assert status(*again) == 0  # its own files
    (tmp_path / "s" / "reference.mtz").write_text("the only copy of years of work")
    assert status(*again) == 2
    assert "reference.mtz exists and no simulation wrote it" in capsys.readouterr().err
    assert (tmp_path / "s" / "reference.mtz").read_text().startswith("the only copy")


def test_a_command_multiplies_small_matrices_in_one_thread():
    with threadpool_limits(2, "blas"):
        assert status("--version") == 0
        libraries = [each for each in threadpool_info() if each["user_api"] == "blas"]
        assert {each["num_threads"] for each in libraries} <= {1}


def test_import_is_quiet():
    code = (
        "import sys, jax, bayes_refine as br; assert all(hasattr(br, n) for n in br.__all__); "
        "assert 'matplotlib' not in sys.modules and not jax.config.jax_enable_x64"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
