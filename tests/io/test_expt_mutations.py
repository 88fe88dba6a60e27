"""Experiment lists with something wrong at a random place: one sentence, or a sane result."""

from __future__ import annotations

import copy
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bayes_refine.geometry.detector import beam_frame, pixel_to_q, ray_to_pixel
from bayes_refine.geometry.experiments import Experiments
from bayes_refine.geometry.predict import candidate_indices, predict
from bayes_refine.io.expt import read_experiments, write_experiments
from bayes_refine.simulation.files import simulate_run
from bayes_refine.simulation.truth import Simulation
from bayes_refine.util.errors import InputError

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 7, 10**18, -(10**18), 10**400, 0.0, -0.0, 1.5, -1.5, 1e-300),
    *(1e300, -1e300, 1e9, math.nan, math.inf, -math.inf, "", "0", "nan", "abc", "\x00", "\ud800"),
    *("$\\frac$", "=cmd|' /C calc'!A0", "../../etc/passwd", "a" * 5000, "####", "é", "{", "C 2y"),
    *([], {}, [[]], [None], [0], [0, 0], [0, 0, 0], [1, 2, 3, 4], [1e300] * 3, [math.nan] * 3),
    *([1.0, 0.0, 0.0], [0.0, 0.0, 1.0], {"a": 1}, [{}], ["x"], [[1, 2, 3]], [["a"]]),
]


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> list[dict[str, Any]]:
    """A simulated run of one panel, one of four tiles, and one as a sequence with scans."""
    folder = tmp_path_factory.mktemp("run")
    run = Simulation(n_images=3, seed=1, n_pixels=64, d_min=8.0)
    plain = json.loads(simulate_run(run, folder).read_text())
    tiles = copy.deepcopy(plain)
    panel = tiles["detector"][0]["panels"][0]
    half = [n // 2 for n in panel["image_size"]]
    tiles["detector"][0]["panels"] = [
        {
            **copy.deepcopy(panel),
            "image_size": half,
            "raw_image_offset": [i * half[0], j * half[1]],
            "origin": [
                panel["origin"][0] + i * half[0] * panel["pixel_size"][0],
                panel["origin"][1] + j * half[1] * panel["pixel_size"][1],
                panel["origin"][2],
            ],
            "mask": [[1, 2, 3, 4]],
        }
        for j in range(2)
        for i in range(2)
    ]
    root = tiles["detector"][0]["hierarchy"]
    frame = {key: panel[key] for key in ("fast_axis", "slow_axis")} | {"origin": [0.0, 0.0, 0.0]}
    root["children"] = [
        {**frame, "children": [{"panel": 0}, {"panel": 1}]},
        {**frame, "children": [{"panel": 2}, {"panel": 3}]},
    ]
    sequence = copy.deepcopy(plain)
    images = sequence["imageset"][0]
    images |= {"__id__": "ImageSequence", "template": images.pop("images")[0]}
    images["single_file_indices"] = [0, 1, 2]
    sequence["imageset"] = [images]
    sequence["scan"] = [
        {
            "image_range": [n + 1, n + 1],
            "properties": {"oscillation": [0.0], "oscillation_width": [0.0]},
        }
        for n in range(3)
    ]
    for n, entry in enumerate(sequence["experiment"]):
        entry |= {"imageset": 0, "scan": n}
    return [plain, tiles, sequence]


def places(value: Any, place: tuple = ()):
    """Every place in a document, as the keys that lead to it."""
    if place:
        yield place
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in items:
        if isinstance(child, dict | list):
            yield from places(child, (*place, key))
        else:
            yield (*place, key)


def at(value: Any, place: tuple) -> Any:
    for key in place:
        value = value[key]
    return value


def mutated(document: dict[str, Any], rng: random.Random) -> tuple[dict[str, Any], str]:
    """A copy with one to three changes at random places, and what they were."""
    out, told = copy.deepcopy(document), []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        everywhere = list(places(out))
        # as many of short paths as of long ones: most places are numbers of panels
        depth = rng.choice(sorted({len(p) for p in everywhere}))
        place = rng.choice([p for p in everywhere if len(p) == depth])
        parent, key = at(out, place[:-1]), place[-1]
        kind = rng.choice(["value", "value", "delete", "swap", "scale", "repeat", "wrap", "rename"])
        if kind == "value":
            parent[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind == "delete":
            del parent[key]
        elif kind == "swap":
            other = rng.choice(everywhere)
            if other[: len(place)] == place or place[: len(other)] == other:
                continue
            there, value = at(out, other[:-1]), copy.deepcopy(parent[key])
            parent[key], there[other[-1]] = copy.deepcopy(there[other[-1]]), value
        elif kind == "scale" and isinstance(parent[key], int | float):
            parent[key] *= rng.choice([-1, 0, 2, 0.5, 1e-6, 1e6, 1e30])
        elif kind == "repeat" and isinstance(parent, list):
            parent.extend(copy.deepcopy(parent[key]) for _ in range(rng.choice([1, 2, 50])))
        elif kind == "wrap":
            for _ in range(rng.choice([1, 2, 120])):
                parent[key] = rng.choice([[parent[key]], {"children": [parent[key]]}])
        elif kind == "rename" and isinstance(parent, dict):
            parent[f"{key}_"] = parent.pop(key)
        told.append(f"{kind} {place}")
    return out, "; ".join(told)


def encoded(document: dict[str, Any], rng: random.Random) -> bytes:
    """The text of a document, one in ten damaged."""
    # the C encoder refuses what is nested deep, as readers do
    text = json.dumps(document).encode() if _depth(document) < 800 else b"[" * 100_000
    if rng.random() < 0.1:
        cut = rng.randrange(len(text))
        damage = [text[:cut], text[:cut] + b"\xff" + text[cut:], text[:cut] + text[cut + 1 :]]
        return rng.choice([*damage, b"\xef\xbb\xbf" + text])
    return text


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level:
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        depth += 1
    return depth


def check_sane(experiments: Experiments) -> None:
    """What was read can be used: finite, of possible sizes, named once, without warnings."""
    names = [still.identifier for still in experiments.stills]
    assert len(set(names)) == len(names) > 0 and all(names)
    for still in experiments.stills:
        still.identifier.encode()
        assert still.identifier.isprintable() and still.frame >= 0
        beam, detector, crystal = still.beam, still.detector, still.crystal
        assert 1e-3 <= beam.wavelength <= 100 and 0 <= beam.polarization_fraction <= 1
        assert np.isfinite(crystal.A).all() and np.isfinite(crystal.cell.parameters).all()
        assert np.linalg.det(crystal.A) > 0 and np.isfinite(crystal.U).all()
        assert crystal.space_group is not None
        for name in ("origin_mm", "fast", "slow", "pixel_size_mm", "gain", "pedestal", "mu_per_mm"):
            assert np.isfinite(getattr(detector, name)).all(), name
        assert (detector.shape > 0).all() and (detector.gain > 0).all()
        assert not np.isnan(detector.trusted_range).any()
        frame = beam_frame(beam, detector)
        np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-9)
        panel = np.arange(detector.n_panels)
        centre = detector.shape[:, ::-1] / 2
        q = pixel_to_q(detector, beam, panel, centre)
        assert np.isfinite(q).all()
        s = beam.s0 + q
        found, xy = ray_to_pixel(detector, s / np.linalg.norm(s, axis=1, keepdims=True))
        assert np.isfinite(xy[found >= 0]).all()
        try:
            hkl = candidate_indices(crystal.cell, crystal.space_group, 8.0)
        except InputError:  # more than memory holds
            continue
        predicted = predict(still, hkl, 8.0, lambda d: 0 * d + 1e-3)
        assert np.isfinite(predicted.xy_px).all() and np.isfinite(predicted.polarisation).all()
        for panel_number, rectangles in enumerate(detector.untrusted):
            height, width = detector.shape[panel_number]
            assert all(
                0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height for x0, y0, x1, y1 in rectangles
            )


def check_case(documents: list[dict[str, Any]], seed: str, folder: Path) -> str:
    """What became of a case: the kind of outcome."""
    rng = random.Random(seed)
    document, told = mutated(rng.choice(documents), rng)
    path = folder / "in.expt"
    path.write_bytes(encoded(document, rng))
    try:
        experiments = read_experiments(path)
    except InputError as error:
        text = str(error)
        assert text.isprintable() and str(path) in text and len(text) < 1000, (seed, told, text)
        return "refused"
    except Exception as error:
        raise AssertionError(f"{seed}: {told}") from error
    try:
        check_sane(experiments)
        write_experiments(folder / "out.expt", experiments)
        again = read_experiments(folder / "out.expt")
        assert [s.identifier for s in again.stills] == [s.identifier for s in experiments.stills]
    except Exception as error:
        raise AssertionError(f"{seed}: {told}") from error
    return "left out" if experiments.left_out else "read"


@pytest.mark.filterwarnings("ignore:.*the mask file")
@pytest.mark.parametrize("block", range(6))
def test_mutated_lists(documents, tmp_path, block):
    outcomes = [check_case(documents, f"0-{block}-{n}", tmp_path) for n in range(10)]
    assert set(outcomes) <= {"refused", "left out", "read"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*the mask file")
@pytest.mark.parametrize("block", range(20))
def test_many_mutated_lists(documents, tmp_path, block):
    outcomes = [check_case(documents, f"1-{block}-{n}", tmp_path) for n in range(100)]
    assert {"refused", "read"} <= set(outcomes)
