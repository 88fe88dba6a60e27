"""Images of each kind made on the fly: what is read, what is masked, what is refused."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path

import fabio.cbfimage
import h5py
import hdf5plugin
import numpy as np
import pytest

from bayes_refine.geometry.crystal import Crystal
from bayes_refine.geometry.detector import Beam, Detector
from bayes_refine.geometry.experiments import Still
from bayes_refine.io.expt import read_experiments
from bayes_refine.io.images import ImageReader, read_bandwidth
from bayes_refine.util.errors import InputError

NY, NX = 6, 8


def still(path: Path, frame=0, panels=1, trusted=(-100.0, 1000.0), **changes) -> Still:
    ones = np.ones(panels)
    parts = {
        "origin_mm": np.tile([0.0, 0.0, 100.0], (panels, 1)),
        "fast": np.tile([1.0, 0.0, 0.0], (panels, 1)),
        "slow": np.tile([0.0, 1.0, 0.0], (panels, 1)),
        "pixel_size_mm": np.full((panels, 2), 0.1),
        "shape": np.tile([NY, NX], (panels, 1)),
        "trusted_range": np.tile(trusted, (panels, 1)),
        "gain": ones,
        "pedestal": 0 * ones,
        "thickness_mm": 0 * ones,
        "mu_per_mm": 0 * ones,
    }
    beam = Beam(1.25, np.array([0, 0, 1.0]), np.array([0, 1.0, 0]))
    crystal = Crystal(A=np.eye(3) / 50, hall="P 1")
    return Still("x", Path(path), frame, beam, Detector(**{**parts, **changes}), crystal)


def frames(n, panels=None, dtype=np.int32):
    shape = (n, NY, NX) if panels is None else (n, panels, NY, NX)
    return (np.arange(np.prod(shape)).reshape(shape) % 97).astype(dtype)


def nexus(path: Path, data, signal="data", **detector) -> Path:
    with h5py.File(path, "w") as file:
        for name, nx_class in [
            ("entry", "NXentry"),
            ("entry/data", "NXdata"),
            ("entry/instrument", "NXinstrument"),
            ("entry/instrument/detector", "NXdetector"),
            ("entry/instrument/beam", "NXbeam"),
        ]:
            file.create_group(name).attrs["NX_class"] = nx_class
        file["entry/data"].attrs["signal"] = signal
        if data is not None:
            file["entry/data"].create_dataset(
                signal, data=data, chunks=(1, *data.shape[1:]), **hdf5plugin.Bitshuffle()
            )
        for key, value in detector.items():
            file["entry/instrument/detector"][key] = value
    return path


def cbf(path: Path, data) -> Path:
    fabio.cbfimage.CbfImage(data=data).write(str(path))
    return path


def read(*args, **kwargs):
    with ImageReader() as reader:
        return reader.read(still(*args, **kwargs))


def inner(valid):
    """Without the outermost rows and columns, which are never valid."""
    return valid[:, 1:-1, 1:-1]


def test_frames_of_a_bitshuffled_stack(tmp_path):
    data = frames(3)
    path = nexus(tmp_path / "a.h5", data)
    pixels, valid = read(path, frame=2)
    assert pixels.shape == valid.shape == (1, NY, NX)
    assert pixels.dtype == np.float32 and valid.dtype == bool
    np.testing.assert_array_equal(pixels[0], data[2])
    assert inner(valid).all()
    assert valid.sum() == (NY - 2) * (NX - 2)  # one pixel of border on each side


@pytest.mark.parametrize("filter", [hdf5plugin.LZ4(), hdf5plugin.Zstd()])
def test_other_compressions_and_signal_names(tmp_path, filter):
    path = nexus(tmp_path / "a.nxs", None, signal="counts")
    with h5py.File(path, "a") as file:
        file["entry/data"].create_dataset("counts", data=frames(2), **filter)
    np.testing.assert_array_equal(read(path, frame=1)[0][0], frames(2)[1])


def test_several_panels(tmp_path):
    data = frames(2, panels=3)
    mask = np.zeros((3, NY, NX), np.uint32)
    mask[1, 2, 3] = 1
    path = nexus(tmp_path / "a.h5", data, pixel_mask=mask)
    pixels, valid = read(path, frame=1, panels=3, untrusted=((), (), ((1, 1, 3, 2),)))
    np.testing.assert_array_equal(pixels, data[1])
    expected = np.zeros((3, NY, NX), bool)
    expected[:, 1:-1, 1:-1] = True
    expected[1, 2, 3] = False
    expected[2, 1, 1:3] = False  # half-open rectangle x 1..3, y 1..2
    np.testing.assert_array_equal(valid, expected)


def test_eiger_master_chains_its_pieces_in_order(tmp_path):
    data = frames(25)
    master = nexus(tmp_path / "a_master.h5", None)
    with h5py.File(master, "a") as file:
        start = 0
        for k, n in enumerate([4] * 6 + [1], start=1):
            nexus(tmp_path / f"a_data_{k}.h5", data[start : start + n])
            start += n
            file[f"entry/data/data_{k}"] = h5py.ExternalLink(f"a_data_{k}.h5", "entry/data/data")
        # as text, data_10 would come before data_2
        nexus(tmp_path / "a_data_10.h5", 1 + data[:1])
        file["entry/data/data_10"] = h5py.ExternalLink("a_data_10.h5", "entry/data/data")
    for frame in (0, 3, 4, 23, 24):
        np.testing.assert_array_equal(read(master, frame=frame)[0][0], data[frame])
    np.testing.assert_array_equal(read(master, frame=25)[0][0], 1 + data[0])
    with pytest.raises(InputError, match=r"has 26 frames, no frame 26"):
        read(master, frame=26)
    (tmp_path / "a_data_3.h5").unlink()
    # after an absent file of unknown length nothing has a place, until all are of one length
    np.testing.assert_array_equal(read(master, frame=7)[0][0], data[7])
    with pytest.raises(InputError, match=r"a_data_3\.h5, which does not exist"):
        read(master, frame=12)
    with h5py.File(master, "a") as file:
        del file["entry/data/data_10"]
    for frame in (7, 12, 23):
        np.testing.assert_array_equal(read(master, frame=frame)[0][0], data[frame])
    for frame in (8, 11):
        with pytest.raises(InputError, match=r"a_data_3\.h5, which does not exist"):
            read(master, frame=frame)


def test_virtual_data_set(tmp_path):
    data = frames(4)
    layout = h5py.VirtualLayout((4, NY, NX), data.dtype)
    for k in range(2):
        nexus(tmp_path / f"part{k}.h5", data[2 * k : 2 * k + 2])
        layout[2 * k : 2 * k + 2] = h5py.VirtualSource(
            f"part{k}.h5", "entry/data/data", shape=(2, NY, NX)
        )
    path = nexus(tmp_path / "vds.h5", None)
    with h5py.File(path, "a") as file:
        file["entry/data"].create_virtual_dataset("data", layout)
    np.testing.assert_array_equal(read(path, frame=3)[0][0], data[3])
    (tmp_path / "part1.h5").unlink()  # HDF5 itself would return zeros
    with pytest.raises(InputError, match=r"part1\.h5, which does not exist"):
        read(path, frame=3)


@pytest.mark.parametrize("suffix", ["", ".bz2", ".gz"])
def test_cbf(tmp_path, suffix):
    data = frames(1)[0]
    data[2, 3] = -2
    path = cbf(tmp_path / "a.cbf", data)
    if suffix:
        packed = tmp_path / f"a.cbf{suffix}"
        packed.write_bytes({".bz2": bz2, ".gz": gzip}[suffix].compress(path.read_bytes()))
        path.unlink()
        path = packed
    pixels, valid = read(path, trusted=(-1.0, 1000.0))
    np.testing.assert_array_equal(pixels[0], data)
    assert np.argwhere(~inner(valid)[0]).tolist() == [[1, 2]]


def test_photons_are_counts_less_pedestal_over_gain(tmp_path):
    path = nexus(tmp_path / "a.h5", frames(1, panels=2))
    image = still(path, panels=2, gain=np.array([2.0, 4.0]), pedestal=np.array([1.0, 3.0]))
    raw = frames(1, panels=2)[0].astype(float)
    with ImageReader() as reader:
        pixels, _ = reader.read(image)
        np.testing.assert_array_equal(pixels, [(raw[0] - 1) / 2, (raw[1] - 3) / 4])
        counts, _ = reader.counts(image)
        np.testing.assert_array_equal(counts, [raw[0] - 1, raw[1] - 3])
    with ImageReader(gain=5.0, pedestal=10.0) as reader:
        np.testing.assert_allclose(reader.read(image)[0], (raw - 10) / 5, rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "trusted", "values", "good"),
    [
        # whole numbers from −1: PILATUS writes −1 in gaps and −2 in bad pixels
        (np.int32, (-1.0, 1000.0), [-2, -1, 0, 999, 1000, 1001], [0, 0, 1, 1, 0, 0]),
        (np.int32, (-400.0, 9000.0), [-401, -400, -1, 8999, 9000], [0, 1, 1, 1, 0]),
        (np.uint16, (-1.0, 1e9), [0, 65534, 65535], [1, 1, 0]),
        (np.uint32, (0.0, 1e10), [0, 2**32 - 2, 2**32 - 1], [1, 1, 0]),
        (np.float32, (-10.0, 100.0), [-11, -10, -1, 99.5, np.nan, np.inf], [0, 1, 1, 1, 0, 0]),
        (np.int32, (0.0, 0.0), [-5, 0, 7], [0, 1, 1]),  # no upper end given
    ],
)
def test_trusted_values(tmp_path, dtype, trusted, values, good):
    data = np.full((1, NY, NX), 5, dtype)
    data[0, 2, 1 : 1 + len(values)] = np.array(values, dtype)
    pixels, valid = read(nexus(tmp_path / "a.h5", data), trusted=trusted)
    assert valid[0, 2, 1 : 1 + len(values)].tolist() == [bool(g) for g in good]
    assert np.isfinite(pixels).all()
    assert inner(valid)[0, [0, 2, 3]].all()


def test_masks_of_the_file(tmp_path):
    data = np.full((1, NY, NX), 5, np.int32)
    data[0, 2, 1:4] = [40, 49, 50]
    mask = np.zeros((NY, NX), np.uint32)
    mask[3, 4] = 2**8
    path = nexus(tmp_path / "a.h5", data, pixel_mask=mask, saturation_value=50, underload_value=0)
    valid = inner(read(path)[1])[0]
    assert np.argwhere(~valid).tolist() == [[1, 2], [2, 3]]


def test_few_files_stay_open(tmp_path):
    paths = [nexus(tmp_path / f"{k}.h5", frames(1) + k) for k in range(7)]
    with ImageReader() as reader:
        for k in [0, 1, 2, 3, 4, 5, 6, 0, 6, 1]:
            assert reader.read(still(paths[k]))[0][0, 1, 1] == frames(1)[0, 1, 1] + k
            assert len(reader._files) <= 4
        kept = [entry.file for entry in reader._files.values()]
    assert not any(kept)  # a closed h5py file is false


def test_lysosim_pixels_are_the_file_s(shared_data):
    experiments = read_experiments(shared_data / "lysosim" / "lysosim_indexed.expt")
    with ImageReader() as reader, h5py.File(shared_data / "lysosim" / "lysosim_master.h5") as file:
        for k in (0, 137):
            pixels, valid = reader.read(experiments.stills[k])
            np.testing.assert_array_equal(pixels[0], file["entry/data/data"][k])
            assert valid.sum() == 478**2


def test_pilatus_gaps_are_masked(shared_data):
    experiments = read_experiments(shared_data / "thaumatin_grid" / "thaumatin_grid.expt")
    with ImageReader() as reader:
        pixels, valid = reader.read(experiments.stills[0])
    assert not valid[0, :, 487:494].any() and valid[0, 100, 486] and valid[0, 100, 494]
    assert pixels[valid].min() == 0
    # 5 × 12 modules of 487 × 195 pixels, less 609 excluded (CBF header) and the border
    assert 60 * 487 * 195 - 609 - 2 * (2463 + 2527) <= valid.sum() < 60 * 487 * 195


@pytest.mark.parametrize(
    ("units", "value", "fraction"),
    [
        (None, 0.002, 0.002),
        ("angstrom", 0.0125, 0.01 / 2.354820045),  # NeXus: FWHM in Å; λ = 1.25 Å
        ("nm", 0.00125, 0.01 / 2.354820045),
    ],
)
def test_bandwidth(tmp_path, units, value, fraction):
    path = nexus(tmp_path / "a.h5", frames(1))
    assert read_bandwidth(still(path)) is None
    with h5py.File(path, "a") as file:
        file["entry/instrument/beam/incident_wavelength_spread"] = value
        if units:
            file["entry/instrument/beam/incident_wavelength_spread"].attrs["units"] = units
    assert read_bandwidth(still(path)) == pytest.approx(fraction, rel=1e-9)


def test_bandwidth_of_lysosim_and_of_cbf(shared_data):
    lysosim = read_experiments(shared_data / "lysosim" / "lysosim_indexed.expt").stills[0]
    assert read_bandwidth(lysosim) == pytest.approx(0.003 / np.sqrt(12))  # 0.3 % full width
    pilatus = read_experiments(shared_data / "thaumatin_grid" / "thaumatin_grid.expt").stills[0]
    assert read_bandwidth(pilatus) is None


def refused(path, match, **kwargs):
    with pytest.raises(InputError, match=match) as error:
        read(path, **kwargs)
    assert str(path) in str(error.value)


def test_refuses_missing_files_and_frames(tmp_path):
    refused(tmp_path / "none.h5", "does not exist")
    path = nexus(tmp_path / "a.h5", frames(2))
    refused(path, "has 2 frames, no frame 2", frame=2)
    refused(path, "no frame -1", frame=-1)
    refused(cbf(tmp_path / "a.cbf", frames(1)[0]), "no frame 1", frame=1)


def test_refuses_the_wrong_shape(tmp_path):
    refused(nexus(tmp_path / "a.h5", frames(2, panels=3)), "image of shape")
    refused(nexus(tmp_path / "b.h5", frames(2)), "image of shape", panels=3)
    refused(nexus(tmp_path / "c.h5", frames(2)[:, 1:]), "image of shape")
    mask = np.zeros((NY, NX + 1))
    refused(nexus(tmp_path / "d.h5", frames(1), pixel_mask=mask), "pixel_mask of shape")
    refused(cbf(tmp_path / "a.cbf", frames(1)[0, 1:]), "image of shape")


def test_refuses_corrupt_files(tmp_path):
    path = nexus(tmp_path / "a.h5", np.random.default_rng(0).integers(0, 999, (9, NY, NX)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "copy it anew")
    path.write_bytes(b"no HDF5 at all")
    refused(path, "not a readable HDF5 file")
    with h5py.File(path, "w") as file:
        file["numbers"] = 1
    refused(path, "no images")
    noise = np.random.default_rng(0).integers(0, 9999, (NY, NX)).astype(np.int32)
    path = cbf(tmp_path / "a.cbf", noise)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 60])
    refused(path, "cannot be read as an image")
    packed = tmp_path / "b.cbf.bz2"
    packed.write_bytes(bz2.compress(whole)[:-20])
    refused(packed, "cannot be read as an image")
    other = tmp_path / "c.cbf"
    other.write_text("words")
    refused(other, "cannot be read as an image")


def test_refuses_a_chunk_that_does_not_decompress(tmp_path):
    path = nexus(tmp_path / "a.h5", frames(2))
    with h5py.File(path) as file:
        chunk = file["entry/data/data"].id.get_chunk_info(1)
    content = bytearray(path.read_bytes())
    start = chunk.byte_offset
    content[start : start + chunk.size] = b"\xff" * chunk.size
    path.write_bytes(content)
    np.testing.assert_array_equal(read(path)[0][0], frames(2)[0])
    refused(path, "cannot be read as frame 1 ", frame=1)


def test_tiles_of_one_array_are_masked_each_at_its_own_edges(tmp_path):
    """Two tiles of unequal size, (6, 3) and (4, 5), of a stack of 6 × 8 images, and their mask."""
    data, mask = frames(2), np.zeros((NY, NX), np.uint32)
    mask[2, 5] = 1
    path = nexus(tmp_path / "a.h5", data, pixel_mask=mask)
    tiles = {
        "shape": np.array([[6, 3], [4, 5]]),
        "raw_image_offset": ((0, 0), (3, 1)),
        "untrusted": (((1, 1, 2, 3),), ()),
    }
    pixels, valid = read(path, frame=1, panels=2, **tiles)
    np.testing.assert_array_equal(pixels[0, :, :3], data[1, :, :3])
    np.testing.assert_array_equal(pixels[1, :4], data[1, 1:5, 3:])
    expected = np.zeros((2, 6, 5), bool)
    expected[0, 1:5, 1] = expected[1, 1:3, 1:4] = True
    expected[0, 1:3, 1] = False  # the rectangle
    expected[1, 1, 2] = False  # row 2, column 5 of the array
    np.testing.assert_array_equal(valid, expected)
