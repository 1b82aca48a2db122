"""Where the parameter leaves enter a program, and the form of the derivative there.

A leaf reaches the operations that use it through views: reshaped, transposed, sliced, scaled by a number.
Uses that share elements of a leaf make one block, since their derivatives add before they are squared.
Uses of different elements have different columns of J, so they add in J J^T and make blocks of their own.
"""

import abc
import dataclasses
import logging
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal, Var
from jaxtyping import Array, Float

from zeroloss._jaxprs import Atom, Program, bind, dtype, shape
from zeroloss.jacobians._operations import AbstractOperation, Embedding, recognize
from zeroloss.jacobians._rows import AbstractRows, Gradients, Products

_log = logging.getLogger(__name__)

_REARRANGING = frozenset({"reshape", "transpose", "squeeze", "expand_dims", "rev", "copy", "slice", "split"})
_ELEMENTWISE = frozenset({"add", "sub", "mul", "div", "add_any", "max", "min", "pow", "atan2"})

Values = Mapping[Var, Any]
"""The values, or the sensitivities, of some variables of one example."""


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A variable that holds elements of a leaf, each at most once unless it `repeats` them."""

    variable: Var
    leaf: int
    parent: "View | None" = None
    equation: JaxprEqn | None = None
    repeats: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the variable."""
        return shape(self.variable)

    @property
    def lineage(self) -> "tuple[View, ...]":
        """The views from the leaf to this one."""
        return (self,) if self.parent is None else (*self.parent.lineage, self)

    @property
    def core(self) -> "View":
        """The last view, this one or before it, that repeats nothing."""
        return next(view for view in reversed(self.lineage) if not view.repeats)

    @property
    def scalings(self) -> tuple[tuple[str, Atom], ...]:
        """The numbers that multiply ("mul") or divide ("div") the leaf; ("neg", any) negates it."""
        found: list[tuple[str, Atom]] = []
        for view in self.lineage:
            if view.equation is not None and view.parent is not None:
                name, operands = view.equation.primitive.name, view.equation.invars
                if name in ("mul", "div", "neg"):
                    others = [operand for operand in operands if operand is not view.parent.variable]
                    found.append((name, others[0] if others else operands[0]))
        return tuple(found)

    def factor(self, values: Values) -> Any:
        """The product of all scalings: the view is the leaf's elements times this."""
        factor = 1
        for name, atom in self.scalings:
            number = atom.val if isinstance(atom, Literal) else values[atom]
            factor = -factor if name == "neg" else factor * number if name == "mul" else factor / number
        return factor

    def elements(self, leaf: Array) -> Array:
        """The elements of `leaf`, or of an array of its shape, where the view holds them; not scaled."""
        for view in self.lineage[1:]:
            equation = view.equation
            assert equation is not None
            if equation.primitive.name in _REARRANGING | {"broadcast_in_dim"}:
                leaf = bind(equation, [leaf])[equation.outvars.index(view.variable)]
        return leaf

    def positions(self) -> np.ndarray:
        """The positions in the flat leaf of the elements that the view holds."""
        root = self.lineage[0].shape
        with jax.ensure_compile_time_eval():
            return np.asarray(self.elements(jnp.arange(math.prod(root)).reshape(root)))


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
    """An operation that is linear in a view: its other operand and its result."""

    view: View
    operation: AbstractOperation
    other: Var
    result: Var


