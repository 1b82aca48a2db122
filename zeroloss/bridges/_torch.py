"""Models of PyTorch as models of zeroloss.

`torch.export` writes a module as a graph of high-level operations. The graph keeps each call of dropout,
with its rate and the path of its module. It is evaluated in JAX by a table of operations (`_aten.py`),
with a site at each call of dropout.
"""

import copy
import dataclasses
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from zeroloss._pytrees import in_type, require_float64
from zeroloss.bridges._aten import OPERATIONS
from zeroloss.bridges._model import (
    BridgedModel,
    DropoutSite,
    attention_weights,
    check_examples,
    check_names,
    relative_gap,
)
from zeroloss.bridges._recurrent import CELLS, recurrent
from zeroloss.errors import InputError, UnsupportedError
from zeroloss.noise import site

try:
    import torch
except ImportError as error:
    raise ImportError("zeroloss.from_torch needs PyTorch: pip install 'zeroloss[torch]'.") from error

_NUMBERS = (7, 11)  # of examples: primes that are no size of a layer at once
_AGREES = 1e-8  # relative: PyTorch has some constants, as of hardsigmoid, in float32
_DROPOUTS = ("aten.dropout", "aten.feature_dropout", "aten.dropout_", "aten.feature_dropout_")
_RANDOM = (
    "aten.rand",
    "aten.randn",
    "aten.rand_like",
    "aten.randn_like",
    "aten.bernoulli",
    "aten.bernoulli_",
)
_ALPHA = ("aten.alpha_dropout", "aten.feature_alpha_dropout", "aten.rrelu")
_BATCH_NORMS = (torch.nn.modules.batchnorm._BatchNorm,)
_PATHS = ("StochasticDepth", "DropPath")  # of torchvision and timm


