"""``fit --component`` and ``train``: what is refused before anything is fitted."""

from __future__ import annotations

import jax
import pytest

import bayes_refine as br
from bayes_refine import cli, physics

pytest.importorskip("equinox")
from bayes_refine.cli.components import with_components
from bayes_refine.learned.component import (
    Component,
    Evidence,
    Family,
    Origin,
    Setup,
    write_component,
)
from bayes_refine.learned.curve import Curve


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return br.simulate_run(br.Simulation(n_images=1, d_min=6.0), folder)


@pytest.fixture
def component(run, tmp_path):
    """``component(wavelength)``: the path of one that was trained on the run, or at another λ."""

    def made(wavelength=1.0):
        here = Setup.of(br.read_experiments(run).stills)
        setup = Setup(here.panels, here.shape, here.pixel_mm, here.distance_mm, wavelength)
        origin = Origin(setup, 16, 4000, 2.0, Evidence((1.0, 2.0, 3.0), 40), {})
        module = Curve.start(jax.random.key(0))
        path = tmp_path / "curve.eqx"
        write_component(path, Component(Family.partiality, module, (module,) * 5, origin))
        return path

    return made


def failed(arguments, capsys) -> str:
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in arguments])
    assert end.value.code == 2
    return capsys.readouterr().err


def test_a_file_that_is_no_component_ends_the_fit(run, tmp_path, capsys):
    line = ["fit", run, "--d-min", "6", "--out", tmp_path / "out", "--component", run]
    assert "not a learned component" in failed(line, capsys)


def test_a_component_of_another_wavelength_ends_the_fit(run, component, tmp_path, capsys):
    line = ["fit", run, "--d-min", "6", "--out", tmp_path / "out", "--component", component(1.3)]
    assert "and 1.3 Å, and these images are" in failed(line, capsys)


def test_a_component_brings_its_piece_and_what_it_needs(run, component):
    stills = br.read_experiments(run).stills
    model, settings, told = with_components(
        br.load_model("still"), br.Settings(d_min=6.0), [component()], stills
    )
    assert isinstance(model.keywords["partiality"], physics.Partiality)
    assert settings.margin == Curve.start(jax.random.key(0)).reach() > 2.4
    assert not settings.metadata
    assert told["components"][0]["nats_an_image"] == 2.0


def test_without_components_all_is_as_it_was(run):
    model, settings = br.load_model("still"), br.Settings()
    assert with_components(model, settings, None, ()) == (model, settings, {})


def test_training_says_where_its_file_cannot_go(run, tmp_path, capsys):
    line = ["train", run, "--component", "partiality", "--out", tmp_path / "no" / "curve.eqx"]
    assert "no such folder for --out" in failed(line, capsys)
