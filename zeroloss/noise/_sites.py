"""Named activations inside a model, and how noise gets at them.

`site` is an identity that leaves its name in the jaxpr of the model. `inject` traces the model and
re-evaluates it with functions applied at the named places. Working on the jaxpr, rather than with a
global switch read while the model runs, is what makes it right under `jax.jit`: a cached trace cannot
miss the noise.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend.core import Jaxpr, Literal, Primitive, jaxprs_in_params
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, PyTree

from zeroloss.errors import InputError, UnsupportedError

_site_p = Primitive("zeroloss_site")
_site_p.def_impl(lambda value, name: value)
_site_p.def_abstract_eval(lambda value, name: value)
mlir.register_lowering(_site_p, lambda context, value, name: [value])


def _differentiate(primals: Any, tangents: Any, *, name: str) -> Any:
    # The tangent passes a marker too: where it survives in a traced model, the model itself
    # differentiates through the site, and noise there would have to act on the derivative as well.
    (value,), (tangent,) = primals, tangents
    out = _site_p.bind(value, name=name)
    if isinstance(tangent, ad.Zero):
        return out, tangent
    return out, _tangent_p.bind(tangent, name=name)


_tangent_p = Primitive("zeroloss_site_tangent")
_tangent_p.def_impl(lambda value, name: value)
_tangent_p.def_abstract_eval(lambda value, name: value)
mlir.register_lowering(_tangent_p, lambda context, value, name: [value])
ad.deflinear2(_tangent_p, lambda cotangent, value, name: [_tangent_p.bind(cotangent, name=name)])
ad.primitive_jvps[_site_p] = _differentiate


def _batch_to_front(primitive: Primitive) -> Callable[..., Any]:
    # Examples come first at a site, also when the model maps over them itself.
    def batch(args: Any, axes: Any, *, name: str) -> Any:
        (value,), (axis,) = args, axes
        return primitive.bind(batching.bdim_at_front(value, axis, value.shape[axis]), name=name), 0

    return batch


batching.primitive_batchers[_site_p] = _batch_to_front(_site_p)
batching.primitive_batchers[_tangent_p] = _batch_to_front(_tangent_p)


def site(value: Array, name: str) -> Array:
    """Name the activation `value` so that noise can be injected there; otherwise the identity.

    **Arguments:**

    - `value`: an array whose leading axis runs over examples, or a single example's activation when
      the model itself is a `jax.vmap` over examples.
    - `name`: what `zeroloss.Dropout(at=...)` and its like refer to.

    Costs nothing at run time and works under `jax.jit`, `jax.vmap` and `jax.grad`.
    """
    if not isinstance(name, str):
        raise InputError(f"a site's name must be a string, got {name!r}.")
    return _site_p.bind(jax.numpy.asarray(value), name=name)


def site_shapes(model: Callable[..., PyTree], params: PyTree, inputs: PyTree) -> dict[str, tuple[int, ...]]:
    """Shapes of the activations at every site of `model`, found by tracing it once.

    A name used at several places is an error: noise there would be ambiguous.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    closed, _ = _trace(model, params, inputs)
    _collect(closed.jaxpr, shapes)
    return shapes


def inject(
    model: Callable[..., PyTree], handlers: Mapping[str, Callable[[Array], Array]]
) -> Callable[..., PyTree]:
    """`model` with `handlers[name]` applied to the activation at each site `name`."""

    def noisy_model(params: PyTree, inputs: PyTree) -> PyTree:
        closed, structure = _trace(model, params, inputs)
        args = jax.tree.leaves((params, inputs))
        outputs = _evaluate(closed.jaxpr, closed.consts, args, handlers)
        return jax.tree.unflatten(structure, outputs)

    return noisy_model


def _trace(model: Callable[..., PyTree], params: PyTree, inputs: PyTree) -> tuple[Any, Any]:
    closed, shape = jax.make_jaxpr(model, return_shape=True)(params, inputs)
    return closed, jax.tree.structure(shape)


def _collect(jaxpr: Jaxpr, shapes: dict[str, tuple[int, ...]]) -> None:
    for equation in jaxpr.eqns:
        if equation.primitive is _site_p:
            name = equation.params["name"]
            if name in shapes:
                raise InputError(f"site {name!r} occurs more than once in the model; names must differ.")
            shapes[name] = equation.invars[0].aval.shape  # pyright: ignore[reportAttributeAccessIssue]
        for inner in jaxprs_in_params(equation.params):
            _collect(inner, shapes)


def _mentions(jaxpr: Jaxpr, primitive: Primitive) -> bool:
    return any(
        equation.primitive is primitive
        or any(_mentions(inner, primitive) for inner in jaxprs_in_params(equation.params))
        for equation in jaxpr.eqns
    )


def _evaluate(
    jaxpr: Jaxpr, consts: Any, args: Any, handlers: Mapping[str, Callable[[Array], Array]]
) -> list[Any]:
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        if equation.primitive is _site_p:
            outputs = [_apply_at_site(equation.params["name"], inputs[0], handlers)]
        elif equation.primitive is _tangent_p and equation.params["name"] in handlers:
            raise UnsupportedError(
                f"the model differentiates through site {equation.params['name']!r}; noise at a site "
                "inside a derivative that the model takes itself is not supported."
            )
        elif any(_mentions(inner, _site_p) for inner in jaxprs_in_params(equation.params)):
            outputs = _evaluate_nested(equation, inputs, handlers)
        else:
            parameters = equation.primitive.get_bind_params(equation.params)
            outputs = equation.primitive.bind(*inputs, **parameters)
            outputs = outputs if equation.primitive.multiple_results else [outputs]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _apply_at_site(name: str, value: Array, handlers: Mapping[str, Callable[[Array], Array]]) -> Array:
    if name in handlers:
        value = handlers[name](value)
    return _site_p.bind(value, name=name)  # still named, for a second noise at the same site


def _evaluate_nested(
    equation: Any, inputs: Any, handlers: Mapping[str, Callable[[Array], Array]]
) -> list[Any]:
    kind = equation.primitive.name
    if kind in ("jit", "pjit", "closed_call", "core_call"):
        closed = equation.params.get("jaxpr") or equation.params["call_jaxpr"]
        return _evaluate(closed.jaxpr, closed.consts, inputs, handlers)
    if kind in ("checkpoint", "remat", "remat2"):
        inner = equation.params["jaxpr"]
        rematerialized = jax.checkpoint(
            lambda *args: _evaluate(inner, (), args, handlers),
            policy=equation.params["policy"],
            prevent_cse=equation.params["prevent_cse"],
        )
        return rematerialized(*inputs)
    raise UnsupportedError(
        f"a site lies inside jax.{kind}, where zeroloss cannot inject noise; move it outside, "
        "or unroll the loop."
    )
