import numpy as np
import pytest
from scipy.linalg import expm

import zeroloss as zl
from zeroloss.problems._phase_retrieval import least_norm

PROBLEM = zl.problems.load("phase_retrieval")
POINT = zl.project(PROBLEM.problem.with_noise(zl.LabelNoise(0.1)), PROBLEM.start)


@pytest.mark.parametrize("noise", ["label", "weight"])
def test_the_hessian_is_constant_so_nothing_happens(noise):
    system = PROBLEM.problem.with_noise(zl.problems.parse_noise(PROBLEM, noise))
    assert zl.classify(system, POINT).name == "trivial"


def test_dropconnect_in_closed_form():
    """On the affine space a_i^T w = s_i sqrt(y_i) Reg is quadratic, with Hessian 2 D = (4/N) diag(d).

    dw/dt = -P D' w with D' = (4/N) diag(d) and the constant projection P on the kernel of A.
    """
    system = PROBLEM.problem.with_noise(zl.GaussianDropConnect(0.1))
    inputs, targets = np.asarray(PROBLEM.problem.inputs), np.asarray(PROBLEM.problem.targets)
    number, dimension = inputs.shape
    pull = 4 / number * np.diag(targets @ inputs**2)
    start = np.asarray(POINT)
    signed = np.sign(inputs @ start) * np.sqrt(targets)
    end = np.linalg.solve(pull, inputs.T)
    end = end @ np.linalg.solve(inputs @ end, signed)
    np.testing.assert_allclose(least_norm(POINT, PROBLEM.problem.inputs), end, atol=1e-12)
    projection = np.eye(dimension) - np.linalg.pinv(inputs) @ inputs
    times = [0.0, 1.0, 10.0, 600.0]
    path = zl.limit(system, POINT, zl.Saves(at=times))
    expected = [end + expm(-t * projection @ pull) @ (start - end) for t in times]
    # integrated to a relative 1e-8; the slowest of the ten rates is 0.047, and exp(-28) is nothing
    np.testing.assert_allclose(path.params, expected, atol=1e-7)
    assert path.regularizer[0] == pytest.approx(start @ pull @ start / 2, rel=1e-10)
