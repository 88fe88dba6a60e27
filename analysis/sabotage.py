"""Would the fast tests notice a broken likelihood?

The library is broken in memory, one thing at a time, and the tests are run on it: the Gaussian's
−ln σ left out, the counting variance of J four times too large or small, rotations that turn
the wrong way.  Prints which tests fail; with nothing broken none may.

    python analysis/sabotage.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

from bayes_refine.physics import expected, spot

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("physics/test_forward.py", "models/test_calibration.py", "models/test_still.py")
# tests that break the likelihood themselves say the same, inside the suite
HONEST = "not broken and not noticed"


def nothing() -> None:
    """The library as it is."""


def no_log_sigma() -> None:
    """Σ r² alone: large σ is rewarded.  The priors' σ are constants, so they do not change."""

    def flat(log_prob):
        return lambda self, value: log_prob(self, value) + jnp.log(self.scale)

    for kind in (dist.Normal, dist.StudentT):
        kind.log_prob = flat(kind.log_prob)


def variance_of_J(factor: float) -> None:
    """Counting variance of the total."""
    true = expected.counting_variance
    expected.counting_variance = lambda *args: true(*args).at[:, 0].multiply(factor)


def wrong_turn() -> None:
    """exp([ω]×) becomes exp(−[ω]×)."""
    true = spot.rotation_matrix_mrad
    spot.rotation_matrix_mrad = lambda rotation_mrad: true(-rotation_mrad)


BREAKS = {
    "nothing": nothing,
    "−ln σ": no_log_sigma,
    "variance of J × 4": lambda: variance_of_J(4.0),
    "variance of J / 4": lambda: variance_of_J(0.25),
    "sign of ω": wrong_turn,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--break", dest="what", choices=BREAKS, help="one of them, in this process")
    options = parser.parse_args()
    if options.what:
        jax.config.update("jax_enable_x64", True)
        BREAKS[options.what]()
        tests = [str(ROOT / "tests" / name) for name in TESTS]
        sys.exit(pytest.main(["-q", "--no-header", "--tb=no", "-rf", "-k", HONEST, *tests]))
    for what in BREAKS:
        command = [sys.executable, __file__, "--break", what]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        lines = done.stdout.strip().splitlines()
        failed = [x.removeprefix("FAILED ").split(" - ")[0] for x in lines if "FAILED" in x]
        print(f"broken: {what}: {lines[-1] if lines else done.stderr}")
        for name in failed:
            print(f"    {name}")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
