"""The files that the how-tos show, written as they stand there, do what is said of them."""

from __future__ import annotations

import importlib.util
import os
import pickle
import re
import sys
from functools import partial
from pathlib import Path

import gemmi
import jax
import numpy as np
import pytest
from numpyro import handlers

import bayes_refine as br
from bayes_refine import infer
from bayes_refine.fitting import problem, start
from bayes_refine.fitting.measure_run import Plan, measure_run
from bayes_refine.fitting.problem import prepare_run
from bayes_refine.infer.executor import tree_sum
from bayes_refine.loading import needs_metadata
from bayes_refine.physics.contract import check_deterministic, check_unknowns
from bayes_refine.util.progress import SILENT

DOCS = Path(__file__).resolve().parents[1] / "docs" / "how-to"
SMALL = br.Simulation(n_images=3, n_pixels=128, distance_mm=30.0, d_min=4.0, seed=3)


def shown(page: str) -> dict[str, str]:
    """Files of a page by name: blocks of Python whose first line is a comment with the name."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(# (\w+\.py).*?)^```", text, re.MULTILINE | re.DOTALL)
    return {name: block for block, name in blocks}


MODELS = {
    name: text for page in ("new-model", "new-partiality") for name, text in shown(page).items()
}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    return br.simulate_run(SMALL, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def observations(simulated):
    """Statistics of three small images at the priors."""
    reference = br.read_reference(simulated.parent / "reference.mtz")
    experiments = br.read_experiments(simulated)
    with br.ImageReader() as reader:
        settings = br.Settings(d_min=SMALL.d_min, metadata=True)
        run = prepare_run(
            experiments.stills, reference, reader, br.load_model("still"), br.Priors(), settings
        )
        status = np.full(len(experiments), "", dtype=object)
        return measure_run(run, {}, br.Priors(), status, Plan(), 2.4, SILENT).observations.whole()


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_the_how_tos_is_one(name, observations, tmp_path):
    """Its unknowns and sites are what the loop asks for, and a draw of its priors is finite."""
    path = tmp_path / name
    path.write_text(MODELS[name], encoding="utf-8")
    model, priors = br.load_model(path), br.load_priors(path)
    check_unknowns(infer.sites_of(model, (observations, priors)))

    @jax.jit
    def drawn(observations, priors):
        trace = handlers.trace(handlers.seed(model, 1)).get_trace(observations, priors)
        return {k: site["value"] for k, site in trace.items() if site["type"] == "deterministic"}

    sites = drawn(observations, priors)
    check_deterministic(sites)
    assert all(np.isfinite(value).all() for value in sites.values())


def test_priors_of_a_model_are_reached_by_a_file_of_priors(observations, tmp_path):
    path = tmp_path / "pseudo_voigt_share.py"
    path.write_text(MODELS[path.name], encoding="utf-8")
    (tmp_path / "my.toml").write_text("lorentzian_share_b = 10\nlog_G_sd = 1.0\n")
    defaults = br.load_priors(path)
    priors = br.read_priors(tmp_path / "my.toml", defaults)
    assert (defaults.lorentzian_share_b, priors.lorentzian_share_b, priors.log_G_sd) == (3, 10, 1)
    # data of compiled code, as the others are: another number compiles nothing new
    assert 10 in jax.tree.leaves(priors)
    law = handlers.trace(handlers.seed(br.load_model(path), 0)).get_trace(observations, priors)
    assert law["lorentzian_share"]["fn"].concentration0 == 10
    (tmp_path / "my.toml").write_text("lorentzian_share_b = 1000\n")
    with pytest.raises(br.InputError, match="lorentzian_share_b must be from"):
        br.read_priors(tmp_path / "my.toml", defaults)


def test_the_small_network_can_learn(observations, tmp_path):
    """The scale has a slope along each weight where a fit starts."""
    path = tmp_path / "three_weights.py"
    path.write_text(MODELS[path.name], encoding="utf-8")
    model, priors = handlers.seed(br.load_model(path), 1), br.load_priors(path)

    @jax.jit
    def total(weights):
        run = handlers.substitute(model, data={"weights": weights})
        return handlers.trace(run).get_trace(observations, priors)["scale"]["value"].sum()

    assert needs_metadata(path) and np.all(jax.grad(total)(np.zeros(3)) != 0)


def test_a_model_file_asks_for_metadata(tmp_path):
    (tmp_path / "a.py").write_text("METADATA = True\n\n\ndef model(obs, priors):\n    pass\n")
    (tmp_path / "b.py").write_text("def model(obs, priors):\n    pass\n")
    assert [needs_metadata(tmp_path / f"{name}.py") for name in "ab"] == [True, False]


def test_priors_that_are_not_declared_are_refused(tmp_path):
    (tmp_path / "m.py").write_text(
        "import bayes_refine as br\n\n\nclass Priors(br.Priors):\n    a: float = 1.0\n\n\n"
        "def model(obs, priors):\n    pass\n"
    )
    with pytest.raises(br.InputError, match="write @declare_priors above class Priors"):
        br.load_priors(tmp_path / "m.py")


@pytest.fixture
def my_format(simulated, tmp_path, monkeypatch):
    """The reader of the how-to as a module, and files of its format."""
    experiments = br.read_experiments(simulated)
    lines = []
    with br.ImageReader() as reader:
        for n, still in enumerate(experiments.stills):
            counts, valid = reader.counts(still)
            np.save(tmp_path / f"{n}.npy", np.where(valid, counts, -1)[0])
            lines.append(f"{n}.npy {' '.join(str(float(x)) for x in still.crystal.A.ravel())}")
    (tmp_path / "my.txt").write_text("\n".join(lines))
    (tmp_path / "my_format.py").write_text(shown("new-reader")["my_format.py"], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = importlib.util.spec_from_file_location("my_format", tmp_path / "my_format.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, experiments


def test_the_reader_reads_what_is_in_the_files(my_format):
    module, experiments = my_format
    found = module.read_experiments("my.txt")
    assert [s.identifier for s in found.stills] == ["shot-0", "shot-1", "shot-2"]
    with module.Images(gain=2.0) as mine, br.ImageReader(gain=2.0) as theirs:
        for one, other in zip(found.stills, experiments.stills, strict=True):
            np.testing.assert_allclose(one.crystal.A, other.crystal.A, rtol=1e-12)
            photons, valid = mine.read(one)
            expected, usable = theirs.read(other)
            np.testing.assert_array_equal(valid, usable)
            np.testing.assert_array_equal(photons[valid], expected[usable])
        Path("1.npy").write_bytes(b"no array")
        with pytest.raises(br.InputError, match=r"1\.npy: cannot be read"):
            mine.read(found.stills[1])
        # another object with the two methods is as good; an image less sinks no run
        prepared = br.prepare(found, mine, d_min=4.0)
        assert len(prepared.experiments.stills) == 2 and "1.npy" in prepared.unread[0][1]


@pytest.fixture
def two_processes(tmp_path, monkeypatch):
    """The executor of the how-to, as a module that other processes can import."""
    for name, text in shown("new-executor").items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    yield importlib.import_module("two_processes")
    del sys.modules["two_processes"]


def test_the_executor_of_the_how_to_is_one(two_processes):
    """Items in order, a value that is shared, a sum that is the same in any process."""
    values, counted = np.random.default_rng(0).normal(size=(7, 5)), []
    with two_processes.TwoProcesses() as executor:
        shared = executor.share(values)
        found = executor.map(partial(np.add, 1.0), list(values), counted.append)
        total, own = executor.reduce(np.modf, list(values))
        assert len(pickle.dumps(shared)) < 1000
        np.testing.assert_array_equal(shared.get(), values)
    np.testing.assert_array_equal(found, values + 1)
    assert counted == list(range(1, 8)) and len(own) == 7
    np.testing.assert_array_equal(total, tree_sum([np.modf(x)[0] for x in values]))


@pytest.mark.slow
def test_two_processes_fit_a_run_as_one_does(two_processes, simulated, monkeypatch, tmp_path):
    """In batches of two images, so that three images are two batches."""
    for module in (problem, start):
        monkeypatch.setattr(module, "BATCH", 2)
    text = shown("new-executor")["fit_in_two_processes.py"].replace("indexed.expt", str(simulated))
    exec(compile(text, "fit_in_two_processes.py", "exec"), {"__name__": "__main__"})
    with br.ImageReader() as reader:
        prepared = br.prepare(br.read_experiments(simulated), reader, d_min=4.0)
        alone = br.fit(prepared, br.load_model("still"), settings=br.Settings(rounds=2))
        br.write_results("alone", alone, prepared)
    same = [gemmi.read_mtz_file(f"{name}/unmerged.mtz").array for name in ("fitted", "alone")]
    np.testing.assert_array_equal(*same)


@pytest.mark.slow
def test_a_run_in_the_format_of_the_how_to_is_fitted(my_format):
    text = shown("new-reader")["fit_my_format.py"]
    exec(compile(text, "fit_my_format.py", "exec"), {"__name__": "__main__"})
    assert Path("fitted/merged.mtz").is_file() and Path("fitted/refined.expt").is_file()