@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """An operand that is a view.

    `reason` says why the use is not recognized, and is empty where it is. `product` is None where
    factors save nothing, as for a bias or a scale.
    """

    view: View
    reason: str
    product: Product | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class AbstractBlock(abc.ABC):
    """Elements of one leaf, and how the columns of J that belong to them are computed."""

    leaf: int

    @property
    @abc.abstractmethod
    def tapped(self) -> tuple[Var, ...]:
        """The variables whose sensitivities are needed."""

    @property
    @abc.abstractmethod
    def wanted(self) -> tuple[Var, ...]:
        """The variables whose values are needed."""

    @abc.abstractmethod
    def elements(self, leaf: Array) -> Array:
        """The elements of the block in a leaf, or in an array of its shape."""

    @abc.abstractmethod
    def floats(self, outputs: int) -> int:
        """Numbers stored for one example."""

    @abc.abstractmethod
    def layer_inputs(self, values: Values) -> Array | None:
        """A of one example, [t, g, a]; None for a block that has none."""

    @abc.abstractmethod
    def of_output(self, layer_inputs: Array | None, sensitivities: Values, values: Values) -> Array:
        """D of one output of one example, [t, g, b], or that output's gradient, flat."""

    @abc.abstractmethod
    def rows(self, layer_inputs: Array | None, of_outputs: Array) -> AbstractRows:
        """The rows of J, from A and the results of `of_output` for all outputs."""


@dataclasses.dataclass(frozen=True, eq=False)
class ProductBlock(AbstractBlock):
    """Products with the same elements in the same layout; the positions of one follow those of the other.

    `contracted` where A and D are summed over positions to per-example gradients.
    """

    products: tuple[Product, ...]
    contracted: bool = False

    @property
    def operation(self) -> AbstractOperation:
        """The first operation. Its groups, inputs and outputs are those of all."""
        return self.products[0].operation

    @property
    def is_embedding(self) -> bool:
        """Whether A holds the numbers of rows."""
        return isinstance(self.operation, Embedding)

    @property
    def positions(self) -> int:
        """Positions of all operations together."""
        return sum(product.operation.positions for product in self.products)

    @property
    def tapped(self) -> tuple[Var, ...]:
        return tuple(product.result for product in self.products)

    @property
    def wanted(self) -> tuple[Var, ...]:
        others = (product.other for product in self.products)
        return (*others, *_scaling_variables(*(product.view for product in self.products)))

    def elements(self, leaf: Array) -> Float[Array, "groups inputs outputs"]:
        return self.operation.layout(self.products[0].view.elements(leaf))

    def floats(self, outputs: int) -> int:
        operation = self.operation
        if self.contracted:
            return outputs * operation.groups * operation.inputs * operation.outputs
        width = 1 if self.is_embedding else operation.inputs
        return self.positions * operation.groups * (width + outputs * operation.outputs)

    def layer_inputs(self, values: Values) -> Array:
        parts = [product.operation.layer_inputs(values[product.other]) for product in self.products]
        return jnp.concatenate(parts)

    def of_output(self, layer_inputs: Array | None, sensitivities: Values, values: Values) -> Array:
        parts = [
            product.view.factor(values) * product.operation.sensitivities(sensitivities[product.result])
            for product in self.products
        ]
        together = jnp.concatenate(parts)
        if self.contracted:
            return jnp.einsum("tga,tgb->gab", layer_inputs, together).reshape(-1)
        return together

    def rows(self, layer_inputs: Array | None, of_outputs: Array) -> AbstractRows:
        if self.contracted or layer_inputs is None:
            return Gradients(of_outputs)
        return Products(layer_inputs, of_outputs)


@dataclasses.dataclass(frozen=True, eq=False)
class GradientBlock(AbstractBlock):
    """A view that all uses of some elements of a leaf go through; J with respect to it, as it is."""

    view: View

    @property
    def tapped(self) -> tuple[Var, ...]:
        return (self.view.variable,)

    @property
    def wanted(self) -> tuple[Var, ...]:
        return _scaling_variables(self.view)

    def elements(self, leaf: Array) -> Float[Array, " size"]:
        return self.view.elements(leaf).reshape(-1)

    def floats(self, outputs: int) -> int:
        return outputs * math.prod(self.view.shape)

    def layer_inputs(self, values: Values) -> None:
        return None

    def of_output(self, layer_inputs: Array | None, sensitivities: Values, values: Values) -> Array:
        return (self.view.factor(values) * sensitivities[self.view.variable]).reshape(-1)

    def rows(self, layer_inputs: Array | None, of_outputs: Array) -> Gradients:
        return Gradients(of_outputs)


