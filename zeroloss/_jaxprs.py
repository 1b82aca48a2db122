"""One interpreter of traced models (jaxprs), and the flat program of a model of one example.

`interpret` is the only loop over the equations of a jaxpr. Noise at sites, flattening, and evaluation with
taps are rules that it applies to each equation.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var, jaxprs_in_params
from jaxtyping import Array, PyTree

from zeroloss.errors import InputError, UnsupportedError

Atom = Var | Literal
"""An operand of an equation: a variable, or a constant written in the jaxpr."""

Rule = Callable[[JaxprEqn, list[Any]], Sequence[Any]]
"""`rule(equation, operands) -> results`."""

_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}
_CHECKPOINTS = ("checkpoint", "remat", "remat2")


def interpret(
    jaxpr: Jaxpr,
    constants: Iterable[Any],
    arguments: Iterable[Any],
    rule: Rule,
    literal: Callable[[Literal], Any] = lambda literal: literal.val,
) -> list[Any]:
    """The outputs of `jaxpr`, with `rule` in place of each of its equations.

    Values may be arrays, tracers, or anything else that `rule` takes and gives; `literal` makes one from a
    constant that is written in the jaxpr.
    """
    inputs = (*constants, *arguments)
    values: dict[Var, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), inputs, strict=True))

    def read(atom: Atom) -> Any:
        return literal(atom) if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        results = rule(equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def bind(equation: JaxprEqn, operands: Iterable[Any]) -> list[Any]:
    """The results of an equation as it is, nested jaxprs included."""
    primitive = equation.primitive
    values = primitive.bind(*operands, **primitive.get_bind_params(equation.params))
    return list(values) if primitive.multiple_results else [values]


def enter(equation: JaxprEqn, operands: Sequence[Any], rule: Rule, content: str) -> list[Any]:
    """The results of a call of `jax.jit` or `jax.checkpoint`, with `rule` for the equations inside it.

    Raises `UnsupportedError` for loops, branches and functions with derivative rules of their own, whose
    inside JAX evaluates several times, never, or differently under a derivative. `content`, such as "a site",
    says in the message what is inside.
    """
    called = callee(equation)
    name = equation.primitive.name
    if called is None:
        raise UnsupportedError(
            f"{content} lies inside jax.{name}, where zeroloss cannot reach it; move it outside, or unroll "
            "the loop."
        )
    if name not in _CHECKPOINTS:
        return interpret(*called, operands, rule)
    rematerialized = jax.checkpoint(
        lambda *operands: interpret(*called, operands, rule),
        policy=equation.params["policy"],
        prevent_cse=equation.params["prevent_cse"],
    )
    return rematerialized(*operands)


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """All equations of a jaxpr, each followed by those nested in it."""
    for equation in jaxpr.eqns:
        yield equation
        yield from nested_equations(equation)


def nested_equations(equation: JaxprEqn) -> Iterator[JaxprEqn]:
    """All equations inside an equation, such as those of a jitted function or of the body of a loop."""
    for inner in jaxprs_in_params(equation.params):
        yield from equations(inner)


def shape(atom: Atom) -> tuple[int, ...]:
    """The shape of an operand."""
    return atom.aval.shape  # pyright: ignore[reportAttributeAccessIssue]


def dtype(atom: Atom) -> Any:
    """The type of an operand's numbers."""
    return atom.aval.dtype  # pyright: ignore[reportAttributeAccessIssue]


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A model of one example as a flat jaxpr, whose calls are written out.

    The inputs of `jaxpr` are the parameter leaves, then the leaves of the example; it has one output.
    `on_example` are the variables that depend on the example, `on_parameters_only` those that depend on
    parameters and on no example; all others are constant. `reverse_only` is true where the model has no
    forward derivative (`jax.custom_vjp`).
    """

    jaxpr: Jaxpr
    leaves: tuple[Var, ...]
    on_example: frozenset[Var]
    on_parameters_only: frozenset[Var]
    reverse_only: bool

    @property
    def output(self) -> Atom:
        """The model's output."""
        return self.jaxpr.outvars[0]

    def evaluate(
        self,
        constants: Sequence[Any],
        arguments: Sequence[Any],
        taps: Mapping[Var, Array],
        wanted: Iterable[Var],
        substitutes: Mapping[Var, Callable[..., Array]],
    ) -> tuple[Any, list[Any]]:
        """The output, with `taps` added to their variables, and the values of the `wanted` variables.

        The derivative of the output with respect to a tap that is zero is the output's sensitivity to the
        tap's variable. One ordinary backward pass gives it for all taps; the model's own derivative rules
        (`jax.custom_jvp`, `jax.custom_vjp`, `jax.lax.stop_gradient`) apply in it.

        `substitutes` are other functions of the operands for the equations of some variables, equal in value.
        """
        values: dict[Var, Any] = {}

        def tapped(variables: Sequence[Var], results: Sequence[Any]) -> list[Any]:
            pairs = zip(variables, results, strict=True)
            added = [result + taps[variable] if variable in taps else result for variable, result in pairs]
            values.update(zip(variables, added, strict=True))
            return added

        def rule(equation: JaxprEqn, operands: list[Any]) -> list[Any]:
            substitute = next(map(substitutes.get, equation.outvars), None)
            results = bind(equation, operands) if substitute is None else [substitute(*operands)]
            return tapped(equation.outvars, results)

        inputs = tapped(self.jaxpr.constvars, constants), tapped(self.jaxpr.invars, arguments)
        (output,) = interpret(self.jaxpr, *inputs, rule)
        return output, [values[variable] for variable in wanted]

    def is_constant(self, atom: Atom) -> bool:
        """Whether an operand depends on neither parameters nor example."""
        return isinstance(atom, Literal) or atom not in self.on_example | self.on_parameters_only

    @property
    def size(self) -> int:
        """Numbers computed for one example, all intermediate results together."""
        return sum(math.prod(shape(variable)) for variable in self.on_example)


