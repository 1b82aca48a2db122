"""Models of Keras 3 on its JAX backend as models of zeroloss."""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from zeroloss._pytrees import in_type, require_float64
from zeroloss.bridges._model import JAXModel, Sites, check_examples, check_names
from zeroloss.errors import InputError, UnsupportedError

try:
    import keras
except ImportError as error:
    raise ImportError(
        "zeroloss.from_keras needs Keras 3 on JAX: pip install 'zeroloss[keras]', and set KERAS_BACKEND=jax."
    ) from error

from keras.src.backend.common import dtypes as _dtypes  # no public place has what is exchanged below

_own_result_type = _dtypes._lattice_result_type
_OTHER_NOISES = (keras.layers.AlphaDropout, keras.layers.GaussianDropout, keras.layers.GaussianNoise)
_LOCK = threading.RLock()


class KerasModel(JAXModel):
    """A Keras model as a function of its parameters.

    `zeroloss.from_keras` makes one. `params` are the trainable variables and `sites` the layers, by their
    paths, such as "sequential/dense/kernel".
    """

    described = "Keras model"

    def __init__(self, model: Any):
        self._model = model
        self._fixed = [jnp.asarray(each.value) for each in model.non_trainable_variables]
        self.params = {each.path: in_type(each.value, jnp.float64) for each in model.trainable_variables}
        if len(self.params) < len(model.trainable_variables):
            raise UnsupportedError("two variables of the Keras model have one path. Give its layers names.")
        if not self.params:
            raise InputError("the Keras model has no trainable variables. Call model.build(...) first.")
        self.sites = {}

    def weights(self, params: Mapping[str, Array]) -> list[np.ndarray]:
        """What `set_weights` of the Keras model takes: `params`, with the variables that are not trained."""
        check_names(params, self.params)
        return [np.asarray(params.get(each.path, each.value), each.dtype) for each in self._model.weights]

    def evaluate(self, params: Mapping[str, Array], inputs: PyTree, sites: Sites, seed: int | Array) -> Array:
        """See `JAXModel.evaluate`. No layer of Keras draws random numbers in evaluation mode."""
        leaves = [params[name] for name in self.params]
        real = jnp.result_type(*leaves)
        with _marking(self._model, str(real), sites):
            return self._model.stateless_call(leaves, in_type(self._fixed, real), inputs, training=False)[0]


def from_keras(model: Any, example_inputs: Any) -> KerasModel:
    """A Keras 3 model as a model of zeroloss, with its dropout as noise.

        model = zl.from_keras(net, x[:2])
        system = zl.CrossEntropy(model, x, y, smoothing=0.1).with_noise(model.dropout() + zl.MiniBatch(128))
        path = zl.predict(system, model.params, 0.1, 10_000)
        net.set_weights(model.weights(path.final))

    **Arguments:**

    - `model`: a built `keras.Model`, on the JAX backend; with logits as outputs for a cross-entropy. It is
      not changed. Batch normalization uses its moving averages; each `Dropout` and `SpatialDropout` becomes a
      site, and the weights of each `MultiHeadAttention`.
    - `example_inputs`: two or more examples, as the model takes them.

    **Returns:** a `KerasModel`, which computes in the type of its parameters, by default float64. Inputs are
    rounded to the input type of the model, as by Keras.

    **Raises:** `UnsupportedError` for another backend, for `GaussianNoise`, `GaussianDropout`,
    `AlphaDropout`, and for dropout inside of recurrent layers; `InputError` where outputs differ from those
    of Keras by more than float32 rounds.

    Costs a forward pass in float64 and one in the types of the model. Keras computes in the type that
    the layers and `keras.config.floatx` name, and never in float64 on JAX. All three are exchanged while the
    model is traced, by one thread at a time; a rounding that is left is an error.
    """
    require_float64("from_keras")
    if not isinstance(model, keras.Model):
        raise InputError(f"from_keras takes a keras.Model, got {type(model).__name__}.")
    if keras.backend.backend() != "jax":
        raise UnsupportedError(
            f"Keras computes on {keras.backend.backend()}, and zeroloss on JAX. Set KERAS_BACKEND=jax before "
            "keras is imported; saved models and weights load on it too."
        )
    check_examples(jax.tree.leaves(example_inputs))
    inputs = in_type(example_inputs, jnp.float32)
    for name, layer in _layers(model).items():
        _check_layer(name, layer)
    found = KerasModel(model)
    found.check(inputs, lambda: model(inputs, training=False))
    return found


def _result_type(*dtypes: Any) -> str:
    """The type of a result, without Keras's rule that JAX has no float64."""
    own = _own_result_type(*dtypes)
    return "float64" if own == "float32" and "float64" in dtypes else own


def _check_layer(name: str, layer: Any) -> None:
    """Raise `UnsupportedError` for a layer with noise that is no mask."""
    if isinstance(layer, _OTHER_NOISES):
        raise UnsupportedError(
            f"{name} is {type(layer).__name__}, which is no dropout of units. Take it out, and give its "
            "noise at a zeroloss.site: zeroloss.GaussianDropout or zeroloss.ActivationNoise."
        )
    rates = [getattr(layer, name, 0) or 0 for name in ("dropout", "recurrent_dropout")]
    if isinstance(layer, keras.layers.RNN) and max(rates) > 0:
        raise UnsupportedError(
            f"{name} has dropout inside of a recurrent layer, with one mask for all times. Use a "
            "SpatialDropout1D layer before it."
        )


@contextlib.contextmanager
def _marking(model: Any, dtype: str, sites: Sites) -> Iterator[None]:
    """Layers compute in `dtype`, and each dropout marks a site, until the context ends."""
    with _LOCK, contextlib.ExitStack() as stack:

        def exchange(owner: Any, name: str, value: Any) -> None:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)

        stack.callback(keras.config.set_floatx, keras.config.floatx())
        keras.config.set_floatx(dtype)
        exchange(_dtypes, "_lattice_result_type", _result_type)
        for variable in model.variables:
            if "float" in variable._dtype:
                exchange(variable, "_dtype", dtype)
        for name, layer in _layers(model).items():
            exchange(layer, "_dtype_policy", keras.dtype_policies.get(dtype))
            if isinstance(layer, keras.layers.Dropout):
                object.__setattr__(layer, "call", _marker(name, layer, sites))
                stack.callback(object.__delattr__, layer, "call")
        yield


def _marker(name: str, layer: Any, sites: Sites) -> Any:
    def call(inputs: Array, training: Any = None) -> Array:
        if hasattr(layer, "_get_noise_shape"):
            shape = layer._get_noise_shape(inputs)
        else:
            shape = layer.noise_shape or (None,) * inputs.ndim
        shared = tuple(axis for axis, size in enumerate(shape) if size == 1 and inputs.shape[axis] != 1)
        return sites.mark(inputs, name, layer.rate, shared)

    return call


def _layers(model: Any) -> dict[str, Any]:
    """All layers at any depth, and the model itself, by their paths."""
    found: dict[str, Any] = {}

    def add(layer: Any, path: str) -> None:
        if any(layer is each for each in found.values()):
            return
        found[path if path not in found else f"{path}#{len(found)}"] = layer
        for each in layer._layers:
            add(each, f"{path}/{each.name}")

    add(model, model.name)
    return found
