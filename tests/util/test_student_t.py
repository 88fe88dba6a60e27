"""Student's t-law against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bayes_refine.util.student_t import log_student_t, log_student_t_less_constant

X, MEAN, SCALE = np.linspace(-9, 9, 19), 0.3, np.linspace(0.2, 3, 19)


@pytest.mark.parametrize("nu", [1.5, 4.0, 80.0, np.inf])
def test_density_is_scipys(nu):
    np.testing.assert_allclose(
        log_student_t(X, nu, MEAN, SCALE), stats.t(nu, MEAN, SCALE).logpdf(X), rtol=1e-11
    )


@pytest.mark.parametrize("nu", [1.5, 4.0, 80.0, np.inf])
def test_density_less_a_constant(nu):
    found = log_student_t(X, nu, MEAN, SCALE) - log_student_t_less_constant(X - MEAN, nu, SCALE**2)
    np.testing.assert_allclose(found, found[0], atol=1e-11)
