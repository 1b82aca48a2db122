"""A noise written by the user: a function and a law."""

from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
from jaxtyping import PyTree

from zeroloss.errors import InputError
from zeroloss.noise._activations import check_per
from zeroloss.noise._laws import AbstractLaw, Independent
from zeroloss.noise._noise import AbstractInjection, Forward


class CustomNoise(AbstractInjection):
    """Any noise in a forward pass: `function(forward, eta)` rewrites the pass, eta has the law `law`.

    For example, one random brightness for each image:

        def brightness(forward, eta):
            return forward.replace(inputs=forward.inputs * (1 + eta[:, None]))

        noise = zeroloss.CustomNoise(brightness, zeroloss.Gaussian((), sigma=0.1))

    **Arguments:**

    - `function`: `function(forward, eta) -> forward`, the same forward pass when eta = 0. A `forward` has
      `model`, `params`, `inputs` and `targets`; `forward.replace(...)` exchanges some of them, and
      `forward.push(force)` adds `force`, a pytree like params, to the gradient.
    - `law`: with `per="example"` the law of one example's noise (eta then has a leading axis over examples);
      with `per="step"` the law of the noise that all examples of a step share.

    A loss without examples has noise per step only. The noise acts before the gradient is taken, so it cannot
    describe changes of the gradient itself, such as clipping (theory.md, section 4).
    """

    function: Callable[[Forward, PyTree], Forward] = eqx.field(static=True)
    one: AbstractLaw
    per: Literal["example", "step"] = eqx.field(static=True)

    def __init__(
        self,
        function: Callable[[Forward, PyTree], Forward],
        law: AbstractLaw,
        per: Literal["example", "step"] = "example",
    ):
        self.function = function
        self.one = law
        self.per = check_per(per)

    def scaled(self, factor: float) -> "CustomNoise":
        return CustomNoise(self.function, self.one.scaled(factor), self.per)

    def law(self, forward: Forward) -> AbstractLaw:
        if self.per == "step":
            return self.one
        if forward.inputs is None:
            raise InputError('a loss without examples has noise per step only: pass per="step".')
        return Independent(self.one, jax.tree.leaves(forward.inputs)[0].shape[0])

    def apply(self, forward: Forward, eta: PyTree) -> Forward:
        if forward.inputs is not None:
            return self.function(forward, eta)
        try:
            return self.function(forward, eta)
        except (AttributeError, TypeError) as error:
            raise InputError(
                "the function of CustomNoise fails on a loss without examples, for which forward.inputs and "
                f"forward.targets are None ({type(error).__name__}: {error}). A noise on these is for "
                "zeroloss.LeastSquares."
            ) from error
