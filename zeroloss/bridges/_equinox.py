"""Models of Equinox as models of zeroloss."""

import inspect
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from zeroloss._pytrees import in_type, require_float64
from zeroloss.bridges._model import JAXModel, Sites, as_arguments, check_examples, check_names
from zeroloss.errors import InputError, UnsupportedError


class _SiteDropout(eqx.nn.Dropout):
    """Dropout that marks a site in place of dropping."""

    path: str = eqx.field(static=True)
    sites: Sites = eqx.field(static=True)

    def __init__(self, layer: eqx.nn.Dropout, path: str, sites: Sites):
        self.p, self.inference, self.path, self.sites = layer.p, layer.inference, path, sites

    def __call__(self, x: Array, *, key: Any = None, inference: Any = None, **_: Any) -> Array:
        return self.sites.mark(x, self.path, float(self.p))


class EquinoxModel(JAXModel):
    """An Equinox module of one example, as a function of its parameters and of many examples.

    `zeroloss.from_equinox` makes one. `params` and `sites` have the paths of `jax.tree_util.keystr` as names,
    such as ".layers[0].weight".
    """

    described = "Equinox module"

    def __init__(self, module: Any, trained: Any, state: Any):
        self._state = state
        self._trained, self._fixed = eqx.partition(module, trained)
        self.params = {name: in_type(leaf, jnp.float64) for name, leaf in _named(self._trained)}
        if not self.params:
            raise InputError("the Equinox module has no floating-point parameters to train.")
        self.sites = {}

    def module(self, params: Mapping[str, Array]) -> Any:
        """The module with these parameters, in the types of its own."""
        check_names(params, self.params)
        own = [params[name].astype(leaf.dtype) for name, leaf in _named(self._trained)]
        trained = jax.tree.unflatten(jax.tree.structure(self._trained), own)
        return eqx.combine(trained, self._fixed)

    def evaluate(self, params: Mapping[str, Array], inputs: PyTree, sites: Sites, seed: int | Array) -> Array:
        """See `JAXModel.evaluate`. The module gets a key of `seed` if it takes one."""
        leaves = [params[name] for name in self.params]
        real = jnp.result_type(*leaves)
        trained = jax.tree.unflatten(jax.tree.structure(self._trained), leaves)
        fixed = jax.tree.map(
            lambda leaf: in_type(leaf, real) if eqx.is_array(leaf) else leaf, (self._fixed, self._state)
        )
        module, state = eqx.combine(trained, fixed[0]), fixed[1]
        module = _with_sites(module, sites)
        call = _call(module, jax.random.key(seed), state)
        return jax.vmap(call)(*as_arguments(inputs))


def from_equinox(
    module: Any, example_inputs: Any, *, state: Any = None, trained: Any = eqx.is_inexact_array
) -> EquinoxModel:
    """An Equinox module as a model of zeroloss, with its dropout as noise.

        model = zl.from_equinox(net, x[:2])
        system = zl.CrossEntropy(model, x, y, smoothing=0.1).with_noise(model.dropout() + zl.MiniBatch(128))
        path = zl.predict(system, model.params, 0.1, 10_000)
        net = model.module(path.final)

    **Arguments:**

    - `module`: a function of one example, as Equinox means modules; `jax.vmap` runs it over examples. Each
      `eqx.nn.Dropout` in it becomes a site, whether in inference mode or not.
    - `example_inputs`: two or more examples along the first axis of an array, or of each array of a tuple,
      which are the arguments of the module.
    - `state`: the `eqx.nn.State` of a module with batch normalization, which is called in inference mode.
    - `trained`: which leaves are parameters, as the filter of `equinox.partition`.

    **Returns:** an `EquinoxModel`, which computes in the type of its parameters, by default float64.

    **Raises:** `UnsupportedError` for batch normalization without `state`, and where the module draws random
    numbers beside dropout; `InputError` where outputs differ from those of the module by more than float32
    rounds.

    Costs a forward pass in float64 and one in the types of the module.
    """
    require_float64("from_equinox")
    if not isinstance(module, eqx.Module):
        raise InputError(f"from_equinox takes an equinox.Module, got {type(module).__name__}.")
    given = as_arguments(example_inputs)
    check_examples(given)
    if state is None and _has_state(module):
        raise UnsupportedError(
            "the Equinox module has layers with a state, such as batch normalization. Pass state=, which "
            "they then use without changing it; or use eqx.nn.GroupNorm."
        )
    module = eqx.nn.inference_mode(module)
    model, call = EquinoxModel(module, trained, state), _call(module, jax.random.key(0), state)
    model.check(in_type(given, jnp.float64), lambda: jax.vmap(call)(*map(jnp.asarray, given)))
    return model


def _call(module: Any, key: Array, state: Any) -> Any:
    """The module as a function of the inputs of one example."""
    named = inspect.signature(type(module).__call__).parameters
    options = {"key": key} if "key" in named else {}

    def call(*inputs: Array) -> Any:
        if state is None:
            return module(*inputs, **options)
        return module(*inputs, state, **options)[0]

    return call


def _with_sites(module: Any, sites: Sites) -> Any:
    def replace(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, eqx.nn.Dropout):
            return leaf
        return _SiteDropout(leaf, jax.tree_util.keystr(path), sites)

    return jax.tree_util.tree_map_with_path(
        replace, module, is_leaf=lambda each: isinstance(each, eqx.nn.Dropout)
    )


def _has_state(module: Any) -> bool:
    leaves = jax.tree.leaves(module, is_leaf=_is_index)
    return any(map(_is_index, leaves))


def _is_index(leaf: Any) -> bool:
    return isinstance(leaf, eqx.nn.StateIndex)


def _named(tree: PyTree) -> list[tuple[str, Array]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
