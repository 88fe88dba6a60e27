"""Images of each kind made on the fly: what is read, what is masked, what is refused."""

from __future__ import annotations

import bz2
import gzip
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fabio.cbfimage
import h5py
import hdf5plugin
import numpy as np
import pytest

from bayes_refine.geometry.crystal import Crystal
from bayes_refine.geometry.detector import Beam, Detector
from bayes_refine.geometry.experiments import Still
from bayes_refine.io import images
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


def test_several_threads_read_what_one_reads(tmp_path, monkeypatch):
    """With room for three images, and more files than stay open."""
    monkeypatch.setattr(images, "_KEPT_BYTES", 3 * 4 * NY * NX)
    paths = [nexus(tmp_path / f"{k}.h5", frames(8) + k) for k in range(6)]
    paths += [cbf(tmp_path / f"{k}.cbf", frames(1)[0] + k) for k in range(4)]
    stills = [still(p, frame) for p in paths for frame in range(8 if p.suffix == ".h5" else 1)]
    with ImageReader() as reader:
        one_by_one = [reader.read(s)[0] for s in stills]
    with ImageReader() as reader, ThreadPoolExecutor(4) as pool:
        for order in (stills, stills[::-1]):
            found = [pixels for pixels, _ in pool.map(reader.read, order)]
            expected = one_by_one if order is stills else one_by_one[::-1]
            np.testing.assert_array_equal(found, expected)


def test_the_first_images_stay_in_memory(tmp_path, monkeypatch):
    """Images are read in turn: with room for three of five, two are unpacked once."""
    monkeypatch.setattr(images, "_KEPT_BYTES", 3 * 4 * NY * NX)
    paths, unpacked = [cbf(tmp_path / f"{k}.cbf", frames(1)[0] + k) for k in range(5)], []

    def counted(path, *rest):
        unpacked.append(paths.index(path))
        return read_pixels(path, *rest)

    read_pixels = images.read_pixels
    monkeypatch.setattr(images, "read_pixels", counted)
    with ImageReader() as reader:
        for _ in range(3):
            for path in paths:
                reader.read(still(path, 0))
    assert unpacked == [0, 1, 2, 3, 4, 2, 3, 4, 2, 3, 4]


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


def test_a_mask_of_each_image(tmp_path):
    masks = np.zeros((3, NY, NX), np.uint32)
    masks[1, 2, 3] = 1
    path = nexus(tmp_path / "a.h5", frames(3), pixel_mask=masks)
    assert inner(read(path, frame=0)[1]).all() and inner(read(path, frame=2)[1]).all()
    assert np.argwhere(~inner(read(path, frame=1)[1])[0]).tolist() == [[1, 2]]
    path = nexus(tmp_path / "b.h5", frames(3), pixel_mask=masks[:2])
    assert inner(read(path, frame=0)[1]).all()
    refused(path, "pixel_mask for 2 images, none for frame 2", frame=2)
    panels = np.repeat(masks[:2, None], 4, axis=1)
    path = nexus(tmp_path / "c.h5", frames(2, panels=4), pixel_mask=panels)
    assert inner(read(path, frame=0, panels=4)[1]).all()
    valid = inner(read(path, frame=1, panels=4)[1])
    assert np.argwhere(~valid).tolist() == [[p, 1, 2] for p in range(4)]


def test_extreme_integers_are_no_counts(tmp_path):
    for dtype in (np.int16, np.int32, np.dtype(">i4"), np.uint16):
        data = np.full((1, NY, NX), 5, dtype)
        data[0, 2, 1:3] = [np.iinfo(dtype).min or 5, np.iinfo(dtype).max]
        valid = read(nexus(tmp_path / "a.h5", data), trusted=(-1e12, 1e12))[1]
        bad = [[1, 0], [1, 1]] if np.iinfo(dtype).min else [[1, 1]]
        assert np.argwhere(~inner(valid)[0]).tolist() == bad


