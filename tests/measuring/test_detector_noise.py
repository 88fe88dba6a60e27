"""Gain and read-out noise: recovered from images simulated with both known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bayes_refine.io.expt import read_experiments
from bayes_refine.io.images import ImageReader
from bayes_refine.measuring.detector_noise import (
    DetectorNoise,
    estimate_noise,
    is_counting,
    noise_for,
)
from bayes_refine.simulation.files import simulate_run
from bayes_refine.simulation.truth import Simulation
from bayes_refine.util.errors import InputError


def image(seed, gain=5.5, read_adu=3.0, peak=6.0, n=384):
    """Radial background of few photons, 100 spots, 0.2 % bad pixels (masked), in counts."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:n, :n]
    photons = 0.3 + peak * np.exp(-np.hypot(x - n / 2, y - n / 2.2) / 90)
    centres, heights = rng.uniform(5, n - 5, (100, 2)), rng.exponential(60, 100)
    for (cx, cy), height in zip(centres, heights, strict=True):
        photons += height * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 1.5)
    counts = gain * rng.poisson(photons) + read_adu * rng.normal(size=(n, n))
    valid = rng.random((n, n)) > 0.002
    return np.where(valid, counts, 60000.0)[None].astype(np.float32), valid[None]


@pytest.mark.parametrize("seed", [0, 1])
def test_gain_and_read_noise_are_recovered(seed):
    noise = estimate_noise([image(10 * seed + k) for k in range(3)])
    assert noise.gain == pytest.approx(5.5, rel=0.06)
    assert noise.read_noise == pytest.approx(3 / 5.5, rel=0.2)


def test_read_noise_alone_where_the_gain_is_known():
    noise = estimate_noise([image(k) for k in range(3)], gain=5.5)
    assert noise.gain == 5.5
    assert noise.read_noise == pytest.approx(3 / 5.5, rel=0.15)


@pytest.mark.parametrize("peak", [0.5, 6.0])
def test_poisson_counts_have_gain_one_and_no_read_noise(peak):
    counting = [image(k, gain=1.0, read_adu=0.0, peak=peak) for k in range(2)]
    noise = estimate_noise(counting)
    assert noise.gain == pytest.approx(1.0, rel=0.04)
    assert noise.read_noise < 0.2
    assert is_counting(counting, noise)


def test_only_whole_non_negative_counts_are_counting():
    counts, valid = image(0, gain=1.0, read_adu=0.0)
    assert is_counting([(counts, valid)], DetectorNoise(1.0, 0.0))
    assert not is_counting([(counts, valid)], DetectorNoise(2.0, 0.0))
    assert not is_counting([(counts - 1, valid)], DetectorNoise(1.0, 0.0))
    assert not is_counting([(counts + 0.5, valid)], DetectorNoise(1.0, 0.0))


def test_too_little_or_too_even_background_is_refused():
    counts, valid = image(0)
    with pytest.raises(InputError, match="too little background"):
        estimate_noise([(counts, np.zeros_like(valid))])
    with pytest.raises(InputError, match="too little background"):
        estimate_noise([])
    rng = np.random.default_rng(0)
    even = rng.normal(100.0, 3.0, (1, 256, 256))  # noise that has nothing to do with the mean
    with pytest.raises(InputError, match="too even"):
        estimate_noise([(even, np.ones(even.shape, bool))])


class Stack:
    """Stands in for an ImageReader."""

    def __init__(self, images):
        self.images, self.asked = images, []

    def counts(self, still):
        self.asked.append(still.frame)
        return self.images[still.frame % len(self.images)]


def stills(n, gain=1.0):
    detector = SimpleNamespace(gain=np.array([gain]))
    return [SimpleNamespace(frame=k, detector=detector) for k in range(n)]


def test_noise_for_takes_options_then_the_file_then_the_images():
    adu = Stack([image(0), image(1)])
    assert noise_for(adu, stills(2), gain=4.0, read_noise=0.5) == DetectorNoise(4.0, 0.5)
    assert noise_for(adu, stills(2, gain=3.0), read_noise=0.5) == DetectorNoise(3.0, 0.5)
    assert adu.asked == []  # nothing was unknown
    from_file = noise_for(adu, stills(2, gain=5.5))
    assert from_file.gain == 5.5 and from_file.read_noise == pytest.approx(3 / 5.5, rel=0.2)
    assert noise_for(adu, stills(2)).gain == pytest.approx(5.5, rel=0.08)
    photons = Stack([image(0, gain=1.0, read_adu=0.0)])
    assert noise_for(photons, stills(1)) == DetectorNoise(1.0, 0.0)


def test_noise_for_looks_at_no_more_than_eight_images_over_the_run():
    photons = Stack([image(0, gain=1.0, read_adu=0.0, n=128)])
    noise_for(photons, stills(100), gain=1.0)
    assert len(photons.asked) <= 8 and max(photons.asked) > 80


@pytest.mark.parametrize("bad", [{"gain": 0.0}, {"gain": np.nan}, {"read_noise": -1.0}])
def test_impossible_options_are_refused(bad):
    with pytest.raises(InputError, match="is impossible"):
        noise_for(Stack([image(0)]), stills(1), **bad)


def test_measured_integrating_detector(shared_data: Path):
    """Background variance grows by about 5.5 ADU² per ADU on these images."""
    experiments = read_experiments(shared_data / "thermolysin_xfel" / "thermolysin_xfel.expt")
    with ImageReader() as reader:
        noise = noise_for(reader, experiments.stills)
    assert noise.gain == pytest.approx(5.5, rel=0.25)


def test_measured_counting_detector(shared_data: Path):
    """A PILATUS counts photons: variance equals the mean."""
    experiments = read_experiments(shared_data / "thaumatin_grid" / "thaumatin_grid.expt")
    with ImageReader() as reader:
        images = [reader.counts(experiments.stills[0])]
    noise = estimate_noise(images)
    assert noise.gain == pytest.approx(1.0, abs=0.04)
    assert is_counting(images, noise)


def test_few_even_counts_are_photons(tmp_path):
    """A small detector with an even background tells no line, but that pixels are counted."""
    for gain in (1.0, 5.0):
        simulation = Simulation(
            n_images=2, n_pixels=128, distance_mm=30, d_min=4, seed=3, gain=gain
        )
        run = read_experiments(simulate_run(simulation, tmp_path / f"{gain:g}"))
        stills = [replace(s, detector=replace(s.detector, gain=np.ones(1))) for s in run.stills]
        with ImageReader() as reader:
            if gain == 1:
                assert noise_for(reader, stills) == DetectorNoise(1.0, 0.0)
            else:
                with pytest.raises(InputError, match=r"too even|too little"):
                    noise_for(reader, stills)
