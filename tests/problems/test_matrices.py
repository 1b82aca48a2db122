"""Matrix sensing and completion with U V^T, against convex programs that know nothing of factors."""

import numpy as np
import pytest

import zeroloss as zl
from zeroloss.problems._matrix_sensing import product


def measurements_of(problem):
    """The A_i as an array `[N, rows, columns]`."""
    if problem.name == "matrix_sensing":
        return np.asarray(problem.problem.inputs)
    row, column = map(np.asarray, problem.problem.inputs)
    matrices = np.zeros((len(row), *problem.truth.shape))
    matrices[np.arange(len(row)), row, column] = 1.0
    return matrices


def root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values)) @ vectors.T


def nuclear_norm(matrix):
    return np.linalg.svd(matrix, compute_uv=False).sum()


def least_weighted_nuclear_norm(matrices, targets, left, right):
    """The M with <A_i, M> = y_i and the least |left M right|_*, by Douglas-Rachford splitting."""
    unleft, unright = np.linalg.inv(left), np.linalg.inv(right)
    constraints = np.stack([(unleft @ matrix @ unright).ravel() for matrix in matrices])
    inverse = np.linalg.pinv(constraints)

    def feasible(flat):
        return flat - inverse @ (constraints @ flat - targets)

    shape = matrices.shape[1:]
    z = np.zeros(matrices[0].size)
    threshold = np.linalg.norm(feasible(z).reshape(shape), 2)
    for _ in range(50_000):
        x = feasible(z)
        u, s, v = np.linalg.svd((2 * x - z).reshape(shape), full_matrices=False)
        shrunk = ((u * np.maximum(s - threshold, 0)) @ v).ravel()
        z = z + shrunk - x
        if np.linalg.norm(shrunk - x) <= 1e-11 * np.linalg.norm(x):
            return unleft @ shrunk.reshape(shape) @ unright
    raise AssertionError("Douglas-Rachford did not converge")


@pytest.mark.parametrize(
    "problem,t1",
    [
        (zl.problems.matrix_sensing(6, 6, rank=2, width=6, measurements=20), 800.0),
        (zl.problems.matrix_completion(6, 6, rank=2, width=6, observed=20), 20_000.0),
    ],
    ids=["sensing", "completion"],
)
def test_label_noise_minimizes_a_nuclear_norm(problem, t1):
    """tr H = tr V^T S_R V + tr U^T S_L U, at least 2 |S_L^(1/2) M S_R^(1/2)|_* for the product M."""
    matrices, targets = measurements_of(problem), np.asarray(problem.problem.targets)
    number = len(targets)
    on_rows = np.einsum("irc,isc->rs", matrices, matrices) / number
    on_columns = np.einsum("irc,ird->cd", matrices, matrices) / number
    system = problem.problem.with_noise(zl.LabelNoise(0.1))
    path = zl.limit(system, zl.project(system, problem.start), zl.Saves(at=[0.0, t1]))
    for time in (0, 1):
        u, v = path.params["left"][time], path.params["right"][time]
        trace = np.trace(v.T @ on_columns @ v) + np.trace(u.T @ on_rows @ u)
        assert path.hessian_trace[time] == pytest.approx(trace, rel=1e-10)
    best = least_weighted_nuclear_norm(matrices, targets, root(on_rows), root(on_columns))
    least = 2 * nuclear_norm(root(on_rows) @ best @ root(on_columns))
    assert path.hessian_trace[0] > 1.2 * least
    # the flow's last error decays exponentially, to 1e-6 well before t1; 1e-6 is what is compared to
    assert path.hessian_trace[-1] == pytest.approx(least, rel=1e-6)
    np.testing.assert_allclose(product(path.final), best, atol=1e-6 * np.abs(best).max())


def test_noise_on_the_inputs_finds_the_least_frobenius_norm():
    """Reg = 1/2N sum_i |U V^T|^2 = |M|^2 / 2, so M is the pseudo-inverse solution."""
    problem = zl.problems.matrix_sensing(4, 4, rank=2, width=4, measurements=10)
    matrices, targets = measurements_of(problem), np.asarray(problem.problem.targets)
    system = problem.problem.with_noise(zl.InputNoise(0.1))
    path = zl.limit(system, zl.project(system, problem.start), zl.Saves(at=[0.0, 100.0]))
    best = (np.linalg.pinv(matrices.reshape(10, 16)) @ targets).reshape(4, 4)
    assert path.regularizer[-1] == pytest.approx(np.sum(best**2) / 2, rel=1e-6)
    np.testing.assert_allclose(product(path.final), best, atol=1e-6 * np.abs(best).max())


def test_dropout_with_all_entries_observed():
    """The least sum_h |u_h|^2 |v_h|^2 is |M|_*^2 / width, all units alike.

    Cavazza et al. (2018); Mianjy, Arora and Vidal (2018).
    """
    width = 6
    problem = zl.problems.matrix_completion(4, 4, rank=4, width=width, observed=16)
    system = problem.problem.with_noise(zl.problems.parse_noise(problem, "dropout:0.01"))
    path = zl.limit(system, zl.project(system, problem.start), zl.Saves(at=[0.0, 400.0]))
    least = nuclear_norm(np.asarray(problem.truth)) ** 2 / (2 * 16 * width)
    assert path.regularizer[0] > 2 * least
    # measured 9e-4 above the least at t = 100 and nothing at t = 1000: the excess decays exponentially
    assert path.regularizer[-1] == pytest.approx(least, rel=1e-7)
    sizes = np.linalg.norm(path.final["left"], axis=0) * np.linalg.norm(path.final["right"], axis=0)
    np.testing.assert_allclose(sizes, sizes.mean(), rtol=1e-3)


def test_every_row_and_column_is_observed():
    for rows, columns, observed in [(8, 5, 8), (5, 8, 11), (6, 6, 36)]:
        problem = zl.problems.matrix_completion(rows, columns, observed=observed, width=5)
        row, column = map(np.asarray, problem.problem.inputs)
        assert len(set(zip(row.tolist(), column.tolist(), strict=True))) == observed
        assert set(row) == set(range(rows)) and set(column) == set(range(columns))
        np.testing.assert_array_equal(problem.problem.targets, problem.truth[row, column])