def test_an_absent_file_costs_its_own_images(tmp_path):
    data = frames(6)
    master = nexus(tmp_path / "master.h5", None)
    with h5py.File(master, "a") as file:
        for k in range(3):
            nexus(tmp_path / f"piece{k}.h5", data[2 * k : 2 * k + 2])
            link = h5py.ExternalLink(f"piece{k}.h5", "entry/data/data")
            file[f"entry/data/data_{k + 1:06d}"] = link
    (tmp_path / "piece1.h5").unlink()
    for frame in (0, 1, 4, 5):
        np.testing.assert_array_equal(read(master, frame=frame)[0][0], data[frame])
    for frame in (2, 3):
        refused(master, r"piece1\.h5, which does not exist", frame=frame)


def virtual(path, data, names, sources):
    """A virtual data set of two images each from ``sources``: pairs of file and data set."""
    layout = h5py.VirtualLayout(data.shape, data.dtype)
    for k, (name, key) in enumerate(sources):
        shape = (2, *data.shape[1:])
        layout[2 * k : 2 * k + 2] = h5py.VirtualSource(name, key, shape=shape)
    with h5py.File(path, "a") as file:
        for key, name in names.items():
            file[key] = h5py.ExternalLink(name, "entry/data/data")
        file["entry/data"].create_virtual_dataset("data", layout)


def test_a_virtual_data_set_over_links_to_an_absent_file(tmp_path):
    data = frames(4)
    for k in range(2):
        nexus(tmp_path / f"part{k}.h5", data[2 * k : 2 * k + 2])
    path = nexus(tmp_path / "vds.h5", None)
    names = {f"entry/data/data_{k}": f"part{k}.h5" for k in range(2)}
    virtual(path, data, names, [(".", f"/entry/data/data_{k}") for k in range(2)])
    outer = nexus(tmp_path / "outer.h5", None)  # a virtual data set over that one
    virtual(outer, data, {}, [("vds.h5", "entry/data/data")])
    for frame in range(4):
        np.testing.assert_array_equal(read(path, frame=frame)[0][0], data[frame])
    (tmp_path / "part1.h5").unlink()  # HDF5 itself would return zeros
    np.testing.assert_array_equal(read(path, frame=1)[0][0], data[1])
    refused(path, r"part1\.h5, which does not exist", frame=2)
    np.testing.assert_array_equal(read(outer, frame=1)[0][0], data[1])
    refused(outer, "no file holds image 2", frame=2)
    (tmp_path / "part0.h5").unlink()
    with pytest.raises(InputError, match=r"part0\.h5, which does not exist"):
        read(outer, frame=1)


def test_modules_of_a_virtual_data_set(tmp_path):
    """A file for each of two modules: of a detector of two panels, and side by side in one."""
    data = frames(3, panels=2)
    for k in range(2):
        nexus(tmp_path / f"module{k}.h5", np.ascontiguousarray(data[:, k]))
    layout = h5py.VirtualLayout((3, 2, NY, NX), data.dtype)
    gap = h5py.VirtualLayout((3, 2 * NY + 2, NX), data.dtype)
    for k in range(2):
        source = h5py.VirtualSource(f"module{k}.h5", "entry/data/data", shape=(3, NY, NX))
        layout[:, k] = source
        gap[:, k * (NY + 2) : k * (NY + 2) + NY] = source
    for name, what in (("panels.h5", layout), ("gap.h5", gap)):
        with h5py.File(nexus(tmp_path / name, None), "a") as file:
            file["entry/data"].create_virtual_dataset("data", what)
    pixels, valid = read(tmp_path / "panels.h5", frame=2, panels=2)
    np.testing.assert_array_equal(pixels, data[2])
    assert inner(valid).all()
    shape = np.array([[2 * NY + 2, NX]])
    pixels, valid = read(tmp_path / "gap.h5", frame=2, shape=shape)
    np.testing.assert_array_equal(pixels[0, NY + 2 :], data[2, 1])
    assert not valid[0, NY : NY + 2].any() and inner(valid).sum() == 2 * (NY - 1) * (NX - 2)
    (tmp_path / "module1.h5").unlink()
    refused(tmp_path / "panels.h5", r"module1\.h5, which does not exist", panels=2)


