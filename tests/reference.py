"""Dense, naive reference for the formulas of theory.md, sections 1 to 4.

Independent of the package on purpose: full Hessians, full third derivatives, every batch in turn.
Use it only for a handful of parameters, with jax in float64.

Losses have the form `noisy_loss(w, eta)`, the L-hat of theory.md, section 1, with flat vectors w of
shape (d,) and eta of shape (n,). The noise is standardized: at sigma = 1 its covariance is the
identity. Capital letters are the symbols of theory.md. The drifts hold for w on the zero-loss set;
slightly off it, as within the steps of an integrator, pass the `rank` of the Hessian.
"""

import itertools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

NoisyLoss = Callable[[jax.Array, jax.Array], jax.Array]
ExampleLoss = Callable[[jax.Array, jax.Array, int], jax.Array]


def regularizer(noisy_loss: NoisyLoss, w: jax.Array, n: int) -> jax.Array:
    """Compute Reg(w) of theory.md, section 1: half the trace of the Hessian in eta at eta = 0."""
    return jnp.trace(jax.hessian(noisy_loss, argnums=1)(w, jnp.zeros(n))) / 2


def first_order_noise(noisy_loss: NoisyLoss, w: jax.Array, n: int) -> np.ndarray:
    """Compute G(w) of theory.md, section 1: the d x n derivative in eta of the gradient in w."""
    gradient = jax.jacrev(noisy_loss, argnums=0)
    return np.asarray(jax.jit(jax.jacfwd(gradient, argnums=1))(jnp.asarray(w), jnp.zeros(n)))


def projectors(
    noisy_loss: NoisyLoss, w: jax.Array, n: int, rank: int | None = None, tol: float = 1e-7
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Compute H, P_N, P_T and the pseudo-inverse of H, as defined in theory.md, section 1.

    The normal space is spanned by the eigenvectors of the `rank` eigenvalues of largest magnitude;
    by default, of those larger in magnitude than `tol` times the largest.
    """
    H = np.asarray(jax.jit(jax.hessian(lambda v: noisy_loss(v, jnp.zeros(n))))(jnp.asarray(w)))
    values, vectors = np.linalg.eigh((H + H.T) / 2)
    size = np.abs(values)
    if rank is None:
        rank = int(np.sum(size > tol * size.max()))
    chosen = np.argsort(-size)[:rank]
    values, vectors = values[chosen], vectors[:, chosen]
    P_N = vectors @ vectors.T
    return H, P_N, np.eye(len(H)) - P_N, vectors @ np.diag(1 / values) @ vectors.T


def third_derivative(noisy_loss: NoisyLoss, w: jax.Array, n: int) -> np.ndarray:
    """Compute the d x d x d third derivative of L, which defines T in theory.md, section 2."""

    def loss(v: jax.Array) -> jax.Array:
        return noisy_loss(v, jnp.zeros(n))

    return np.asarray(jax.jit(jax.jacfwd(jax.hessian(loss)))(jnp.asarray(w)))


def contract(third: np.ndarray, M: np.ndarray) -> np.ndarray:
    """Compute T[M] of theory.md, section 2, from the full third derivative and a d x d matrix M."""
    return np.einsum("ijk,jk->i", third, M)


def lyapunov(H: np.ndarray, P_N: np.ndarray, S: np.ndarray, step_size: float = 0.0) -> np.ndarray:
    """Solve H C + C H - step_size H C H = P_N S P_N for C on the normal space.

    This is the Lyapunov equation of theory.md, section 2, and for a positive step size the Stein
    equation of section 5. It is written out as one linear system for all entries of C.
    """
    basis = scipy.linalg.orth(P_N, rcond=0.5)  # a projector has singular values 0 and 1
    h = basis.T @ H @ basis
    s = basis.T @ S @ basis
    if step_size and step_size * np.linalg.eigvalsh(h).max(initial=0.0) >= 2:
        raise ValueError("step_size must be less than 2 / largest eigenvalue of H")
    identity = np.eye(len(h))
    system = np.kron(h, identity) + np.kron(identity, h) - step_size * np.kron(h, h)
    return basis @ np.linalg.solve(system, s.reshape(-1)).reshape(s.shape) @ basis.T


def first_drift(noisy_loss: NoisyLoss, w: jax.Array, n: int, rank: int | None = None) -> np.ndarray:
    """Compute - P_T grad Reg, the non-degenerate slow flow of theory.md, section 2."""
    _, _, P_T, _ = projectors(noisy_loss, w, n, rank)
    gradient = jax.jit(jax.grad(lambda v: regularizer(noisy_loss, v, n)))(jnp.asarray(w))
    return -P_T @ np.asarray(gradient)


def second_drift(
    noisy_loss: NoisyLoss,
    w: jax.Array,
    n: int,
    step_size: float = 0.0,
    covariance: np.ndarray | None = None,
    rank: int | None = None,
    third: np.ndarray | None = None,
) -> np.ndarray:
    """Compute b, the drift of the degenerate case in theory.md, section 2.

    It is the sum of the normal, mixed and Lyapunov terms; with a positive step size it is D_2 of
    section 5. `covariance`, d x d, replaces Sigma = G G^T when it is given, and `third_derivative` the third
    derivative of L, which does not depend on the noise.
    """
    H, P_N, P_T, pseudo_inverse = projectors(noisy_loss, w, n, rank)
    if covariance is None:
        G = first_order_noise(noisy_loss, w, n)
        covariance = G @ G.T
    third = third_derivative(noisy_loss, w, n) if third is None else third
    C = lyapunov(H, P_N, covariance, step_size)
    normal = -pseudo_inverse @ contract(third, P_T @ covariance @ P_T) / 2
    mixed = -P_T @ contract(third, pseudo_inverse @ P_N @ covariance @ P_T)
    return normal + mixed - P_T @ contract(third, C) / 2


def minibatch_covariance(
    example_loss: ExampleLoss,
    w: jax.Array,
    number: int,
    n: int,
    batch: int,
    replace: bool = False,
    shared: bool = False,
    strength: float = 1.0,
) -> np.ndarray:
    """Compute the Sigma of minibatches with another noise, theory.md, section 4, at sigma = 1.

    The loss of one step is 1/N sum_i c_i example_loss(w, eta_i, i), with N = `number` examples and
    c_i = 1 + `strength` (b_i - 1), b_i being N / `batch` times how often the batch contains example i.
    Every example has its own noise eta_i of dimension n, or all have the same one if `shared`; an example
    drawn twice in a batch has one noise. Sigma is the average of G_c G_c^T over all batches, which are
    equally likely.
    """
    noises = [first_order_noise(lambda v, eta, i=i: example_loss(v, eta, i), w, n) for i in range(number)]
    batches: Iterable[tuple[int, ...]] = (
        itertools.product(range(number), repeat=batch)
        if replace
        else itertools.combinations(range(number), batch)
    )
    products = []
    for chosen in batches:
        counts = [1 + strength * (number / batch * chosen.count(i) - 1) for i in range(number)]
        weighted = [counts[i] * noises[i] / number for i in range(number)]
        G = np.sum(weighted, axis=0) if shared else np.hstack(weighted)
        products.append(G @ G.T)
    return np.mean(products, axis=0)
