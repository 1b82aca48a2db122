"""Where the parameter leaves enter a program, and which form the derivative takes there.

A leaf reaches the operations that use it through views: reshaped, transposed, sliced, scaled by a number.
Uses that share elements of a leaf make one block, since their derivatives add before they are squared;
uses of different elements do not meet in J J^T and make blocks of their own.
"""

import dataclasses
import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zeroloss._jaxprs import Atom, Equation, Program
from zeroloss.jacobians._operations import AbstractOperation, Embedding, recognize

_log = logging.getLogger(__name__)

_REARRANGING = frozenset({"reshape", "transpose", "squeeze", "expand_dims", "rev", "copy", "slice", "split"})
_ELEMENTWISE = frozenset({"add", "sub", "mul", "div", "add_any", "max", "min", "pow", "atan2"})


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A variable that holds elements of a leaf, each at most once unless it `repeats` them."""

    variable: int
    leaf: int
    shape: tuple[int, ...]
    parent: "View | None" = None
    equation: Equation | None = None
    repeats: bool = False

    @property
    def lineage(self) -> "tuple[View, ...]":
        """The views from the leaf to this one."""
        return (self,) if self.parent is None else (*self.parent.lineage, self)

    @property
    def core(self) -> "View":
        """The last view, this one or before it, that repeats nothing."""
        return next(view for view in reversed(self.lineage) if not view.repeats)

    @property
    def factors(self) -> tuple[tuple[str, Atom], ...]:
        """The numbers that the leaf is multiplied with, divided by or negated ("neg", any) on the way."""
        found: list[tuple[str, Atom]] = []
        for view in self.lineage:
            if view.equation is not None and view.parent is not None:
                name, operands = view.equation.name, view.equation.operands
                if name in ("mul", "div", "neg"):
                    others = [operand for operand in operands if operand != view.parent.variable]
                    found.append((name, others[0] if others else operands[0]))
        return tuple(found)


@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """An operand that is a view. `reason` says why it is nothing that is recognized, empty where it is.

    `operation` is None where there is nothing to gain from one, as for a bias or a scale.
    """

    view: View
    reason: str
    operation: AbstractOperation | None = None
    other: int | None = None
    result: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class ProductBlock:
    """Operations that use the same elements in the same layout; their positions follow each other.

    `contracted` where A and D are summed over positions to per-example gradients.
    """

    leaf: int
    operations: tuple[AbstractOperation, ...]
    views: tuple[View, ...]
    others: tuple[int, ...]
    results: tuple[int, ...]
    contracted: bool = False

    @property
    def is_embedding(self) -> bool:
        """Whether A holds the numbers of rows."""
        return isinstance(self.operations[0], Embedding)

    @property
    def positions(self) -> int:
        """Positions of all operations together."""
        return sum(operation.positions for operation in self.operations)

    def elements(self, leaf: Array) -> Float[Array, "groups inputs outputs"]:
        """Those of a leaf, or of what is shaped like it, that this block is about."""
        return self.operations[0].layout(_held(self.views[0], leaf))

    def floats(self, outputs: int) -> int:
        """Numbers kept for one example."""
        operation = self.operations[0]
        if self.contracted:
            return outputs * operation.groups * operation.inputs * operation.outputs
        width = 1 if self.is_embedding else operation.inputs
        return self.positions * operation.groups * (width + outputs * operation.outputs)


@dataclasses.dataclass(frozen=True, eq=False)
class GradientBlock:
    """A view that all uses of some elements of a leaf go through; J with respect to it, as it is."""

    leaf: int
    view: View
    size: int

    def elements(self, leaf: Array) -> Float[Array, " size"]:
        """Those of a leaf, or of what is shaped like it, that this block is about."""
        return _held(self.view, leaf).reshape(-1)

    def floats(self, outputs: int) -> int:
        """Numbers kept for one example."""
        return outputs * self.size


Block = ProductBlock | GradientBlock


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The blocks of a program, and for every leaf how it was found to be used."""

    program: Program
    blocks: tuple[Block, ...]
    kinds: tuple[str, ...]


def make_plan(program: Program, names: tuple[str, ...], examples: int, outputs: int) -> Plan:
    """Find the blocks, and decide the form of each by what J J^T costs for so many examples and outputs."""
    uses = _uses(program)
    blocks: list[Block] = []
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


def _views(program: Program) -> dict[int, View]:
    views = {
        variable: View(variable, leaf, program.shape(variable))
        for leaf, variable in enumerate(program.leaves)
    }
    for equation in program.equations:
        for operand in equation.operands:
            if isinstance(operand, int) and operand in views and _is_view(program, equation, operand):
                parent = views[operand]
                for result in equation.results:
                    repeats = parent.repeats or math.prod(program.shape(result)) > math.prod(parent.shape)
                    views[result] = View(
                        result, parent.leaf, program.shape(result), parent, equation, repeats
                    )
    return views


def _is_view(program: Program, equation: Equation, operand: int) -> bool:
    name = equation.name
    if name in _REARRANGING or name == "neg":
        return True
    if name == "broadcast_in_dim":
        return len(equation.operands) == 1
    if name == "convert_element_type":
        return program.is_floating(equation.results[0])
    if name not in ("mul", "div") or (name == "div" and equation.operands[0] != operand):
        return False
    others = [other for other in equation.operands if not isinstance(other, int) or other != operand]
    return len(others) == 1 and program.shape(others[0]) == () and program.is_constant(others[0])