def test_images_that_were_never_written(tmp_path):
    path = nexus(tmp_path / "a.h5", None)
    with h5py.File(path, "a") as file:
        stack = file["entry/data"].create_dataset(
            "data", (5, NY, NX), "i4", chunks=(1, NY // 2, NX), compression="gzip"
        )
        stack[:2] = frames(2)
        stack[3, : NY // 2] = 1
    np.testing.assert_array_equal(read(path, frame=1)[0][0], frames(2)[1])
    for frame in (2, 3, 4):  # 3: the half of it
        refused(path, f"image {frame} was never written", frame=frame)
    path = nexus(tmp_path / "b.h5", None)
    with h5py.File(path, "a") as file:
        file["entry/data"].create_dataset("data", (2, NY, NX), "i4")
    refused(path, "image 0 was never written")
    path = nexus(tmp_path / "c.h5", np.zeros((2, NY, NX), np.int32))  # zeros that were written
    assert inner(read(path, frame=1)[1]).all()


def test_other_places_of_images(tmp_path):
    data, path = frames(2), tmp_path / "a.cxi"
    mask = np.zeros((2, NY, NX), np.uint32)
    mask[1, 2, 3] = 512
    with h5py.File(path, "w") as file:
        file["cxi_version"] = 160
        file["entry_1/data_1/data"] = data
        file["entry_1/data_1/mask"] = mask
    pixels, valid = read(path, frame=1)
    np.testing.assert_array_equal(pixels[0], data[1])
    assert np.argwhere(~inner(valid)[0]).tolist() == [[1, 2]]
    with h5py.File(path, "w") as file:
        file["entry/instrument/detector/data"] = data
    np.testing.assert_array_equal(read(path, frame=1)[0][0], data[1])
    with h5py.File(path, "w") as file:
        file["run/17/pixels"] = data
        file["run/17/again"] = h5py.SoftLink("/run/17/pixels")
        file["run/17/back"] = h5py.SoftLink("/run")
        file["run/gain_map"], file["run/numbers"] = data[0], np.arange(9)
    np.testing.assert_array_equal(read(path, frame=1)[0][0], data[1])
    with h5py.File(path, "a") as file:
        file["run/18/pixels"] = data
    refused(path, "several data sets")
    with h5py.File(path, "w") as file:
        file["entry/data/data"] = data[1]
    np.testing.assert_array_equal(read(path)[0][0], data[1])
    with h5py.File(path, "w") as file:
        file["entry/data/data"] = frames(1, panels=3)[0]
    np.testing.assert_array_equal(read(path, panels=3)[0], frames(1, panels=3)[0])


def packed_cbf(path: Path, panels, compression="CBF_PACKED") -> Path:
    """As CBFlib writes it, a binary section for each panel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its wrapper
        import pycbf
    handle = pycbf.cbf_handle_struct()
    handle.new_datablock("x")
    handle.new_category("array_data")
    handle.new_column("data")
    for k, panel in enumerate(panels):
        handle.new_row()
        handle.select_row(k)
        sizes = (panel.size, b"little_endian", panel.shape[1], panel.shape[0], 1, 0)
        data = np.ascontiguousarray(panel).tobytes()
        if panel.dtype.kind == "f":
            handle.set_realarray_wdims_fs(getattr(pycbf, compression), k + 1, data, 8, *sizes)
        else:
            handle.set_integerarray_wdims_fs(getattr(pycbf, compression), k + 1, data, 4, 1, *sizes)
    handle.write_widefile(str(path), pycbf.CBF, pycbf.MIME_HEADERS | pycbf.MSG_DIGEST, 0)
    return path


@pytest.mark.parametrize(
    "compression", ["CBF_PACKED", "CBF_PACKED_V2", "CBF_CANONICAL", "CBF_BYTE_OFFSET", "CBF_NONE"]
)
def test_cbf_as_cbflib_compresses_it(tmp_path, compression):
    data = np.random.default_rng(0).integers(-5, 70_000, (3, NY, NX)).astype(np.int32)
    one = packed_cbf(tmp_path / "one.cbf", data[:1], compression)
    np.testing.assert_array_equal(read(one)[0], data[:1])
    several = packed_cbf(tmp_path / "several.cbf", data, compression)
    np.testing.assert_array_equal(read(several, panels=3)[0], data)
    refused(several, "image of shape", panels=2)


def test_cbf_of_real_numbers(tmp_path):
    data = np.random.default_rng(0).normal(size=(1, NY, NX))
    path = packed_cbf(tmp_path / "a.cbf", data, "CBF_NONE")
    np.testing.assert_allclose(read(path)[0], data, rtol=1e-6)


def test_a_cbf_that_is_not_what_its_header_says(tmp_path):
    path = cbf(tmp_path / "a.cbf", frames(1)[0])
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"x-CBF_BYTE_OFFSET", b"x-CBF_PACKED     "))
    refused(path, "number of packed pixels")
    path.write_bytes(whole.replace(b"x-CBF_BYTE_OFFSET", b"x-CBF_WAVELETS   "))
    refused(path, "compressed by x-cbf_wavelets, which cannot be read")
    start = whole.index(b"\x0c\x1a\x04\xd5")
    for cut in range(0, start + 4, 7):  # fabio waits for ever for a header that is cut
        path.write_bytes(whole[:cut])
        refused(path, "cannot be read as an image")
    changed = bytearray(whole)
    changed[start + 10] ^= 1
    path.write_bytes(changed)
    refused(path, "wrong checksum")
    size = b"X-Binary-Size-Fastest-Dimension: "
    path.write_bytes(whole.replace(size, size + b"99999"))
    refused(path, "image of shape")


def test_little_files_that_unpack_to_much_are_refused(tmp_path):
    """4.8 kB of bz2 unpack to 6 GiB."""
    nothing = bz2.compress(bytes(2**25))
    path = tmp_path / "a.cbf.bz2"
    path.write_bytes(nothing * 192)
    tracemalloc.start()
    refused(path, "holds more than")
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()


def test_large_shapes_are_refused_before_they_are_read(tmp_path):
    path = nexus(tmp_path / "a.h5", None)
    for shape in ((200_000, 200_000), (1, 200_000, 200_000)):
        with h5py.File(path, "a") as file:
            file["entry/data"].create_dataset("data", shape, "i4", chunks=(1,) * len(shape))
        refused(path, "image of shape")
        with h5py.File(path, "a") as file:
            del file["entry/data/data"]
    with h5py.File(path, "a") as file:
        file["entry/data"].create_dataset("data", (10**9, NY, NX), "i4", chunks=(1, NY, NX))
        file["entry/data/data"][7] = 3
    assert (read(path, frame=7)[0] == 3).all()
    refused(path, "was never written", frame=10**9 - 1)
    refused(path, "no image has .* pixels", shape=np.array([[200_000, 200_000]]))
    with h5py.File(path, "a") as file:
        del file["entry/data/data"]
        file["entry/data"].create_dataset("data", (10**7, NY, NX), "i4", chunks=(10**7, NY, NX))
    refused(path, "in chunks of 1.8 GiB")


def test_a_virtual_data_set_of_itself(tmp_path):
    """HDF5 crashes at one."""
    path = nexus(tmp_path / "a.h5", None)
    data = frames(2)
    virtual(path, data, {}, [(".", "/entry/data/data")])
    refused(path, "in a circle")
    path = nexus(tmp_path / "b.h5", data)
    with h5py.File(path, "a") as file:
        layout = h5py.VirtualLayout((NY, NX), np.int32)
        layout[...] = h5py.VirtualSource(".", "/entry/instrument/detector/pixel_mask", (NY, NX))
        file["entry/instrument/detector"].create_virtual_dataset("pixel_mask", layout)
    refused(path, "in a circle")


def test_an_image_is_unpacked_once(tmp_path):
    path = cbf(tmp_path / "a.cbf", frames(1)[0])
    with ImageReader() as reader:
        before = reader.read(still(path))
        before[0][:] = 0
        path.unlink()
        np.testing.assert_array_equal(reader.read(still(path))[0][0], frames(1)[0])


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