class TorchModel(BridgedModel):
    """A PyTorch module as a function of its parameters, `model(params, inputs) -> outputs`.

    `zeroloss.from_torch` makes one.

    - `params`: the parameters that require gradients, by their names in `state_dict`, in float64. A
      parameter with several names, as of tied weights, has the first of them.
    - `sites`: the `DropoutSite` of each call of dropout, by the path of its module; a second call of the
      same module has the path with `#2`.
    """

    def __init__(
        self,
        module: "torch.nn.Module",
        graph: "torch.fx.Graph",
        names: Mapping[str, tuple[str, Any]],
        kinds: Mapping[str, str],
        operations: Mapping[str, Callable[..., Any]],
    ):
        self._module, self._graph, self._names = module, graph, names
        self._operations = {**OPERATIONS, **operations}
        first = {id(value): name for name, value in module.named_parameters()}
        every = module.named_parameters(remove_duplicate=False)
        self._aliases = {name: first[id(value)] for name, value in every}  # of tied weights
        trained = {name for name, value in module.named_parameters() if value.requires_grad}
        self.params = {}
        self._fixed: dict[str, Array] = {}
        for kind, value in names.values():
            if kind == "input":
                continue
            name, tensor = str(self._aliases.get(value[0], value[0])), value[1]
            array = _array(tensor)
            if kind == "parameter" and name in trained:
                self.params[name] = array
            else:
                self._fixed[name] = array
        self._site_names = _site_names(graph)
        self._kinds = kinds
        self.sites = {}

    def __call__(self, params: Mapping[str, Array], inputs: PyTree) -> Any:
        """The outputs, without dropout. `inputs`: an array, or a tuple of those of `forward`."""
        return self._evaluate(params, inputs, lambda name, value, rate, kind: site(value, name))

    def state_dict(self, params: Mapping[str, Array]) -> dict[str, "torch.Tensor"]:
        """What `module.load_state_dict` takes: `params` with the buffers and frozen parameters of the module.

        Tensors have the types and devices of the module's own.
        """
        check_names(params, self.params)
        own = self._module.state_dict(keep_vars=True)
        return {
            name: torch.as_tensor(np.array(params[self._aliases[name]])).to(value)
            if self._aliases.get(name) in params
            else value.detach().clone()
            for name, value in own.items()
        }

    def _evaluate(self, params: Mapping[str, Array], inputs: PyTree, mark: Callable[..., Array]) -> Any:
        """The outputs, with `mark(name, value, rate, kind)` in the place of each call of dropout."""
        given = list(inputs) if isinstance(inputs, tuple | list) else [inputs]
        number = jax.tree.leaves(inputs)[0].shape[0]
        real = jnp.result_type(*params.values()) if params else jnp.result_type(float)
        values: dict[Any, Any] = {}

        def read(argument: Any) -> Any:
            if isinstance(argument, torch.fx.Node):
                return values[argument]
            if isinstance(argument, tuple | list):
                return type(argument)(map(read, argument))
            if isinstance(argument, torch.dtype):
                return np.dtype(real if argument.is_floating_point else _DTYPES[argument])
            if isinstance(argument, torch.device | torch.layout | torch.memory_format):
                return None
            return argument

        for node in self._graph.nodes:
            if node.op == "placeholder":
                kind, value = self._names[node.name]
                if kind == "input":
                    values[node] = given[value]
                else:
                    name = str(self._aliases.get(value[0], value[0]))
                    array = params[name] if name in params else self._fixed[name]
                    values[node] = array if name in params else in_type(array, real)
            elif node.op == "output":
                return _only(read(node.args[0]), self._module)
            else:
                arguments = read(node.args)
                options = {name: read(value) for name, value in node.kwargs.items()}
                marked = _Marks(mark, self._site_names.get(node, ""), number, self._kinds)
                try:
                    values[node] = self._apply(node, arguments, options, marked)
                except (NotImplementedError, TypeError) as error:
                    raise UnsupportedError(
                        f"{_called(node)} in {_where(node)} cannot be computed in JAX with these arguments: "
                        f"{error}"
                    ) from error
        raise AssertionError("an exported graph has an output")

    def _apply(self, node: Any, arguments: Any, options: Any, marks: "_Marks") -> Any:
        name, overload = _name(node)
        if name in _DROPOUTS:
            rate = arguments[1] if len(arguments) > 1 else options.get("p", 0.5)
            kind = "channels" if "feature" in name else "units"
            return marks(arguments[0], rate, kind)
        if name == "aten.scaled_dot_product_attention":
            return _attention(marks, *arguments, **options)
        if name in CELLS:
            x, states, weights, has_biases, layers, rate, _, bidirectional, batch_first = arguments
            states = states if isinstance(states, list | tuple) else [states]
            shape = has_biases, layers, bidirectional, batch_first
            return recurrent(
                CELLS[name],
                x,
                states,
                weights,
                shape,
                lambda value, layer: marks(value, rate, "units", layer),
            )
        if name == "aten.sym_size":
            return arguments[0].shape[arguments[1]]
        if not name.startswith("aten."):
            return node.target(*arguments, **options)  # arithmetic of sizes, and getitem
        function = self._operations.get(overload) or self._operations.get(name)
        assert function is not None, name
        return function(*arguments, **options)


@dataclasses.dataclass
class _Marks:
    """Puts a site where dropout is called in an operation; examples must come first there."""

    mark: Callable[..., Array]
    name: str
    number: int
    kinds: Mapping[str, str]

    def __call__(self, value: Array, rate: float, kind: str, place: int | None = None) -> Array:
        name = self.name if not place else f"{self.name}.{place}"
        kind = self.kinds.get(name.partition("#")[0], kind)
        if value.shape[0] == self.number:
            return self.mark(name, value, rate, kind)
        if value.shape[0] % self.number == 0:  # such as examples and heads in one axis
            split = value.reshape(self.number, -1, *value.shape[1:])
            return self.mark(name, split, rate, kind).reshape(value.shape)
        raise UnsupportedError(
            f"dropout at {name!r} acts on an array of shape {value.shape}, whose first axis does not run "
            f"over the {self.number} examples. Use batch_first=True, or move the axis in forward."
        )


