"""Models of Flax NNX as models of zeroloss."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from zeroloss._pytrees import in_type, require_float64
from zeroloss.bridges._model import (
    JAXModel,
    Sites,
    as_arguments,
    attention_weights,
    check_examples,
    check_names,
)
from zeroloss.errors import InputError, UnsupportedError

try:
    from flax import nnx
except ImportError as error:
    raise ImportError("zeroloss.from_nnx needs Flax: pip install 'zeroloss[flax]'.") from error


class NNXModel(JAXModel):
    """An NNX module as a function of its parameters.

    `zeroloss.from_nnx` makes one. `params` and `sites` have the paths of NNX as names, such as
    "layers.0.kernel".
    """

    described = "NNX module"

    def __init__(self, module: nnx.Module, trained: Any):
        self._own = module
        self._graph, own, self._fixed = nnx.split(module, trained, ...)
        self._trained = {_joined(path): (path, leaf) for path, leaf in nnx.to_flat_state(own)}
        self.params = {name: in_type(leaf[...], jnp.float64) for name, (_, leaf) in self._trained.items()}
        if not self.params:
            raise InputError("the NNX module has no parameters to train.")
        self.sites = {}

    def module(self, params: Mapping[str, Array]) -> Any:
        """A module with these parameters, in the types of the one that was given, and in its mode."""
        check_names(params, self.params)
        module = nnx.clone(self._own)
        own = {name: params[name].astype(leaf.dtype) for name, (_, leaf) in self._trained.items()}
        nnx.update(module, self._state(own))
        return module

    def evaluate(self, params: Mapping[str, Array], inputs: PyTree, sites: Sites, seed: int | Array) -> Array:
        """See `JAXModel.evaluate`."""
        real = jnp.result_type(*params.values())

        def fixed(leaf: Any) -> Any:
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return jax.random.fold_in(leaf, seed)
            return in_type(leaf, real)

        module = nnx.merge(self._graph, self._state(params), jax.tree.map(fixed, self._fixed))
        module.eval()
        _put_sites(module, sites, real)
        return module(*as_arguments(inputs))

    def _state(self, params: Mapping[str, Array]) -> Any:
        flat = [(path, leaf.replace(params[name])) for name, (path, leaf) in self._trained.items()]
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
    given = as_arguments(example_inputs)
    check_examples(given)
    model, twin = NNXModel(module, nnx.Param if trained is None else trained), nnx.clone(module)
    twin.eval()
    model.check(in_type(given, jnp.float64), lambda: twin(*map(jnp.asarray, given)))
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
    return lambda value: sites.mark(value, name, rate, tuple(sorted(dim % value.ndim for dim in dims)))


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
        weights = sites.mark(weights, name, rate, tuple(range(weights.ndim - 2)) if broadcast else ())
        return jnp.swapaxes(weights @ value, -3, -2)

    return attention


def _joined(path: Any) -> str:
    return ".".join(map(str, path))