def _uses(program: Program) -> list[Use]:
    views = _views(program)
    uses: list[Use] = []
    for equation in program.equations:
        if equation.name == "stop_gradient" or not any(map(program.is_floating, equation.results)):
            continue  # no derivative, as of a comparison
        if any(result in views for result in equation.results):
            continue
        for position, operand in enumerate(equation.operands):
            if isinstance(operand, int) and operand in views:
                uses.append(_use(program, equation, position, views[operand]))
    for output in program.outputs:
        if isinstance(output, int) and output in views:
            uses.append(Use(views[output], "it is an output of the model"))
    return uses


def _use(program: Program, equation: Equation, position: int, view: View) -> Use:
    others = [
        other
        for place, other in enumerate(equation.operands)
        if place != position and isinstance(other, int) and other in program.on_example
    ]
    if not others:
        return Use(view, f"it enters `{equation.name}` with nothing that depends on the example")
    if equation.name in _ELEMENTWISE:
        return Use(view, "")
    operation = recognize(program, equation, position)
    if isinstance(operation, str):
        return Use(view, operation)
    if view.repeats:
        return Use(view, f"it is repeated before it enters `{equation.name}`")
    return Use(view, "", operation, others[0], equation.results[0])


def _groups(uses: list[Use]) -> list[list[Use]]:
    """The uses of one leaf, together where they share elements of it."""
    by_core: dict[int, list[Use]] = {}
    for use in uses:
        by_core.setdefault(use.view.core.variable, []).append(use)
    pending, groups = list(by_core.values()), []
    while pending:
        groups, pending = pending, []
        if len(groups) == 1:
            break
        root = groups[0][0].view.lineage[0]
        owner = np.full(math.prod(root.shape), -1)
        separate: list[list[Use]] = []
        for group in groups:
            elements = _elements(group)
            met = {int(each) for each in np.unique(owner[elements]) if each >= 0}
            if met:  # a larger group may lay claim to more, so begin again
                together = [use for index in sorted(met) for use in separate[index]] + group
                rest = [each for index, each in enumerate(separate) if index not in met]
                later = groups[groups.index(group) + 1 :]
                pending = [*rest, together, *later]
                break
            owner[elements] = len(separate)
            separate.append(group)
    return groups


def _elements(group: list[Use]) -> np.ndarray:
    """Which elements of the leaf a group takes for itself."""
    views = [use.view for use in group] if _shares_layout(group) else [_common(group)]
    return np.unique(np.concatenate([_numbered(view).reshape(-1) for view in views]))


def _common(group: list[Use]) -> View:
    """The last view that repeats nothing and that every use of the group goes through."""
    lineages = [use.view.core.lineage for use in group]
    shared = [
        views[0] for views in zip(*lineages, strict=False) if len({each.variable for each in views}) == 1
    ]
    return shared[-1]


def _shares_layout(group: list[Use]) -> bool:
    operations = [use.operation for use in group if use.operation is not None]
    if len(operations) < len(group) or len({isinstance(each, Embedding) for each in operations}) > 1:
        return False
    if len(group) == 1:
        return True
    numbers = [each.layout(_numbered(use.view)) for each, use in zip(operations, group, strict=True)]
    return all(np.array_equal(numbers[0], each) for each in numbers[1:])


def _numbered(view: View) -> np.ndarray:
    """The leaf's elements, numbered, where the view holds them."""
    shape = view.lineage[0].shape
    with jax.ensure_compile_time_eval():
        return np.asarray(_held(view, jnp.arange(math.prod(shape)).reshape(shape)))


def _held(view: View, leaf: Array) -> Array:
    """The elements of `leaf` where the view holds them, without its factors."""
    for each in view.lineage[1:]:
        equation = each.equation
        assert equation is not None
        if equation.name in _REARRANGING or equation.name == "broadcast_in_dim":
            leaf = equation.apply(leaf)[equation.results.index(each.variable)]
    return leaf


def _block(group: list[Use], examples: int, outputs: int) -> tuple[Block, str]:
    leaf = group[0].view.leaf
    operations = tuple(use.operation for use in group if use.operation is not None)
    if _shares_layout(group):
        others = tuple(use.other for use in group if use.other is not None)
        results = tuple(use.result for use in group if use.result is not None)
        block = ProductBlock(leaf, operations, tuple(use.view for use in group), others, results)
        contracted = _is_cheaper_contracted(block, examples, outputs)
        if not (contracted and block.is_embedding):  # such a sum over positions is what a backward pass does
            return dataclasses.replace(block, contracted=contracted), operations[0].kind
        reasons, kind = [], operations[0].kind
    else:
        reasons = sorted({use.reason for use in group if use.reason})
        kind = "elementwise"
        if operations and not reasons:
            reasons = ["the same elements are used in different ways"]
    view = _common(group)
    kind = f"fallback ({'; '.join(reasons)})" if reasons else kind
    return GradientBlock(leaf, view, math.prod(view.shape)), kind


def _is_cheaper_contracted(block: ProductBlock, examples: int, outputs: int) -> bool:
    """Whether J J^T costs less through per-example gradients than through pairs of positions.

    Operations for a pair of examples: T^2 groups (inputs + k^2 (outputs + 1)) against k^2 groups inputs
    outputs, and a share of what it takes to form the gradients.
    """
    positions, operation = block.positions, block.operations[0]
    if positions == 1:
        return False
    width = 1 if block.is_embedding else operation.inputs
    pairs = positions**2 * (width + outputs**2 * (operation.outputs + 1))
    gradient = outputs * operation.inputs * operation.outputs
    forming = positions if not block.is_embedding else 1
    return outputs * gradient + forming * gradient / examples < pairs