def from_torch(
    module: Any,
    example_inputs: Any,
    *,
    operations: Mapping[str, Callable[..., Any]] | None = None,
) -> TorchModel:
    """A PyTorch module as a model of zeroloss, with its dropout as noise.

        model = zl.from_torch(net, x[:2])
        system = zl.CrossEntropy(model, x, y, smoothing=0.1).with_noise(model.dropout() + zl.MiniBatch(128))
        path = zl.predict(system, model.params, 0.1, 10_000)
        net.load_state_dict(model.state_dict(path.final))

    **Arguments:**

    - `module`: its parameters become `params`, but for those that do not require gradients. The module is not
      changed. Batch normalization must be in evaluation mode (`net.eval()`), in which dropout is found all
      the same.
    - `example_inputs`: two or more examples: a tensor, an array, or a tuple of those that `forward` takes,
      the examples along the first axis of each.
    - `operations`: functions in JAX for operations that are missing or to be exchanged, by names such as
      "aten.relu", or "aten.max.dim" of one overload; with the arguments of the ATen operation.

    **Returns:** a `TorchModel`, which computes in the type of its parameters, by default float64.

    **Raises:** `UnsupportedError` for an operation without a counterpart, with its module; for control
    flow that depends on data; for batch normalization in training mode. `InputError` where outputs or
    gradients differ from those of PyTorch on `example_inputs` by more than 1e-8.

    Costs an export by PyTorch, some seconds, and a forward and backward pass of each. Examples must not
    influence each other, which is checked when the model is used.
    """
    require_float64("from_torch")
    if not isinstance(module, torch.nn.Module):
        raise InputError(f"from_torch takes a torch.nn.Module, got {type(module).__name__}.")
    examples = _tensors(example_inputs)
    for name, each in module.named_modules():
        if isinstance(each, _BATCH_NORMS) and (each.training or not each.track_running_stats):
            raise UnsupportedError(
                f"{name or 'the module'} is batch normalization in training mode, which couples examples. "
                "Call net.eval() first: dropout is found all the same, and batch normalization uses its "
                "running statistics. Or use GroupNorm."
            )
    twin = copy.deepcopy(module).to(device="cpu", dtype=torch.float64)
    kinds = _in_training_mode(twin)
    graph, names = _exported(twin, examples)
    model = TorchModel(module, graph, names, kinds, operations or {})
    _check_operations(model)
    for each in twin.modules():
        each.__dict__.pop("forward", None)  # the forward of branches is theirs again
    twin.eval()
    _find_sites(model, examples)
    _check_agreement(model, twin, examples)
    return model


def _in_training_mode(twin: "torch.nn.Module") -> dict[str, str]:
    """Put everything but normalization into training mode, and make branches that are dropped visible."""
    kinds: dict[str, str] = {}
    for name, each in twin.named_modules():
        if isinstance(each, (*_BATCH_NORMS, torch.nn.modules.instancenorm._InstanceNorm)):
            continue
        each.training = True
        if type(each).__name__ in _PATHS:
            rate = float(getattr(each, "p", None) or getattr(each, "drop_prob", 0.0) or 0.0)
            kinds[name] = "branches"
            each.forward = lambda x, rate=rate: torch.nn.functional.dropout(x, rate, training=True)
    return kinds


