"""Which mask a fit takes: that of the option, else the one of the experiments, never a pickle."""

import pickle

import numpy as np
import pytest

from bayes_refine.cli.inputs import maps_for, mask_for
from bayes_refine.geometry.experiments import Experiments
from bayes_refine.io.expt import read_experiments
from bayes_refine.simulation.files import simulate_run
from bayes_refine.simulation.truth import Simulation
from bayes_refine.util.errors import InputError


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Experiments:
    folder = tmp_path_factory.mktemp("run")
    return read_experiments(simulate_run(Simulation(n_images=1, seed=1), folder))


def named(run: Experiments, tmp_path, *names: str) -> Experiments:
    sets = [{"mask": name} for name in names]
    return Experiments(run.stills, tmp_path / "a.expt", {**run.document, "imageset": sets})


def test_the_option_then_the_experiments(run, tmp_path):
    shape = run.stills[0].detector.image_shape
    good = np.ones(shape, bool)
    good[0, 3, 4] = False
    np.save(tmp_path / "option.npy", good)
    np.save(tmp_path / "named.npy", np.ones(shape, bool))
    (tmp_path / "pixels.mask").write_bytes(pickle.dumps((1, 2)))
    assert mask_for(run, None) is None
    assert not mask_for(run, tmp_path / "option.npy").all()
    assert mask_for(named(run, tmp_path, "named.npy"), None).all()
    pickled = named(run, tmp_path, "pixels.mask")
    with pytest.raises(InputError, match=r"pixels\.mask is a pickle.*--mask"):
        mask_for(pickled, None)
    np.testing.assert_array_equal(mask_for(pickled, tmp_path / "option.npy"), good)
    with pytest.raises(InputError, match=r"names 2 mask files; join them to one and give --mask"):
        mask_for(named(run, tmp_path, "named.npy", "pixels.mask"), None)


def test_maps_as_the_reader_takes_them(run, tmp_path):
    shape = run.stills[0].detector.image_shape
    np.save(tmp_path / "gain.npy", np.full(shape, 2.5))
    maps = maps_for(run.stills, tmp_path / "gain.npy", None)
    assert maps["pedestal_map"] is None and (maps["gain_map"] == 2.5).all()
