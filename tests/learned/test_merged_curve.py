"""A curve learned with the scales of a merge: the Gaussian among its values, a Lorentzian found."""

import json
from functools import partial

import gemmi
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_refine import cli, infer, load_model, physics
from bayes_refine.merging import scaling
from bayes_refine.merging.observations import prepare
from bayes_refine.simulation.unmerged import UnmergedSimulation, simulate_unmerged

pytest.importorskip("equinox")
from bayes_refine.learned.curve import Curve
from bayes_refine.learned.merged_curve import with_learned_curve


def test_it_is_the_latent_model_where_the_curve_is_gaussian():
    obs = prepare(simulate_unmerged(UnmergedSimulation(n_images=6, each=30)).data)
    priors = scaling.ScalingPriors()
    gaussian = np.array([-30.0, -30, 0, 0, 0, 0, 0, 0])
    values = {"log_G": np.asarray(obs.log_G0), "log_Sigma": np.asarray(obs.log_Sigma0)}
    one = infer.evaluate(
        with_learned_curve(load_model("latent")), values | {"curve": gaussian}, obs, priors
    )
    two = partial(load_model("latent"), partiality=physics.gaussian)
    two = infer.evaluate(two, values, obs, priors)
    np.testing.assert_allclose(one["log_integrand"], two["log_integrand"], rtol=1e-9)


@pytest.mark.parametrize("offset", [True, False])
def test_the_command_line_learns_a_curve_of_ewald_offsets(offset, tmp_path, capsys):
    simulated = simulate_unmerged(UnmergedSimulation(n_images=6, each=60, n_unique=60)).data
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = simulated.space_group
    mtz.set_cell_for_all(simulated.cell)
    mtz.add_dataset("d")
    columns = {"M/ISYM": "Y", "BATCH": "B", "I": "J", "SIGI": "Q"}
    values = [simulated.isym, simulated.image + 1, simulated.J, simulated.sigma]
    if offset:
        columns["EPSILON_R"] = "R"
        values.append(simulated.excitation_error)
    for label, kind in columns.items():
        mtz.add_column(label, kind, dataset_id=1)
    mtz.set_data(np.column_stack([simulated.hkl_asu, *values]).astype(np.float32))
    mtz.write_to_file(str(tmp_path / "unmerged.mtz"))
    line = [tmp_path / "unmerged.mtz", "--learn-curve", "--out", tmp_path / "out", "--draws", 4]
    with pytest.raises(SystemExit) as end:
        cli.main(["merge", *map(str, line)])
    if not offset:
        assert end.value.code == 2 and "has no Ewald offsets" in capsys.readouterr().err
        return
    assert not end.value.code
    summary = json.loads((tmp_path / "out" / "summary.json").read_text("utf-8"))
    assert len(summary["prior_numbers"]["curve"]) == 8


@pytest.mark.slow
def test_the_lorentzian_of_a_simulated_run_is_found_within_its_band():
    simulated = simulate_unmerged(UnmergedSimulation(n_images=150, each=200, n_unique=800))
    found = scaling.fit_scales(prepare(simulated.data), with_learned_curve(load_model("latent")))
    mean = found.shared["curve"][0]
    x = jnp.linspace(-3.0, 3.0, 13)
    value = np.asarray(Curve.of(jnp.asarray(mean)).shape(x))
    draws = infer.laplace_draws(found.fit, 100, rng=np.random.default_rng(0))["curve"]
    each = jax.vmap(lambda numbers: Curve.of(numbers).shape(x))(jnp.asarray(draws))
    band = np.asarray(jnp.sqrt(jnp.mean((each - value) ** 2, 0)))
    truth = -np.log1p((np.e - 1) * np.asarray(x) ** 2)
    assert np.all(np.abs(value - truth) < 3 * band + 0.1)  # three Gaussians are no Lorentzian
    assert np.abs(value + np.asarray(x) ** 2).max() > 3  # nor is a Lorentzian a Gaussian
