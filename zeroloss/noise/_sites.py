"""Named activations inside a model, and functions applied there.

`site` is an identity that leaves its name in the jaxpr of the model. `inject` traces the model and evaluates
the jaxpr with functions applied at the named places. A global switch, read while the model runs, would fail
under `jax.jit`: a trace that was cached without noise would be used again.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend.core import JaxprEqn, Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, PyTree

from zeroloss._jaxprs import bind, enter, equations, interpret, nested_equations, shape
from zeroloss.errors import InputError, UnsupportedError


def _identity(name: str) -> Primitive:
    """A primitive that returns its operand, and carries the name of a site."""
    primitive = Primitive(name)
    primitive.def_impl(lambda value, name: value)
    primitive.def_abstract_eval(lambda value, name: value)
    mlir.register_lowering(primitive, lambda context, value, name: [value])

    def batch(args: Any, axes: Any, *, name: str) -> Any:
        # Examples come first at a site, also when the model maps over them itself.
        (value,), (axis,) = args, axes
        return primitive.bind(batching.bdim_at_front(value, axis, value.shape[axis]), name=name), 0

    batching.primitive_batchers[primitive] = batch
    return primitive


_site_p = _identity("zeroloss_site")
_tangent_p = _identity("zeroloss_site_tangent")


def _differentiate(primals: Any, tangents: Any, *, name: str) -> Any:
    # The tangent passes a marker too: where it survives in a traced model, the model itself
    # differentiates through the site, and noise there would have to act on the derivative as well.
    (value,), (tangent,) = primals, tangents
    out = _site_p.bind(value, name=name)
    if isinstance(tangent, ad.Zero):
        return out, tangent
    return out, _tangent_p.bind(tangent, name=name)


ad.primitive_jvps[_site_p] = _differentiate
ad.deflinear2(_tangent_p, lambda cotangent, value, name: [_tangent_p.bind(cotangent, name=name)])


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
    for equation in equations(jax.make_jaxpr(model)(params, inputs).jaxpr):
        if equation.primitive is _site_p:
            name = equation.params["name"]
            if name in shapes:
                raise InputError(f"site {name!r} occurs more than once in the model; names must differ.")
            shapes[name] = shape(equation.invars[0])
    return shapes


def inject(
    model: Callable[..., PyTree], handlers: Mapping[str, Callable[[Array], Array]]
) -> Callable[..., PyTree]:
    """`model` with `handlers[name]` applied to the activation at each site `name`."""

    def rule(equation: JaxprEqn, operands: list[Any]) -> list[Any]:
        name = str(equation.params.get("name"))
        if equation.primitive is _site_p:
            value = handlers[name](operands[0]) if name in handlers else operands[0]
            return [_site_p.bind(value, name=name)]  # the site stays, for a second noise there
        if equation.primitive is _tangent_p and name in handlers:
            raise UnsupportedError(
                f"the model differentiates through site {name!r}; noise at a site inside a derivative that "
                "the model takes itself is not supported."
            )
        if any(nested.primitive is _site_p for nested in nested_equations(equation)):
            return enter(equation, operands, rule, "a site")
        return bind(equation, operands)

    def noisy_model(params: PyTree, inputs: PyTree) -> PyTree:
        closed, shapes = jax.make_jaxpr(model, return_shape=True)(params, inputs)
        outputs = interpret(closed.jaxpr, closed.consts, jax.tree.leaves((params, inputs)), rule)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return noisy_model