def _scaling_variables(*views: View) -> tuple[Var, ...]:
    """The variables among the numbers that scale views."""
    return tuple(atom for view in views for _, atom in view.scalings if isinstance(atom, Var))


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The blocks of a program, and the kinds of use of every leaf, as in `Structure.kinds`."""

    program: Program
    blocks: tuple[AbstractBlock, ...]
    kinds: tuple[str, ...]


def make_plan(program: Program, names: tuple[str, ...], examples: int, outputs: int) -> Plan:
    """Find the blocks, and decide the form of each by the cost of J J^T for so many examples and outputs."""
    uses = _uses(program)
    blocks: list[AbstractBlock] = []
    kinds: list[str] = []
    for leaf, name in enumerate(names):
        found: set[str] = set()
        for group in _groups([use for use in uses if use.view.leaf == leaf]):
            block, kind = _block(group, examples, outputs)
            blocks.append(block)
            found.add(kind)
            if kind.startswith("fallback"):
                _log.debug("params%s: per-example Jacobians: %s", name, kind)
        kinds.append(" + ".join(sorted(found)) or "unused")
    return Plan(program, tuple(blocks), tuple(kinds))


def _views(program: Program) -> dict[Var, View]:
    """The views among the variables of a program."""
    views: dict[Var, View] = {leaf: View(leaf, index) for index, leaf in enumerate(program.leaves)}
    for equation in program.jaxpr.eqns:
        for operand in equation.invars:
            if isinstance(operand, Var) and operand in views and _is_view(program, equation, operand):
                parent = views[operand]
                for result in equation.outvars:
                    repeats = parent.repeats or math.prod(shape(result)) > math.prod(parent.shape)
                    views[result] = View(result, parent.leaf, parent, equation, repeats)
    return views


def _is_view(program: Program, equation: JaxprEqn, operand: Var) -> bool:
    """Whether an equation rearranges or scales its operand, which is a view, and does nothing else."""
    name = equation.primitive.name
    if name in _REARRANGING or name == "neg":
        return True
    if name == "broadcast_in_dim":
        return len(equation.invars) == 1
    if name == "convert_element_type":
        return jnp.issubdtype(dtype(equation.outvars[0]), jnp.floating)
    if name not in ("mul", "div") or (name == "div" and equation.invars[0] is not operand):
        return False
    others = [other for other in equation.invars if other is not operand]
    return len(others) == 1 and shape(others[0]) == () and program.is_constant(others[0])


def _uses(program: Program) -> list[Use]:
    """The uses of views, in the order of the program."""
    views = _views(program)
    uses: list[Use] = []
    for equation in program.jaxpr.eqns:
        has_derivative = any(jnp.issubdtype(dtype(result), jnp.floating) for result in equation.outvars)
        if equation.primitive.name == "stop_gradient" or not has_derivative:  # a comparison has none
            continue
        if any(result in views for result in equation.outvars):
            continue
        for position, operand in enumerate(equation.invars):
            if isinstance(operand, Var) and operand in views:
                uses.append(_use(program, equation, position, views[operand]))
    if isinstance(program.output, Var) and program.output in views:
        uses.append(Use(views[program.output], "it is an output of the model"))
    return uses


def _use(program: Program, equation: JaxprEqn, position: int, view: View) -> Use:
    """The use of a view as the operand at `position`."""
    name = equation.primitive.name
    others = [
        other
        for place, other in enumerate(equation.invars)
        if place != position and isinstance(other, Var) and other in program.on_example
    ]
    if not others:
        return Use(view, f"it enters `{name}` with nothing that depends on the example")
    if name in _ELEMENTWISE:
        return Use(view, "")
    operation = recognize(equation, position)
    if isinstance(operation, str):
        return Use(view, operation)
    if view.repeats:
        return Use(view, f"it is repeated before it enters `{name}`")
    return Use(view, "", Product(view, operation, others[0], equation.outvars[0]))


def _groups(uses: list[Use]) -> list[list[Use]]:
    """The uses of one leaf, together where they share elements of it."""
    by_core: dict[Var, list[Use]] = {}
    for use in uses:
        by_core.setdefault(use.view.core.variable, []).append(use)
    pending = list(by_core.values())
    if len(pending) <= 1:
        return pending
    separate: list[tuple[list[Use], np.ndarray]] = []
    while pending:
        group = pending.pop(0)
        elements = _elements(group)
        shares = [bool((elements & others).any()) for _, others in separate]
        if any(shares):  # together they may take further elements, so compare them with all others again
            pairs = list(zip(shares, separate, strict=True))
            pending.insert(0, [use for met, (other, _) in pairs if met for use in other] + group)
            separate = [each for met, each in pairs if not met]
        else:
            separate.append((group, elements))
    return [group for group, _ in separate]


def _elements(group: list[Use]) -> np.ndarray:
    """A mask over the flat leaf: the elements that the block of a group will hold."""
    views = [use.view for use in group] if _products(group) else [_common(group)]
    mask = np.zeros(math.prod(views[0].lineage[0].shape), bool)
    for view in views:
        mask[view.positions()] = True
    return mask


def _common(group: list[Use]) -> View:
    """The last view that repeats nothing and that every use of the group goes through."""
    lineages = [use.view.core.lineage for use in group]
    shared = [
        views[0] for views in zip(*lineages, strict=False) if len({each.variable for each in views}) == 1
    ]
    return shared[-1]


def _products(group: list[Use]) -> tuple[Product, ...]:
    """The products of a group, if it has no other uses and all take the elements in one layout; else none."""
    products = tuple(use.product for use in group if use.product is not None)
    kinds = {isinstance(product.operation, Embedding) for product in products}
    if len(products) < len(group) or len(kinds) > 1:
        return ()
    if len(products) == 1:
        return products
    layouts = [product.operation.layout(product.view.positions()) for product in products]
    return products if all(np.array_equal(layouts[0], each) for each in layouts[1:]) else ()


def _block(group: list[Use], examples: int, outputs: int) -> tuple[AbstractBlock, str]:
    """The block of a group, and its kind, as in `Structure.kinds`."""
    leaf = group[0].view.leaf
    if products := _products(group):
        block = ProductBlock(leaf, products)
        contracted = _is_cheaper_contracted(block, examples, outputs)
        # An embedding's sum over positions is a table of gradients; the backward pass makes that at once.
        if contracted and block.is_embedding:
            return GradientBlock(leaf, _common(group)), block.operation.kind
        return dataclasses.replace(block, contracted=contracted), block.operation.kind
    reasons = sorted({use.reason for use in group if use.reason})
    if not reasons and any(use.product for use in group):
        reasons = ["the same elements are used in different ways"]
    kind = f"fallback ({'; '.join(reasons)})" if reasons else "elementwise"
    return GradientBlock(leaf, _common(group)), kind


def _is_cheaper_contracted(block: ProductBlock, examples: int, outputs: int) -> bool:
    """Whether J J^T costs less through per-example gradients than through pairs of positions.

    Operations for a pair of examples: T^2 groups (inputs + k^2 (outputs + 1)) against k^2 groups inputs
    outputs, and a share of what it takes to form the gradients.
    """
    positions, operation = block.positions, block.operation
    if positions == 1:
        return False
    width = 1 if block.is_embedding else operation.inputs
    pairs = positions**2 * (width + outputs**2 * (operation.outputs + 1))
    gradient = outputs * operation.inputs * operation.outputs
    forming = positions if not block.is_embedding else 1
    return outputs * gradient + forming * gradient / examples < pairs