def _exported(twin: "torch.nn.Module", examples: tuple[Any, ...]) -> tuple[Any, dict[str, tuple[str, Any]]]:
    """The graph of a module; for each of its placeholders what stands there."""
    batch = torch.export.Dim("batch", min=2)
    shapes: Any = ({0: batch},) * len(examples)
    kinds = [each.kind for each in inspect.signature(twin.forward).parameters.values()]
    if kinds and kinds[0] == inspect.Parameter.VAR_POSITIONAL:  # the shapes of *inputs are one tuple
        shapes = (shapes,)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(twin, examples, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        raise UnsupportedError(
            f"PyTorch cannot export this module: {first} Control flow that depends on data, and squeeze() "
            "without a dimension, are usual reasons: use torch.where, and squeeze(1). The number of examples "
            "must be free: example_inputs needs two or more, and sizes must come from x.shape."
        ) from error
    names: dict[str, tuple[str, Any]] = {}
    number = 0
    state = {**program.state_dict, **program.constants}
    for spec in program.graph_signature.input_specs:
        kind = spec.kind.name
        if kind == "USER_INPUT":
            names[spec.arg.name], number = ("input", number), number + 1
        else:
            what = "parameter" if kind == "PARAMETER" else "buffer"
            assert spec.target is not None
            names[spec.arg.name] = what, (spec.target, state[spec.target])
    mutated = dict(program.graph_signature.buffers_to_mutate)
    if mutated:
        raise UnsupportedError(
            f"the module changes its buffer {next(iter(mutated.values()))!r} in forward; a model must be a "
            "function of its parameters and inputs. Call net.eval() first."
        )
    return program.graph, names


def _check_operations(model: TorchModel) -> None:
    """Raise `UnsupportedError` for the first operation that is missing."""
    special = {*_DROPOUTS, "aten.scaled_dot_product_attention", "aten.sym_size", *CELLS}
    for node in model._graph.nodes:
        if node.op != "call_function":
            continue
        name, overload = _name(node)
        if not name.startswith("aten.") or name in special:
            continue
        if name in _ALPHA:
            raise UnsupportedError(
                f"{_where(node)} is {name.removeprefix('aten.')}, which does not multiply by a mask. Use "
                "Dropout, or set its rate to 0 and take it out of the module."
            )
        if name == "aten.squeeze" and overload == "aten.squeeze.default":
            raise UnsupportedError(
                f"{_where(node)} calls squeeze() without a dimension, whose result depends on the number of "
                "examples. Name the dimension, such as squeeze(1)."
            )
        if name not in model._operations and overload not in model._operations:
            reason = " It draws random numbers." if name in _RANDOM else ""
            raise UnsupportedError(
                f"the operation {overload} in {_where(node)} has no counterpart in JAX yet.{reason} Give "
                f'one: zl.from_torch(net, x, operations={{"{name}": function}}), with the arguments of ATen.'
            )


def _find_sites(model: TorchModel, examples: tuple[Any, ...]) -> None:
    """Evaluate the model once, in shapes alone, to enter its sites."""
    found: dict[str, DropoutSite] = {}

    def mark(name: str, value: Array, rate: float, kind: Any) -> Array:
        shared = {"units": (), "channels": tuple(range(2, value.ndim)), "branches": None}
        found[name] = DropoutSite(float(rate), shared[kind])
        return value

    for number in _NUMBERS:  # an axis that has both lengths is that of the examples
        shapes = [jax.ShapeDtypeStruct((number, *each.shape[1:]), _array(each).dtype) for each in examples]
        jax.eval_shape(lambda params, *inputs: model._evaluate(params, inputs, mark), model.params, *shapes)
    model.sites = found


def _check_agreement(model: TorchModel, twin: "torch.nn.Module", examples: tuple[Any, ...]) -> None:
    """Raise `InputError` where outputs or gradients differ from those of PyTorch."""
    expected = _only(twin(*examples), twin)
    if not isinstance(expected, torch.Tensor) or not expected.is_floating_point():
        raise InputError("the module must return a floating-point tensor, such as logits.")
    if not model.params or not expected.requires_grad:
        raise InputError("the outputs of the module depend on no parameter that requires gradients.")
    weights = torch.linspace(-1.0, 2.0, expected.numel(), dtype=torch.float64).reshape(expected.shape)
    twin.zero_grad()
    (expected * weights).sum().backward()
    slopes = {name: each.grad for name, each in twin.named_parameters() if name in model.params}
    inputs = tuple(_array(each) for each in examples)
    given = inputs if len(inputs) > 1 else next(iter(inputs))

    def weighed(params: Mapping[str, Array]) -> tuple[Array, Array]:
        outputs = model(params, given)
        return jnp.sum(outputs * _array(weights)), outputs

    (_, outputs), gradients = jax.value_and_grad(weighed, has_aux=True)(model.params)
    pairs = [("outputs", np.asarray(outputs), expected.detach().numpy())]
    for name, slope in slopes.items():
        found = np.asarray(gradients[name])
        pairs.append(
            (f"the gradient by {name!r}", found, np.zeros_like(found) if slope is None else slope.numpy())
        )
    size = max(float(np.abs(pair[2]).max(initial=0.0)) for pair in pairs[1:]) if pairs[1:] else 0.0
    for what, one, other in pairs:
        gap = relative_gap(one, other, size if what != "outputs" else 0.0)
        if not gap <= _AGREES:
            raise InputError(
                f"{what} of the converted model and of PyTorch differ by {gap:.3g}, relative; they must "
                f"agree to {_AGREES:g}. Please report the module; operations= can exchange a function."
            )


def _site_names(graph: Any) -> dict[Any, str]:
    """A name for each call that may drop something out: the path of its module, with #2 for a second call."""
    names: dict[Any, str] = {}
    counts: dict[str, int] = {}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        name, _ = _name(node)
        if name not in (*_DROPOUTS, "aten.scaled_dot_product_attention", *CELLS):
            continue
        path = _path(node) or "dropout"
        counts[path] = counts.get(path, 0) + 1
        names[node] = path if counts[path] == 1 else f"{path}#{counts[path]}"
    return names


def _attention(marks: _Marks, query: Array, key: Array, value: Array, *given: Any, **named: Any) -> Array:
    """`scaled_dot_product_attention`, with a site at its weights."""
    options: dict[str, Any] = dict(
        attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
    )
    options |= dict(zip(options, given, strict=False)) | named
    if options["enable_gqa"]:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (jnp.repeat(each, groups, axis=-3) for each in (key, value))
    weights = attention_weights(query, key, options["attn_mask"], options["is_causal"], options["scale"])
    return marks(weights, options["dropout_p"], "units") @ value


def _name(node: Any) -> tuple[str, str]:
    """The names of an operation and of its overload, such as "aten.max" and "aten.max.dim"."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        overload = str(target)
        return overload.rpartition(".")[0], overload
    return getattr(target, "__name__", str(target)), str(target)


def _path(node: Any) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    return list(stack.values())[-1][0] if stack else ""


def _where(node: Any) -> str:
    path = _path(node)
    return f"module {path!r}" if path else "the module itself"


def _called(node: Any) -> str:
    return f"the operation {_name(node)[1]}"


def _only(outputs: Any, module: Any) -> Any:
    """The one output of a module."""
    if isinstance(outputs, tuple | list) and len(outputs) == 1:
        return outputs[0]
    if isinstance(outputs, tuple | list | dict):
        raise InputError(
            f"{type(module).__name__} returns {len(outputs)} outputs, and a model must return one, such as "
            "logits. Wrap it in a module whose forward returns the one that the loss takes."
        )
    return getattr(outputs, "logits", outputs)


def _tensors(inputs: Any) -> tuple[Any, ...]:
    """The inputs of `forward`, in float64 where they are floating-point."""
    given = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    found = []
    for each in given:
        tensor = torch.as_tensor(np.array(each) if isinstance(each, jax.Array) else each).detach().cpu()
        found.append(tensor.double() if tensor.is_floating_point() else tensor)
    check_examples(found)
    return tuple(found)


def _array(tensor: Any) -> Array:
    return jnp.asarray(tensor.detach().cpu().numpy())


_DTYPES = {
    torch.bool: bool,
    torch.int8: np.int8,
    torch.int16: np.int16,
    torch.int32: np.int32,
    torch.int64: np.int64,
    torch.uint8: np.uint8,
}
