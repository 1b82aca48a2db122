"""Every way of using a parameter that the structure must see through, against a dense Jacobian."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import zeroloss as zl
from zeroloss.errors import InputError
from zeroloss.jacobians import _rows, analyse

N, A, B, K, T = 5, 4, 3, 2, 6
VOCABULARY = 7


@dataclasses.dataclass
class Case:
    model: Callable
    params: dict[str, Any]  # shapes
    kinds: dict[str, str]
    inputs: Any = (A,)  # the shape of one example's


def scan_model(p, x):
    def step(h, row):
        return jnp.tanh(row @ p["in"] + h @ p["w"]), None

    h = jax.lax.scan(step, jnp.zeros((x.shape[0], B), x.dtype), jnp.moveaxis(x, 1, 0))[0]
    return h @ p["out"]


def attention(p, x):
    q, k, v = (x @ p[name] for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("nti,nsi->nts", q, k))
    h = x + jnp.einsum("nts,nsi->nti", weights, v)
    centred = h - h.mean(-1, keepdims=True)
    h = centred / jnp.sqrt(jnp.var(h, -1, keepdims=True) + 1e-3) * p["scale"] + p["shift"]
    return jnp.mean(jnp.tanh(h @ p["up"] + p["bias"]), axis=1) @ p["out"]


def convolve(x, w, **options):
    options = {"window_strides": (1, 1), "padding": "SAME"} | options
    return jax.lax.conv_general_dilated(x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


def convnet(p, x):
    h = jnp.tanh(convolve(x, p["first"]) + p["bias"])
    h = jax.lax.reduce_window(h, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    h = jnp.tanh(convolve(h, p["second"], window_strides=(2, 1), rhs_dilation=(1, 2)))
    return h.reshape(h.shape[0], -1) @ p["out"]


def odd_convolutions(p, x):
    h = convolve(x, p["depthwise"], feature_group_count=2, padding=((2, 0), (-1, 1)))
    h = jnp.tanh(convolve(jnp.tanh(h), p["transposed"], lhs_dilation=(2, 1), padding=((1, 1), (0, 2))))
    return h.reshape(h.shape[0], -1)[:, ::5].sum(1)


@jax.custom_vjp
def clipped(x):
    return jnp.sin(x)


clipped.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x),))


@jax.custom_jvp
def slow_square(x):
    return x * x


# A rule of its own, not that of the function: what counts is what training sees.
slow_square.defjvp(lambda x, t: (x[0] * x[0], 3 * x[0] * t[0]))


def branch(p, x):
    return jax.lax.cond(p["out"][0, 0] > 0, lambda w: jnp.tanh(x @ w), lambda w: x @ w, p["w"]) @ p["out"]


def branch_by_example(p, x):
    def one(x):
        return jax.lax.cond(x[0] > 0, lambda w: jnp.tanh(x @ w), lambda w: x @ w, p["w"]) @ p["out"]

    return jax.vmap(one)(x)


def counted(p, x):
    body = lambda i, h: jnp.tanh(h @ p["w"] + p["b"])  # noqa: E731
    return jax.lax.fori_loop(0, 3, body, x) @ p["out"]


CONSTANT = np.linspace(-1, 1, A * B).reshape(A, B)


def per_head(p, x):
    heads = jax.vmap(lambda row, w: jnp.tanh(row @ w), in_axes=(1, 0), out_axes=1)(x, p["w"])
    return heads.reshape(x.shape[0], -1) @ p["out"]


def packed(p, x):
    flat = p["flat"]
    w, b, out = flat[: A * B].reshape(A, B), flat[A * B : A * B + B], flat[A * B + B :]
    return jnp.tanh(x @ w + b) @ out


def overlapping(p, x):
    flat = p["flat"]
    return jnp.tanh(x @ flat[:8].reshape(A, 2)) @ flat[6:8] + x @ flat[8:12]


def tied(p, x):
    h = jnp.tanh(jnp.take(p["table"], x, axis=0) @ p["w"])
    return jax.nn.log_softmax(h @ p["table"].T).mean(1)[:, :K]


MLP = {"w": (A, B), "b": (B,), "out": (B, K)}
DENSE = {"w": "dense", "b": "elementwise", "out": "dense"}
ALONE = "nothing that depends on the example"

CASES = {
    "mlp": Case(lambda p, x: jnp.tanh(x @ p["w"] + p["b"]) @ p["out"], MLP, DENSE),
    "one output": Case(lambda p, x: jnp.tanh(x @ p["w"] + p["b"]) @ p["out"], MLP | {"out": (B,)}, DENSE),
    "jit, site and relu": Case(
        jax.jit(lambda p, x: jax.nn.softplus(zl.site(jax.nn.relu(x @ p["w"] + p["b"]), "h")) @ p["out"]),
        MLP,
        DENSE,
    ),
    "remat": Case(jax.checkpoint(lambda p, x: jnp.tanh(x @ p["w"] + p["b"]) @ p["out"]), MLP, DENSE),
    "einsum, transposed": Case(
        lambda p, x: jnp.einsum("nb,kb->nk", jnp.sin(jnp.einsum("cba,na->nbc", p["w"], x)).sum(2), p["out"]),
        {"w": (2, B, A), "out": (K, B)},
        {"w": "dense", "out": "dense"},
    ),
    "vmap inside, scaled": Case(
        lambda p, x: jax.vmap(lambda row: jnp.tanh(p["w"].T @ row / jnp.sqrt(3.0)) @ (-0.5 * p["out"]))(x),
        {"w": (A, B), "out": (B, K)},
        {"w": "dense", "out": "dense"},
    ),
    "weights scaled": Case(
        lambda p, x: jnp.tanh(x @ (p["w"] / jnp.sqrt(A * 1.0)) - 2 * p["b"]) @ (p["out"] * 0.3),
        MLP,
        DENSE,
    ),
    "heads": Case(per_head, {"w": (T, A, B), "out": (T * B, K)}, {"w": "dense", "out": "dense"}, (T, A)),
    "examples not first": Case(
        lambda p, x: (
            jnp.moveaxis(jnp.tanh(jnp.einsum("tna,ab->tbn", jnp.moveaxis(x, 1, 0), p["w"])), 2, 0).sum(1)
            @ p["out"]
        ),
        {"w": (A, B), "out": (B, K)},
        {"w": "dense", "out": "dense"},
        (T, A),
    ),
    "sequence, wide": Case(  # pairs of positions cost less than per-example gradients
        lambda p, x: jnp.tanh(x @ p["w"] + p["b"]).sum(1) @ p["out"],
        {"w": (30, 40), "b": (40,), "out": (40, K)},
        DENSE,
        (2, 30),
    ),
    "shared": Case(
        lambda p, x: (
            jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"] + x @ (2 * p["w"]) + p["b"]) @ p["out"] + p["b"][:K]
        ),
        {"w": (A, A), "b": (A,), "out": (A, K)},
        {"w": "dense", "b": "elementwise", "out": "dense"},
    ),
    "shared, transposed": Case(
        lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T @ p["out"],
        {"w": (A, B), "out": (A, K)},
        {"w": "fallback (the same elements are used in different ways)", "out": "dense"},
    ),
    "dense and scale": Case(
        lambda p, x: jnp.tanh(x @ p["w"]) * p["w"][0],
        {"w": (A, B)},
        {"w": "fallback (the same elements are used in different ways)"},
    ),
    "embedding": Case(
        lambda p, x: jnp.tanh(p["table"][x] + p["place"]).reshape(x.shape[0], -1) @ p["out"],
        {"table": (VOCABULARY, B), "place": (T, B), "out": (T * B, K)},
        {"table": "embedding", "place": "elementwise", "out": "dense"},
        "tokens",
    ),
    "embedding, large table": Case(
        lambda p, x: (
            jnp.tanh(jnp.take(p["table"], x, axis=1, mode="clip")).sum(2).T[..., :1] @ jnp.ones((1, K))
            if x.ndim == 1
            else jnp.tanh(jnp.take(p["table"], x, axis=1, mode="clip")).sum(2).T @ p["out"]
        ),
        {"table": (B, 60), "out": (B, K)},
        {"table": "embedding", "out": "dense"},
        "tokens",
    ),
    "tied": Case(
        tied,
        {"table": (VOCABULARY, B), "w": (B, B)},
        {"table": "fallback (the same elements are used in different ways)", "w": "dense"},
        "tokens",
    ),
    "attention": Case(
        attention,
        {name: (A, A) for name in "qkv"}
        | {"scale": (A,), "shift": (A,), "up": (A, B), "bias": (B,), "out": (B, K)},
        {name: "dense" for name in "qkv"}
        | {
            "scale": "elementwise",
            "shift": "elementwise",
            "up": "dense",
            "bias": "elementwise",
            "out": "dense",
        },
        (T, A),
    ),
    "convolutions": Case(
        convnet,
        {"first": (3, 3, 2, 3), "bias": (3,), "second": (2, 2, 3, 4), "out": (32, K)},
        {"first": "convolution", "bias": "elementwise", "second": "convolution", "out": "dense"},
        (8, 8, 2),
    ),
    "odd convolutions": Case(
        odd_convolutions,
        {"depthwise": (3, 2, 1, 4), "transposed": (2, 3, 4, 2)},
        {"depthwise": "convolution", "transposed": "convolution"},
        (4, 5, 2),
    ),
    "batch norm of one example": Case(
        lambda p, x: (x / (1 + x**2).sum(1, keepdims=True) * p["s"] / p["d"] + p["b"]) @ p["out"],
        {"s": (A,), "d": (A,), "b": (A,), "out": (A, K)},
        {"s": "elementwise", "d": "elementwise", "b": "elementwise", "out": "dense"},
    ),
    "scalars": Case(
        lambda p, x: p["s"] * jnp.tanh(x @ p["w"] * p["t"]) + p["c"],
        {"s": (), "t": (), "c": (), "w": (A, K)},
        {"s": "elementwise", "t": "elementwise", "c": "elementwise", "w": "dense"},
    ),
    "squared": Case(
        lambda p, x: jnp.tanh(x @ p["w"] ** 2) @ p["out"],
        {"w": (A, B), "out": (B, K)},
        {"w": f"fallback (it enters `integer_pow` with {ALONE})", "out": "dense"},
    ),
    "multiplied with itself": Case(
        lambda p, x: x @ (p["u"] * p["u"] - p["v"] * p["u"]),
        {"u": (A, K), "v": (A, K)},
        {name: f"fallback (it enters `mul` with {ALONE})" for name in "uv"},
    ),
    "deep linear": Case(
        lambda p, x: x @ (p["u"] @ p["v"]),
        {"u": (A, B), "v": (B, K)},
        {name: f"fallback (it enters `dot_general` with {ALONE})" for name in "uv"},
    ),
    "weight normalization": Case(
        lambda p, x: (
            jnp.tanh(x @ (p["w"] / jnp.linalg.norm(p["w"], axis=0)) * jax.nn.softplus(p["g"])) @ p["out"]
        ),
        {"w": (A, B), "g": (B,), "out": (B, K)},
        {
            "w": f"fallback (it enters `div` with {ALONE}; it enters `mul` with {ALONE})",
            "g": f"fallback (it enters `custom_jvp_call` with {ALONE})",
            "out": "dense",
        },
    ),
    "masked constant": Case(
        lambda p, x: jnp.tanh(x @ (p["w"] * CONSTANT) + x @ CONSTANT) @ p["out"],
        {"w": (A, B), "out": (B, K)},
        {"w": f"fallback (it enters `mul` with {ALONE})", "out": "dense"},
    ),
    "stop gradient": Case(
        lambda p, x: (
            jnp.tanh(x @ p["w"]) @ p["out"] * jnp.sum(jax.lax.stop_gradient(p["w"])) + (p["w"][0, 0] > 9)
        ),
        {"w": (A, B), "out": (B, K), "nothing": (2, 2)},
        {"w": "dense", "out": "dense", "nothing": "unused"},
    ),
    "concatenated": Case(
        lambda p, x: jnp.tanh(x @ jnp.concatenate([p["u"], p["v"]], axis=1)) @ p["out"],
        {"u": (A, 1), "v": (A, 2), "out": (B, K)},
        {name: f"fallback (it enters `concatenate` with {ALONE})" for name in "uv"} | {"out": "dense"},
    ),
    "class token": Case(
        lambda p, x: jnp.tanh(
            jnp.concatenate([jnp.broadcast_to(p["token"], (x.shape[0], 1, A)), x], axis=1) @ p["w"]
        ).sum(1),
        {"token": (A,), "w": (A, K)},
        {"token": "fallback (it enters `concatenate`)", "w": "dense"},
        (T, A),
    ),
    "packed": Case(packed, {"flat": (A * B + B + B,)}, {"flat": "dense + elementwise"}),
    "packed, overlapping": Case(
        overlapping,
        {"flat": (12,)},
        {"flat": "fallback (the same elements are used in different ways)"},
    ),
    "stacked layers": Case(
        lambda p, x: functools.reduce(lambda h, i: jnp.tanh(h @ p["w"][i]), range(3), x)[:, :K],
        {"w": (3, A, A)},
        {"w": "dense"},
    ),
    "broadcast weights": Case(
        lambda p, x: jax.lax.batch_matmul(x[:, None, :], jnp.broadcast_to(p["w"], (x.shape[0], A, K)))[:, 0],
        {"w": (A, K)},
        {"w": "dense"},
    ),
    "repeated weights": Case(
        lambda p, x: jnp.tanh(jnp.einsum("nta,tab->ntb", x, jnp.broadcast_to(p["w"], (T, A, K)))).sum(1),
        {"w": (A, K)},
        {"w": "fallback (it is repeated before it enters `dot_general`)"},
        (T, A),
    ),
    "scan": Case(
        scan_model,
        {"in": (A, B), "w": (B, B), "out": (B, K)},
        {"in": "fallback (it enters `scan`)", "w": "fallback (it enters `scan`)", "out": "dense"},
        (T, A),
    ),
    "loop": Case(
        counted,
        {"w": (A, A), "b": (A,), "out": (A, K)},
        {"w": "fallback (it enters `scan`)", "b": "fallback (it enters `scan`)", "out": "dense"},
    ),
    "cond": Case(branch, {"w": (A, B), "out": (B, K)}, {"w": "fallback (it enters `cond`)", "out": "dense"}),
    "cond, by example": Case(
        branch_by_example,
        {"w": (A, B), "out": (B, K)},
        {"w": "fallback (it enters `select_n`)", "out": "dense"},
    ),
    "custom derivatives": Case(
        lambda p, x: slow_square(x @ p["w"]) @ p["out"] + slow_square(p["c"]),
        {"w": (A, B), "c": (K,), "out": (B, K)},
        {"w": "dense", "c": f"fallback (it enters `custom_jvp_call` with {ALONE})", "out": "dense"},
    ),
    "custom backward pass": Case(
        lambda p, x: clipped(x @ p["w"]) @ clipped(p["out"]),
        {"w": (A, B), "out": (B, K)},
        {"w": "dense", "out": f"fallback (it enters `custom_vjp_call` with {ALONE})"},
    ),
    "several inputs": Case(
        lambda p, x: jnp.tanh(x["a"] @ p["w"] + x["c"][:, None] * p["b"]) @ p["out"],
        MLP,
        DENSE,
        {"a": (A,), "c": ()},
    ),
    "an output": Case(
        lambda p, x: jnp.broadcast_to(p["c"], (x.shape[0], K)),
        {"c": (K,)},
        {"c": "fallback (it is an output of the model)"},
    ),
}


def leaves(shapes, seed, dtype):
    generator = np.random.default_rng(seed)

    def draw(shape):
        if shape == "tokens":
            return jnp.asarray(generator.integers(0, VOCABULARY, (N, T)))
        return jnp.asarray(0.7 * generator.normal(size=shape) + 0.1, dtype)

    return jax.tree.map(draw, shapes, is_leaf=lambda leaf: isinstance(leaf, (tuple, str)))


def draw(case, dtype=jnp.float64):
    with_examples = jax.tree.map(
        lambda shape: shape if shape == "tokens" else (N, *shape),
        case.inputs,
        is_leaf=lambda leaf: isinstance(leaf, (tuple, str)),
    )
    inputs = leaves(with_examples, 2, dtype)
    return leaves(case.params, 0, dtype), leaves(case.params, 1, dtype), inputs


@eqx.filter_jit
def everything(structure, params, start, weights, vectors, cotangents):
    def differentiable(params):
        factors = structure.factors(params)
        cross = structure.gram(factors, at_start)
        return (structure.squared_norm(factors), jnp.sum(weights * cross)), (factors, cross)

    at_start = structure.factors(start)
    (norm, _), pull, (factors, cross) = jax.vjp(differentiable, params, has_aux=True)
    zero, one = jnp.zeros_like(norm), jnp.ones_like(norm)
    return {
        "gram": structure.gram(factors),
        "cross": cross,
        "blocks": structure.block_diagonal(factors),
        "squares": structure.squared_norms(factors),
        "norm": norm,
        "mv": structure.mv(structure.factors(params), vectors),
        "rmv": structure.rmv(structure.factors(params), cotangents),
        "norm gradient": flat(pull((one, zero))[0]),
        "cross gradient": flat(pull((zero, one))[0]),
        "slope": structure.slope(params, cotangents, vectors),
    }


def flat(params):
    return ravel_pytree(params)[0]


@functools.partial(jax.jit, static_argnums=0)
def reference(model, params, start, inputs, weights, vectors, cotangents):
    w, unravel = ravel_pytree(params)

    def jacobian(w):
        return jax.jacrev(lambda w: model(unravel(w), inputs).reshape(-1))(w)

    (J, J0) = jax.lax.map(jacobian, jnp.stack([w, flat(start)]))
    blocks = jnp.einsum("nkd,nld->nkl", *[J.reshape(N, -1, J.shape[1])] * 2)
    _, pull = jax.vjp(jacobian, w)
    directions = jnp.stack([2 * J, weights @ J0, cotangents @ vectors.T])  # of <J(w), direction>, each frozen
    norm_gradient, cross_gradient, slope = jax.lax.map(lambda direction: pull(direction)[0], directions)
    return {
        "gram": J @ J.T,
        "cross": J @ J0.T,
        "blocks": blocks,
        "squares": jnp.einsum("nkk->nk", blocks),
        "norm": jnp.sum(J**2),
        "mv": J @ vectors,
        "rmv": J.T @ cotangents,
        "norm gradient": norm_gradient,
        "cross gradient": cross_gradient,
        "slope": slope,
    }


def compare(case, structure, dtype=jnp.float64, tolerance=1e-10):
    params, start, inputs = draw(case, dtype)
    m, d = case.model(params, inputs).size, flat(params).size
    generator = np.random.default_rng(3)
    weights, vectors, cotangents = (
        jnp.asarray(generator.normal(size=shape), dtype) for shape in ((m, m), (d, 3), (m, 3))
    )
    found = everything(structure, params, start, weights, vectors, cotangents)
    expected = reference(case.model, params, start, inputs, weights, vectors, cotangents)
    for name, value in expected.items():
        assert found[name].dtype == dtype, name
        error = jnp.max(jnp.abs(found[name] - value))
        assert error <= tolerance * jnp.max(jnp.abs(value)), (name, error)


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_a_dense_jacobian(name, caplog):
    case = CASES[name]
    params, _, inputs = draw(case)
    with caplog.at_level(logging.DEBUG, logger="zeroloss.jacobians"):
        structure = analyse(case.model, params, inputs)
    assert structure.kinds == {f"['{leaf}']": kind for leaf, kind in case.kinds.items()}
    for leaf, kind in case.kinds.items():
        assert any(f"'{leaf}'" in record.message for record in caplog.records) == ("fallback" in kind)
    compare(case, structure)


@pytest.mark.parametrize("name", ["mlp", "convolutions"])
def test_agrees_in_single_precision(name):
    case = CASES[name]
    params, _, inputs = draw(case, jnp.float32)
    compare(case, analyse(case.model, params, inputs), jnp.float32, 1e-5)


@pytest.mark.parametrize(
    "name, max_memory", [("mlp", 1), ("mlp", 3_000), ("sequence, wide", 30_000), ("scan", 1)]
)
def test_parts_make_the_whole(name, max_memory):
    case = CASES[name]
    params, _, inputs = draw(case)
    compare(case, analyse(case.model, params, inputs, max_memory))


@pytest.mark.parametrize("name", ["mlp", "sequence, wide"])
def test_each_pair_once_makes_the_same(name, monkeypatch):
    monkeypatch.setattr(_rows, "_WORTH_STRIPS", 1)
    case = CASES[name]
    params, _, inputs = draw(case)
    structure = analyse(case.model, params, inputs)
    factors = structure.factors(params)
    assert np.allclose(structure.gram(factors), structure.gram(factors, factors), rtol=1e-12, atol=1e-12)


def test_little_memory_keeps_little():
    case = CASES["mlp"]
    params, _, inputs = draw(case)
    numbers = N * (B + K * K)  # the last layer's A and D
    assert analyse(case.model, params, inputs, 10**6).factors(params).missing == ()
    assert analyse(case.model, params, inputs, 1).factors(params).missing == (0, 1, 2)
    assert len(analyse(case.model, params, inputs, 8 * numbers).factors(params).missing) == 2


def test_one_column_and_one_vector():
    case = CASES["custom backward pass"]
    params, start, inputs = draw(case)
    structure = analyse(case.model, params, inputs)
    vector, cotangent = flat(start), jnp.arange(N * K) / 7.0
    jacobian = jax.jacrev(lambda p: case.model(p, inputs).reshape(-1))(params)
    J = jax.vmap(flat)(jacobian)
    assert np.allclose(structure.mv(structure.factors(params), vector), J @ vector, rtol=1e-12)
    assert np.allclose(structure.rmv(structure.factors(params), cotangent), J.T @ cotangent, rtol=1e-12)
    assert np.allclose(structure.mv(structure.factors(params), vector[:, None])[:, 0], J @ vector, rtol=1e-12)
    one = structure.slope(params, cotangent, vector)
    assert np.allclose(one, structure.slope(params, cotangent[:, None], vector[:, None]), rtol=1e-12)


def test_arrays_closed_over_may_be_traced():
    case = CASES["mlp"]
    params, _, inputs = draw(case)

    @jax.jit
    def gram(shift, inputs):
        structure = analyse(lambda p, x: case.model(p, x + shift), params, inputs)
        return structure.gram(structure.factors(params))

    shift = jnp.linspace(0, 1, A)
    structure = analyse(case.model, params, inputs + shift)
    expected = structure.gram(structure.factors(params))
    assert np.allclose(gram(shift, inputs), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "model, params, inputs, message",
    [
        (lambda p, x: x @ p, jnp.arange(A), jnp.ones((N, A)), "dtype int"),
        (lambda p, x: x[0] @ p, jnp.ones(A), (jnp.ones((N, A)), jnp.ones(3)), "leading axis"),
        (lambda p, x: (x @ p, x), jnp.ones(A), jnp.ones((N, A)), "one array"),
        (lambda p, x: x @ p > 0, jnp.ones(A), jnp.ones((N, A)), "floating-point numbers"),
    ],
)
def test_refuses_what_it_cannot_serve(model, params, inputs, message):
    with pytest.raises(InputError, match=message):
        analyse(model, params, inputs)
