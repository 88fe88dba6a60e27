"""What ``inspect`` says of files of every kind."""

from __future__ import annotations

import pytest

import bayes_refine as br
from bayes_refine.io.inspect import inspect
from bayes_refine.simulation.layouts import write_crystfel_layout, write_jungfraujoch_layout
from bayes_refine.util.errors import InputError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    experiments = br.read_experiments(br.simulate_run(br.Simulation(n_images=2, seed=3), out))
    write_crystfel_layout(experiments, out)
    write_jungfraujoch_layout(experiments, out)
    (out / "files.lst").write_text("indexed.expt\n")
    (out / "what").write_bytes(b"\0\1\2")
    return out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "indexed.expt",
            ["2 crystals on 2 images", "P 43 21 2", "everything is there"],
        ),
        ("run.stream", ["2 images, 2 crystals", "--space-group", "nothing was integrated"]),
        ("run.geom", ["1 panels of 480 × 480 pixels", "as --geometry"]),
        ("run_process.h5", ["a file of Jungfraujoch", "2 crystals on 2 images"]),
        ("master.h5", ["/entry/data/data: 2 × 480 × 480", "without orientations"]),
        ("reference.mtz", ["F, IREF", "may serve as --reference"]),
        ("files.lst", ["1 files; the first"]),
        ("what", ["cannot use it"]),
    ],
)
def test_what_a_file_is_and_lacks(run, name, said):
    text = "\n".join(inspect(run / name))
    for part in said:
        assert part in text


def test_real_files(shared_data):
    text = "\n".join(inspect(shared_data / "formats" / "crystfel_5ht2b_32crystals.stream"))
    assert "70 images, 32 crystals" in text and "32 image files do not exist" in text
    text = "\n".join(inspect(shared_data / "formats" / "thermolysin_3crystals.refl"))
    assert "502 integrated" in text
    text = "\n".join(inspect(shared_data / "thermolysin_unmerged" / "unmerged_plus.mtz"))
    assert "75619 observations on 395 images" in text and "Ewald offset: there" in text


def test_a_file_that_does_not_exist(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        list(inspect(tmp_path / "none"))
