"""Models of Flax NNX as models of zeroloss."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from zeroloss._pytrees import require_float64
from zeroloss.bridges._model import (
    BridgedModel,
    Sites,
    as_float64,
    attention_weights,
    check_deterministic,
    check_names,
    check_outputs,
    check_types,
)
from zeroloss.errors import InputError, UnsupportedError

try:
    from flax import nnx
except ImportError as error:
    raise ImportError("zeroloss.from_nnx needs Flax: pip install 'zeroloss[flax]'.") from error

_KIND = "NNX module"


class NNXModel(BridgedModel):
    """An NNX module as a function of its parameters.

    `zeroloss.from_nnx` makes one. `params` and `sites` have the paths of NNX as names, such as
    "layers.0.kernel".
    """

    def __init__(self, module: nnx.Module, trained: Any):
        self._own = module
        self._graph, own, self._fixed = nnx.split(module, trained, ...)
        self._trained = {_joined(path): leaf for path, leaf in nnx.to_flat_state(own)}
        self._paths = {_joined(path): path for path, _ in nnx.to_flat_state(own)}
        self.params = {name: as_float64(leaf[...]) for name, leaf in self._trained.items()}
        if not self.params:
            raise InputError(f"the {_KIND} has no parameters to train.")
        self.sites = {}

    def __call__(self, params: Mapping[str, Array], inputs: PyTree) -> Array:
        """The outputs, without dropout. A tuple of inputs is that of the arguments of the module."""
        return self.evaluate(params, inputs, Sites(), 0)

    def module(self, params: Mapping[str, Array]) -> Any:
        """A module with these parameters, in the types of the one that was given, and in its mode."""
        check_names(params, self.params)
        module = nnx.clone(self._own)
        nnx.update(
            module, self._state({name: params[name].astype(own.dtype) for name, own in self._trained.items()})
        )
        return module

    def evaluate(self, params: Mapping[str, Array], inputs: PyTree, sites: Sites, seed: int) -> Array:
        """The outputs; enters the sites that are passed. `seed` changes the random numbers of the module."""
        real = jnp.result_type(*params.values())

        def fixed(leaf: Any) -> Any:
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return jax.random.fold_in(leaf, seed)
            return leaf.astype(real) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

        module = nnx.merge(self._graph, self._state(params), jax.tree.map(fixed, self._fixed))
        module.eval()
        _put_sites(module, sites, real)
        given = inputs if isinstance(inputs, tuple) else (inputs,)
        return module(*given)

    def _state(self, params: Mapping[str, Array]) -> Any:
        flat = [(self._paths[name], own.replace(params[name])) for name, own in self._trained.items()]
        return nnx.from_flat_state(flat)


def from_nnx(module: Any, example_inputs: Any, *, trained: Any = None) -> NNXModel:
    """A Flax NNX module as a model of zeroloss, with its dropout as noise.

        model = zl.from_nnx(net, x[:2])
        system = zl.CrossEntropy(model, x, y, smoothing=0.1).with_noise(model.dropout() + zl.MiniBatch(128))
        path = zl.predict(system, model.params, 0.1, 10_000)
        net = model.module(path.final)

    **Arguments:**

    - `module`: its variables `nnx.Param` become `params`. It is not changed. Batch normalization uses its
      running statistics; each `nnx.Dropout` becomes a site, and the weights of each `nnx.MultiHeadAttention`.
    - `example_inputs`: two or more examples along the first axis of an array, or of each array of a tuple,
      which are the arguments of the module.
    - `trained`: which variables are parameters, as a filter of NNX; by default `nnx.Param`.

    **Returns:** an `NNXModel`, which computes in the type of its parameters, by default float64.

    **Raises:** `UnsupportedError` where the module casts to a shorter type, or draws random numbers beside
    dropout; `InputError` where outputs differ from those of the module by more than float32 rounds.

    Costs a forward pass in float64 and one in the types of the module.
    """
    require_float64("from_nnx")
    if not isinstance(module, nnx.Module):
        raise InputError(f"from_nnx takes a flax.nnx.Module, got {type(module).__name__}.")
    given = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    if any(jnp.ndim(each) == 0 or len(each) < 2 for each in given):
        raise InputError("example_inputs must hold two or more examples along the first axis of each input.")
    model, sites = NNXModel(module, nnx.Param if trained is None else trained), Sites()
    inputs = jax.tree.map(as_float64, given)
    outputs = model.evaluate(model.params, inputs, sites, 0)
    model.sites = sites.found
    check_types(model, model.params, inputs, _KIND)
    check_deterministic(outputs, model.evaluate(model.params, inputs, Sites(), 1), _KIND)
    twin = nnx.clone(module)
    twin.eval()
    check_outputs(outputs, twin(*map(jnp.asarray, given)), _KIND)
    return model


def _put_sites(module: nnx.Module, sites: Sites, real: Any) -> None:
    """Make each dropout of a module, which is changed, mark a site; its layers compute in `real`."""
    for path, each in nnx.iter_modules(module):
        name = _joined(path)
        computed = getattr(each, "dtype", None)  # the type that a layer computes in
        if computed is not None and jnp.issubdtype(computed, jnp.floating):
            vars(each)["dtype"] = real
        if isinstance(each, nnx.Dropout):
            each.__class__ = _SiteDropout
            vars(each)["mark"] = _marker(each, name, sites)
        elif isinstance(each, nnx.MultiHeadAttention):
            if each.attention_fn is not nnx.dot_product_attention:
                if each.dropout_rate > 0:
                    raise UnsupportedError(
                        f"the attention at {name!r} has an attention_fn of its own, whose dropout is not "
                        "known. Set dropout_rate=0, or leave attention_fn out."
                    )
                continue
            each.attention_fn = _attention(name, each.dropout_rate, each.broadcast_dropout, sites)
        elif isinstance(each, nnx.BatchNorm) and not each.use_running_average:
            raise UnsupportedError(
                f"{name} is batch normalization that does not use its running statistics in evaluation mode; "
                "it couples examples. Use GroupNorm or LayerNorm."
            )


class _SiteDropout(nnx.Dropout):
    """Dropout that marks a site in place of dropping."""

    mark: Callable[[Array], Array]

    def __call__(self, inputs: Array, **_: Any) -> Array:
        return self.mark(inputs)


def _marker(layer: nnx.Dropout, name: str, sites: Sites) -> Callable[[Array], Array]:
    rate, dims = layer.rate, tuple(layer.broadcast_dims)
    return lambda value: sites.mark(value, name, rate, lambda axes: tuple(sorted(dim % axes for dim in dims)))


def _attention(name: str, rate: float, broadcast: bool, sites: Sites) -> Callable[..., Array]:
    """The attention of NNX, `[..., positions, heads, features]`, with a site at its weights."""

    def attention(
        query: Array, key: Array, value: Array, bias: Any = None, mask: Any = None, **options: Any
    ) -> Array:
        if bias is not None:
            raise UnsupportedError(f"the attention at {name!r} has a bias, which is not supported.")
        groups = query.shape[-2] // key.shape[-2]
        key, value = (jnp.repeat(each, groups, axis=-2) for each in (key, value))
        query, key, value = (jnp.swapaxes(each, -3, -2) for each in (query, key, value))
        mask = None if mask is None else mask.astype(bool)
        weights = attention_weights(query, key, mask, bool(options.get("is_causal", False)), None)
        # NNX draws one mask for all examples and heads where it broadcasts.
        weights = sites.mark(weights, name, rate, lambda axes: tuple(range(axes - 2)) if broadcast else ())
        return jnp.swapaxes(weights @ value, -3, -2)

    return attention


def _joined(path: Any) -> str:
    return ".".join(map(str, path))
