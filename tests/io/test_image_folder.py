"""Images that were moved are found by the end of their path."""

from __future__ import annotations

import pytest

import bayes_refine as br
from bayes_refine.io.image_folder import images_in
from bayes_refine.util.errors import InputError

SMALL = br.Simulation(n_images=2, n_pixels=64, d_min=8.0)


def test_moved_images_are_found(tmp_path):
    expt = br.simulate_run(SMALL, tmp_path / "run")
    (tmp_path / "other" / "run").mkdir(parents=True)
    (tmp_path / "other" / "master.h5").write_bytes(b"another of the same name")
    (tmp_path / "run" / "master.h5").rename(tmp_path / "other" / "run" / "master.h5")
    experiments = br.read_experiments(expt)
    with br.ImageReader() as reader, pytest.raises(InputError, match="--image-folder"):
        reader.read(experiments.stills[0])
    found = images_in(experiments, tmp_path / "other")
    assert found.stills[1].image_path == (tmp_path / "other" / "run" / "master.h5").resolve()
    with br.ImageReader() as reader:
        assert reader.read(found.stills[1])[0].shape == (1, 64, 64)
    br.write_experiments(tmp_path / "refined.expt", found)
    with pytest.raises(InputError, match="no such folder"):
        images_in(experiments, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"master\.h5 is not in it"):
        images_in(experiments, tmp_path / "empty")