def trace(
    model: Callable[[PyTree, PyTree], Array], params: PyTree, inputs: PyTree
) -> tuple[Program, tuple[Any, ...]]:
    """The program of `model` for one example of `inputs`, and the values of its constants.

    Only shapes of `params` and `inputs` are read. One example at a time, because then no intermediate
    result has an example axis that would have to be found; `jax.vmap` puts it back where it is needed.
    """

    def of_one(params: PyTree, example: PyTree) -> Array:
        outputs = model(params, jax.tree.map(lambda leaf: leaf[None], example))
        if not isinstance(outputs, Array) or outputs.shape[:1] != (1,):
            raise InputError(
                "the model must return one array, with as many rows as there are examples; for one example "
                f"it gave {jax.tree.map(jnp.shape, outputs)}."
            )
        return outputs[0]

    example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), inputs)
    closed, output = jax.make_jaxpr(of_one, return_shape=True)(params, example)
    if not jnp.issubdtype(output.dtype, jnp.floating):
        raise InputError(f"the model's outputs must be floating-point numbers, got {output.dtype}.")
    return _flat(closed.jaxpr, len(jax.tree.leaves(params))), tuple(closed.consts)


def _flat(jaxpr: Jaxpr, number_of_leaves: int) -> Program:
    """The program of a jaxpr whose first inputs are the parameter leaves."""
    leaves, example = jaxpr.invars[:number_of_leaves], jaxpr.invars[number_of_leaves:]
    on_parameters, on_example = set(leaves), set(example)
    flat: list[JaxprEqn] = []

    def rule(equation: JaxprEqn, operands: list[Atom]) -> Sequence[Atom]:
        variables = {operand for operand in operands if isinstance(operand, Var)}
        called = callee(equation)
        # A checkpoint saves memory, so it stays, unless parameters enter it that blocks are to be found for.
        is_left = equation.primitive.name in _CHECKPOINTS and not variables & on_parameters - on_example
        if called is not None and not is_left:
            inner, constants = called
            return interpret(inner, map(_literal, constants), operands, rule, lambda literal: literal)
        # A jaxpr that is called twice has one set of variables; written out, each call needs its own.
        results = [Var(result.aval) for result in equation.outvars]
        flat.append(equation.replace(invars=operands, outvars=results))
        for dependent in (on_parameters, on_example):
            if variables & dependent:
                dependent.update(results)
        return results

    outputs = interpret(jaxpr, jaxpr.constvars, jaxpr.invars, rule, lambda literal: literal)
    return Program(
        Jaxpr(jaxpr.constvars, jaxpr.invars, outputs, flat, jaxpr.effects, jaxpr.debug_info),
        tuple(leaves),
        frozenset(on_example),
        frozenset(on_parameters - on_example),
        any(equation.primitive.name == "custom_vjp_call" for equation in equations(jaxpr)),
    )


def callee(equation: JaxprEqn) -> tuple[Jaxpr, Sequence[Any]] | None:
    """The jaxpr that a call evaluates once, and the values of its constants; None for all other equations."""
    name = equation.primitive.name
    if name in _CHECKPOINTS:
        return equation.params["jaxpr"], ()
    if name in _CALLS:
        closed = equation.params[_CALLS[name]]
        return closed.jaxpr, closed.consts
    return None


def _literal(value: Any) -> Literal:
    return Literal(value, jax.typeof(jnp.asarray(value)))
