"""Detectors of several panels in ``.expt`` files: which move together, how moves are written."""

import json
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest

from bayes_refine.geometry.panel_groups import moved_groups
from bayes_refine.io.crystfel_geometry_text import parse_geometry
from bayes_refine.io.crystfel_write import geometry_of, geometry_text
from bayes_refine.io.expt import read_experiments, write_experiments
from bayes_refine.simulation.files import simulate_run
from bayes_refine.simulation.truth import Simulation


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("panels")
    simulate_run(Simulation(n_images=1, n_panels=4, n_pixels=120, d_min=6.0), out)
    return out


def nested(folder, copies: int = 1):
    """The run's experiments with two groups of two panels, turned, and these panels repeated."""
    document = json.loads(next(folder.glob("*.expt")).read_text())
    detector = document["detector"][0]
    root, panels = detector["hierarchy"], detector["panels"]
    groups, leaves = [], []
    for k in range(2 * copies):
        group = deepcopy(root) | {"name": f"module{k}", "origin": [2.0 * k, 1.0, 0.3]}
        group |= {"fast_axis": [0.8, 0.6, 0.0], "slow_axis": [-0.6, 0.8, 0.0]}
        group["children"] = [{"panel": 2 * k}, {"panel": 2 * k + 1}]
        groups.append(group)
        leaves += deepcopy(panels[:2])
    detector["panels"] = leaves
    root["children"] = groups
    root["origin"] = [0.1, 0.2, 5.0]
    path = folder / f"nested{copies}.expt"
    path.write_text(json.dumps(document))
    return read_experiments(path)


MOVES = np.array([[0.3, -0.2, 0.4], [-0.5, 0.1, -0.3], [0.2, 0.2, 0.1], [0.0, -0.4, 0.2]])


def written(experiments, detector, path):
    still = replace(experiments.stills[0], detector=detector)
    write_experiments(path, replace(experiments, stills=(still,)))
    return read_experiments(path).stills[0].detector, json.loads(path.read_text())["detector"][0]


@pytest.mark.parametrize("copies", [1, 10])
def test_moved_panels_come_back_from_the_file(folder, tmp_path, copies):
    """Few panels move each on its own; of many, groups do, and panels keep their place in them."""
    experiments = nested(folder, copies)
    detector = experiments.stills[0].detector
    assert detector.group.tolist() == (
        [0, 1, 2, 3] if copies == 1 else np.repeat(np.arange(20), 2).tolist()
    )
    moves = np.resize(MOVES, (detector.group.max() + 1, 3))
    new = moved_groups(detector, moves).shifted(np.array([0.03, -0.02, 0.1]))
    back, entry = written(experiments, new, tmp_path / "moved.expt")
    for name in ("origin_mm", "fast", "slow"):
        np.testing.assert_allclose(getattr(back, name), getattr(new, name), atol=1e-9)
    old = experiments.document["detector"][0]
    same = [a["origin"] == b["origin"] for a, b in zip(entry["panels"], old["panels"], strict=True)]
    assert all(same) if copies == 10 else not any(same)


def test_a_shift_of_the_whole_goes_to_the_root(folder, tmp_path):
    experiments = nested(folder)
    shift = np.array([0.03, -0.02, 0.1])
    _, entry = written(
        experiments, experiments.stills[0].detector.shifted(shift), tmp_path / "shifted.expt"
    )
    np.testing.assert_allclose(entry["hierarchy"]["origin"], np.array([0.1, 0.2, 5.0]) + shift)
    assert entry["panels"] == experiments.document["detector"][0]["panels"]


def test_moved_panels_are_in_the_geometry_file(folder):
    """CrystFEL's axes and corners of the moved panels, read back: to its 10⁻⁶ px and 10⁻⁸."""
    still = nested(folder).stills[0]
    new = moved_groups(still.detector, MOVES)
    text = geometry_text(geometry_of(new, still.beam))
    read = parse_geometry(text, "here")
    found = read.detector(read.camera_length_m.value, read.wavelength.value)
    np.testing.assert_allclose(found.origin_mm, new.origin_mm, atol=1e-5)
    np.testing.assert_allclose(found.fast, new.fast, atol=1e-7)
