import jax
import numpy as np
import pytest
from scipy.optimize import linprog

import zeroloss as zl
from zeroloss.problems._sparse_regression import coefficients


def test_label_noise_recovers_the_truth():
    """As the linear program does, and at a rate that another linear program says.

    tr H = 4/N sum_j S_j v_j^2 with S_j = sum_i x_ij^2, so d log v_j^2 / dt = -4/N^2 (S_j - x_j^T mu), where
    the multipliers mu keep sum_j x_j d(v_j^2)/dt = 0. Off the support, that takes more coefficients of one
    and the same, slowest, rate than there are dimensions left: mu makes the least gap S_j - x_j^T mu as large
    as it can be, given gaps of 0 on the support.

    In the end five coefficients are left for forty residuals: the spectrum of the Gram matrix
    4 X diag(v^2) X^T is wider than its rounding allows, and its eigenvalues come from singular values.
    """
    problem = zl.problems.sparse_regression()
    inputs, targets = np.asarray(problem.problem.inputs), np.asarray(problem.problem.targets)
    weights = (inputs**2).sum(axis=0)
    program = linprog(weights, A_eq=inputs, b_eq=targets, bounds=(0, None))
    assert program.success
    np.testing.assert_allclose(program.x, problem.truth, atol=1e-12)  # the truth is what the program finds
    system = problem.problem.with_noise(zl.LabelNoise(0.3))
    start = zl.project(system, problem.start)
    path = zl.limit(system, start, zl.Saves(at=[0.0, 180.0, 200.0, 400.0], observables=problem.observables))
    distances = path.observables["distance_to_truth"]
    assert distances[0] > 0.1 and distances[2] < 1e-6 and distances[-1] < 1e-8
    assert path.loss.max() < 1e-20
    off = np.asarray(problem.truth) == 0
    widest = linprog(
        [*np.zeros(len(targets)), -1.0],
        A_ub=np.column_stack([inputs.T, np.ones(len(weights))])[off],
        b_ub=weights[off],
        A_eq=np.column_stack([inputs.T, np.zeros(len(weights))])[~off],
        b_eq=weights[~off],
        bounds=(None, None),
    )
    rate = 4 / len(targets) ** 2 * widest.x[-1]
    # faster coefficients have not quite died out yet
    assert np.log(distances[1] / distances[2]) / 20 == pytest.approx(rate, rel=0.01)
    np.testing.assert_allclose(coefficients(path.final), program.x, atol=1e-8)


def test_minibatches_and_plain_gradient_descent_stay_at_their_interpolator():
    problem = zl.problems.sparse_regression()
    batches = problem.problem.with_noise(zl.MiniBatch(8))
    start = zl.project(batches, problem.start)
    assert problem.observables["distance_to_truth"](start) > 0.1
    assert zl.classify(batches, start).name == "trivial"
    path = zl.limit(batches, start, zl.Saves(at=[0.0, 400.0]))
    np.testing.assert_array_equal(path.final["positive"], start["positive"])
    slope = jax.grad(problem.problem.loss)(start)["positive"]
    assert np.abs(slope).max() < 1e-10  # gradient descent without noise has nowhere to go
    trained = zl.descend(batches, start, 1e-3, 2000, key=jax.random.key(0), replicas=2)
    assert np.abs(trained.final["positive"] - start["positive"]).max() < 1e-12


@pytest.mark.parametrize("noise", ["input", "gaussian-dropconnect"])
def test_noise_that_leads_to_least_squares(noise):
    """Noise on the inputs minimizes |beta|^2 / 2, DropConnect 2/N sum_j S_j (u_j^4 + v_j^4).

    The latter is at least 2/N sum_j S_j beta_j^2, and just that where u_j v_j = 0. Both have a closed form:
    the pseudo-inverse, weighted by S or not.
    """
    problem = zl.problems.sparse_regression(dimension=12, examples=6, nonzeros=3, signed=True)
    inputs, targets = np.asarray(problem.problem.inputs), np.asarray(problem.problem.targets)
    roots = np.sqrt((inputs**2).sum(axis=0)) if noise == "gaussian-dropconnect" else np.ones(12)
    expected = np.linalg.pinv(inputs / roots) @ targets / roots
    system = problem.problem.with_noise(zl.problems.parse_noise(problem, noise))
    path = zl.limit(system, zl.project(system, problem.start), zl.Saves(at=[0.0, 300.0]))
    np.testing.assert_allclose(coefficients(path.final), expected, atol=1e-6)
