"""Masks and maps of each format: which way round they are, and what is refused."""

from __future__ import annotations

import json
import pickle

import fabio.cbfimage
import fabio.tifimage
import h5py
import numpy as np
import pytest

from bayes_refine.geometry.detector import Beam, Detector
from bayes_refine.geometry.experiments import Experiments, Still
from bayes_refine.io.images import ImageReader
from bayes_refine.io.pixel_maps import mask_files, read_mask, read_pixel_map
from bayes_refine.util.errors import InputError

NY, NX = 6, 8


def detector(panels=1) -> Detector:
    ones = np.ones(panels)
    return Detector(
        origin_mm=np.tile([0.0, 0.0, 100.0], (panels, 1)),
        fast=np.tile([1.0, 0.0, 0.0], (panels, 1)),
        slow=np.tile([0.0, 1.0, 0.0], (panels, 1)),
        pixel_size_mm=np.full((panels, 2), 0.1),
        shape=np.tile([NY, NX], (panels, 1)),
        trusted_range=np.tile([-1e6, 1e6], (panels, 1)),
        gain=ones,
        pedestal=0 * ones,
        thickness_mm=0 * ones,
        mu_per_mm=0 * ones,
    )


def good(panels=1) -> np.ndarray:
    usable = np.ones((panels, NY, NX), bool)
    usable[0, 2, 3] = usable[-1, 4, 5] = False
    return usable


def write(path, array, key="mask"):
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file[key] = array
    elif path.suffix == ".tif":
        fabio.tifimage.TifImage(data=array).write(str(path))
    else:
        fabio.cbfimage.CbfImage(data=array).write(str(path))
    return path


@pytest.mark.parametrize("suffix", [".npy", ".h5"])
@pytest.mark.parametrize("panels", [1, 3])
def test_true_is_good_and_0_is_good(tmp_path, suffix, panels):
    usable, path = good(panels), tmp_path / f"mask{suffix}"
    for array in (usable, (~usable).astype(np.uint32) * 8, (~usable).astype(np.int8)):
        np.testing.assert_array_equal(read_mask(write(path, array), detector(panels)), usable)
    if panels == 1:  # without an axis of panels
        np.testing.assert_array_equal(read_mask(write(path, usable[0]), detector()), usable)


@pytest.mark.parametrize("suffix", [".tif", ".cbf"])
def test_images_as_masks(tmp_path, suffix):
    path = write(tmp_path / f"mask{suffix}", (~good()[0]).astype(np.int32))
    np.testing.assert_array_equal(read_mask(path, detector()), good())


def test_the_data_set_of_an_hdf5_file(tmp_path):
    path = write(tmp_path / "a.h5", np.ones((NY, NX), bool), "one")
    with h5py.File(path, "a") as file:
        file["two/good"] = good()[0]
        file["numbers"] = np.arange(9)
    np.testing.assert_array_equal(read_mask(f"{path}:/two/good", detector()), good())
    with pytest.raises(InputError, match=r"several data sets that fit; give .*a\.h5:/which"):
        read_mask(path, detector())
    with pytest.raises(InputError, match=r"a\.h5 has no /three"):
        read_mask(f"{path}:/three", detector())
    nxmx = write(
        tmp_path / "b.h5", (~good()).astype(np.uint32), "entry/instrument/detector/pixel_mask"
    )
    np.testing.assert_array_equal(read_mask(nxmx, detector()), good())


def test_refuses_what_is_no_mask(tmp_path):
    def refused(path, match, panels=1):
        with pytest.raises(InputError, match=match) as error:
            read_mask(path, detector(panels))
        assert path.name in str(error.value)

    refused(write(tmp_path / "a.npy", ~good()), "masks 96% of the pixels.*turn it round")
    refused(write(tmp_path / "b.npy", good().astype(int)), "turn it round")
    refused(write(tmp_path / "c.npy", good()[:, 1:]), "a mask of shape")
    refused(write(tmp_path / "d.npy", good()), "a mask of shape", panels=2)
    refused(write(tmp_path / "e.npy", np.array(["x"])), "a mask of shape")
    refused(tmp_path / "none.npy", "does not exist")
    objects = tmp_path / "f.npy"
    np.save(objects, np.array([{}], object), allow_pickle=True)
    refused(objects, "f.npy")
    (tmp_path / "g.tif").write_text("words")
    refused(tmp_path / "g.tif", "cannot be read as a")


def test_never_opens_a_pickle(tmp_path):
    for protocol in (0, 2, 4):
        path = tmp_path / "pixels.mask"
        path.write_bytes(pickle.dumps(Traitor(), protocol=protocol))
        with pytest.raises(InputError, match=r"is a pickle, .*give that \(--mask for masks\)"):
            read_mask(path, detector())


class Traitor:
    """Raises when its pickle is opened."""

    def __reduce__(self):
        return pytest.fail, ("opened",)


def test_mask_files_of_an_experiment_list(tmp_path):
    document = {"imageset": [{"mask": "a.npy"}, {"mask": None}, {"mask": "a.npy"}, {}]}
    experiments = Experiments((), tmp_path / "x.expt", json.loads(json.dumps(document)))
    assert mask_files(experiments) == [tmp_path / "a.npy"]


def test_photons_by_mask_and_maps(tmp_path):
    rng = np.random.default_rng(0)
    gain, pedestal = rng.uniform(1, 5, (1, NY, NX)), rng.normal(0, 9, (1, NY, NX))
    gain[0, 1, 1], pedestal[0, 1, 2] = 0, np.nan
    image = write(tmp_path / "image.npy", np.zeros(1)).with_suffix(".cbf")
    raw = rng.integers(0, 99, (NY, NX)).astype(np.int32)
    write(image, raw)
    beam = Beam(1.0, np.array([0, 0, 1.0]), np.array([0, 1.0, 0]))
    still = Still("x", image, 0, beam, detector(), None)
    gains = read_pixel_map(write(tmp_path / "gain.npy", gain), detector(), positive=True)
    pedestals = read_pixel_map(write(tmp_path / "pedestal.h5", pedestal), detector())
    with ImageReader(usable=good(), gain_map=gains, pedestal_map=pedestals) as reader:
        photons, valid = reader.read(still)
    expected = np.zeros((NY, NX), bool)
    expected[1:-1, 1:-1] = good()[0, 1:-1, 1:-1]
    expected[1, 1:3] = False  # no gain, no pedestal
    np.testing.assert_array_equal(valid[0], expected)
    np.testing.assert_allclose(
        photons[valid],
        ((raw - pedestal) / np.where(gain > 0, gain, 1))[valid],
        rtol=1e-5,
        atol=1e-5,
    )
    with pytest.raises(InputError, match="no usable number for most pixels"):
        read_pixel_map(write(tmp_path / "gain.npy", -gain), detector(), positive=True)
