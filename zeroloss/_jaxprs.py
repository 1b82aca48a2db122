"""A model of one example as a flat list of operations, and its evaluation with taps.

A tap is a zero added to a variable. The derivative of the outputs with respect to taps is the sensitivity
of the outputs to those variables, by one ordinary backward pass; the model's own derivative rules
(`jax.custom_jvp`, `jax.custom_vjp`, `jax.lax.stop_gradient`) apply in it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal, Primitive, jaxprs_in_params
from jaxtyping import Array, PyTree

from zeroloss.errors import InputError

Atom = int | Literal
"""An operand: the number of a variable, or a constant written in the program."""

_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}
_CHECKPOINTS = ("checkpoint", "remat", "remat2")


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """One operation: a primitive, its parameters, operands and results."""

    primitive: Primitive
    params: Mapping[str, Any]
    operands: tuple[Atom, ...]
    results: tuple[int, ...]

    @property
    def name(self) -> str:
        """The primitive's name, as the jaxpr prints it."""
        return self.primitive.name

    def apply(self, *operands: Any) -> list[Any]:
        """The results for these operands."""
        parameters = self.primitive.get_bind_params(dict(self.params))
        values = self.primitive.bind(*operands, **parameters)
        return list(values) if self.primitive.multiple_results else [values]


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """Outputs of one example from parameter leaves and the example's input leaves; variables are numbers.

    `on_example` are the variables that depend on the example, `on_parameters_only` those that depend on
    parameters and on no example; what remains is constant.
    """

    equations: tuple[Equation, ...]
    shapes: tuple[jax.ShapeDtypeStruct, ...]
    constants: tuple[int, ...]
    leaves: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[Atom, ...]
    on_example: frozenset[int]
    on_parameters_only: frozenset[int]
    reverse_only: bool

    def evaluate(
        self,
        constants: Sequence[Any],
        leaves: Sequence[Any],
        inputs: Sequence[Any],
        taps: Mapping[int, Array],
        wanted: Iterable[int],
        substitutes: Mapping[int, Callable[..., Array]],
    ) -> tuple[list[Any], list[Any]]:
        """The outputs, with `taps` added to their variables, and the values of the `wanted` variables.

        `substitutes` are other functions of the operands for the equations of some variables, equal in value.
        """
        values: dict[int, Any] = {}

        def write(variables: Sequence[int], results: Sequence[Any]) -> None:
            for variable, result in zip(variables, results, strict=True):
                values[variable] = result + taps[variable] if variable in taps else result

        def read(atom: Atom) -> Any:
            return values[atom] if isinstance(atom, int) else atom.val

        write(self.constants, constants)
        write(self.leaves, leaves)
        write(self.inputs, inputs)
        for equation in self.equations:
            operands = map(read, equation.operands)
            if equation.results[0] in substitutes:
                write(equation.results, [substitutes[equation.results[0]](*operands)])
            else:
                write(equation.results, equation.apply(*operands))
        return [read(atom) for atom in self.outputs], [values[variable] for variable in wanted]

    def shape(self, atom: Atom) -> tuple[int, ...]:
        """The shape of an operand."""
        return self.shapes[atom].shape if isinstance(atom, int) else jnp.shape(atom.val)

    def is_constant(self, atom: Atom) -> bool:
        """Whether an operand depends on neither parameters nor example."""
        return not isinstance(atom, int) or atom not in self.on_example | self.on_parameters_only

    def is_floating(self, variable: int) -> bool:
        """Whether derivatives pass through a variable."""
        return jnp.issubdtype(self.shapes[variable].dtype, jnp.floating)

    @property
    def size(self) -> int:
        """Numbers computed for one example, all intermediate results together."""
        return sum(math.prod(self.shapes[each].shape) for each in self.on_example)


def trace(
    model: Callable[[PyTree, PyTree], Array], params: PyTree, inputs: PyTree
) -> tuple[Program, tuple[Any, ...]]:
    """The program of `model` for one example of `inputs`, and the values of its constants.

    Only shapes of `params` and `inputs` are looked at. One example at a time, because then no intermediate
    has an example axis that would have to be found; `jax.vmap` puts it back where it is needed.
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
    builder = _Builder(len(jax.tree.leaves(params)))
    return builder.build(closed.jaxpr), tuple(closed.consts)


class _Builder:
    def __init__(self, number_of_leaves: int):
        self.number_of_leaves = number_of_leaves
        self.equations: list[Equation] = []
        self.shapes: list[jax.ShapeDtypeStruct] = []
        self.on_example: set[int] = set()
        self.on_parameters: set[int] = set()

    def build(self, jaxpr: Jaxpr) -> Program:
        constants = [self.new(variable) for variable in jaxpr.constvars]
        arguments = [self.new(variable) for variable in jaxpr.invars]
        leaves, inputs = arguments[: self.number_of_leaves], arguments[self.number_of_leaves :]
        self.on_parameters.update(leaves)
        self.on_example.update(inputs)
        outputs = self.inline(jaxpr, (*constants, *arguments))
        return Program(
            equations=tuple(self.equations),
            shapes=tuple(self.shapes),
            constants=tuple(constants),
            leaves=tuple(leaves),
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            on_example=frozenset(self.on_example),
            on_parameters_only=frozenset(self.on_parameters - self.on_example),
            reverse_only=_mentions(jaxpr, "custom_vjp_call"),
        )

    def new(self, variable: Any) -> int:
        self.shapes.append(jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype))
        return len(self.shapes) - 1

    def inline(self, jaxpr: Jaxpr, arguments: Sequence[Atom]) -> list[Atom]:
        numbers: dict[Any, Atom] = dict(zip((*jaxpr.constvars, *jaxpr.invars), arguments, strict=True))

        def number(variable: Any) -> Atom:
            return variable if isinstance(variable, Literal) else numbers[variable]

        for equation in jaxpr.eqns:
            operands = tuple(number(variable) for variable in equation.invars)
            inner = self.inner_of(equation, operands)
            if inner is not None:
                results = self.inline(*inner)
            else:
                results = [self.new(variable) for variable in equation.outvars]
                self.equations.append(Equation(equation.primitive, equation.params, operands, tuple(results)))
                for depends in (self.on_example, self.on_parameters):
                    if any(operand in depends for operand in operands if isinstance(operand, int)):
                        depends.update(results)
            numbers.update(zip(equation.outvars, results, strict=True))
        return [number(variable) for variable in jaxpr.outvars]

    def inner_of(self, equation: Any, operands: tuple[Atom, ...]) -> tuple[Jaxpr, tuple[Atom, ...]] | None:
        """What is to be written out in place of a call: a function called once, with derivatives its own."""
        name = equation.primitive.name
        if name in _CALLS:
            closed = equation.params[_CALLS[name]]
            constants = tuple(self.constant(value) for value in closed.consts)
            return closed.jaxpr, (*constants, *operands)
        only_parameters = self.on_parameters - self.on_example
        if name in _CHECKPOINTS and any(
            operand in only_parameters for operand in operands if isinstance(operand, int)
        ):  # else left alone: it saves memory
            return equation.params["jaxpr"], operands
        return None

    def constant(self, value: Any) -> Atom:
        array = jnp.asarray(value)
        return Literal(value, jax.typeof(array))


def _mentions(jaxpr: Jaxpr, name: str) -> bool:
    return any(
        equation.primitive.name == name
        or any(_mentions(inner, name) for inner in jaxprs_in_params(equation.params))
        for equation in jaxpr.eqns
    )
