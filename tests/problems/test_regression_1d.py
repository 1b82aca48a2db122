import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize

import zeroloss as zl
from zeroloss.problems._regression_1d import Network


def test_label_noise_ends_where_no_optimizer_finds_a_smaller_trace():
    """SLSQP on tr H, subject to interpolation, from where the limit ends: an independent local minimum."""
    problem = zl.problems.regression_1d(width=10, examples=4, scale=3.0)
    system = problem.problem.with_noise(zl.LabelNoise(0.1))
    path = zl.limit(system, zl.project(system, problem.start), zl.Saves(at=[0.0, 10_000.0]))
    w, unravel = ravel_pytree(path.final)
    inputs, targets = problem.problem.inputs, problem.problem.targets

    def residuals(w):
        return problem.problem.model(unravel(w), inputs) - targets

    jacobian = jax.jit(jax.jacrev(residuals))
    trace = jax.jit(lambda w: (jacobian(w) ** 2).sum() / 4)
    slope = jax.jit(jax.grad(trace))
    assert path.hessian_trace[-1] == pytest.approx(float(trace(w)), rel=1e-12)
    gradient, rows = np.asarray(slope(w)), np.asarray(jacobian(w))
    multipliers = np.linalg.lstsq(rows.T, gradient, rcond=None)[0]
    # what is left of the gradient, tangential, decays with the slowest rate of the flow
    assert np.linalg.norm(gradient - rows.T @ multipliers) < 1e-5 * np.linalg.norm(gradient)
    found = minimize(
        lambda w: float(trace(w)),
        np.asarray(w),
        jac=lambda w: np.asarray(slope(w)),
        constraints={
            "type": "eq",
            "fun": lambda w: np.asarray(residuals(w)),
            "jac": lambda w: np.asarray(jacobian(w)),
        },
        method="SLSQP",
        options={"maxiter": 200, "ftol": 1e-12},
    )
    # the trace lies above its minimum by the square of that gradient, times the stiffness of the flow
    assert found.success and found.fun == pytest.approx(path.hessian_trace[-1], rel=1e-8)
    assert path.hessian_trace[0] > 3 * path.hessian_trace[-1]


@pytest.mark.parametrize("activation", ["gelu", "tanh"])
def test_the_network_is_what_it_says(activation):
    problem = zl.problems.regression_1d(activation, width=5, examples=3)
    start, x = {name: np.asarray(leaf) for name, leaf in problem.start.items()}, 0.4
    act = jax.nn.gelu if activation == "gelu" else np.tanh
    by_hand = start["outputs"] @ np.asarray(act(start["slopes"] * x + start["biases"]))
    assert float(Network(activation)(problem.start, jnp.array([x]))[0]) == pytest.approx(by_hand)


def test_roughness_is_the_variation_of_the_slope():
    problem = zl.problems.regression_1d("tanh", width=1)
    params = {"slopes": [1.0], "biases": [0.0], "outputs": [1.0], "offset": 0.0}
    params = jax.tree.map(np.asarray, params, is_leaf=lambda leaf: isinstance(leaf, list))
    # the slope of tanh is 1 - tanh^2: up and down once, between -1 and 1, on a grid with step 1/200
    assert float(problem.observables["roughness"](params)) == pytest.approx(2 * np.tanh(1) ** 2, abs=0.01)
