"""The package's own errors. Each says what was wrong, the number that showed it, and what to do."""

import functools
from typing import Any


class ZerolossError(Exception):
    """Base class of every error raised on purpose by zeroloss."""


class InputError(ZerolossError, ValueError):
    """An argument is malformed: wrong shape, out of range, unknown name, NaN or infinite."""


class PrecisionError(ZerolossError):
    """Float32, where the geometry of the zero-loss set needs float64."""


class LossError(ZerolossError, ValueError):
    """The loss is not a loss as zeroloss understands it: negative, or not itself at zero noise."""


class NoMinimumError(LossError):
    """The loss has no minimum, as cross-entropy of hard labels, so that there is no zero-loss set.

    Where `zeroloss.classify` raises it, there are the two numbers that say how much the noise does
    nevertheless (theory.md, section 8); otherwise they are None.

    - `drift_ratio`: sigma^2 |P_T grad Reg| / |grad L|, P_T along the set of equal outputs: the speed by the
      noise over that by the loss.
    - `regularizer_ratio`: sigma^2 Reg / L.
    """

    def __init__(
        self, message: str, drift_ratio: float | None = None, regularizer_ratio: float | None = None
    ):
        super().__init__(message)
        self.drift_ratio = drift_ratio
        self.regularizer_ratio = regularizer_ratio


class AccuracyWarning(UserWarning):
    """A result is less accurate than elsewhere; the message has the number that says so."""


class NotReachedError(ZerolossError):
    """The zero-loss set was not reached from the given start."""


class NotOnSetError(ZerolossError, ValueError):
    """A verb that works on the zero-loss set was given a point away from it."""


class RankError(ZerolossError):
    """The zero-loss set is not a manifold of constant rank at the given point."""


class StabilityError(ZerolossError, ValueError):
    """The step size is beyond the stability limit 2 / largest Hessian eigenvalue.

    `path` holds what was found until then, or None.
    """

    path: Any = None


class DivergenceError(ZerolossError):
    """A training run left the finite numbers.

    `step` is the first step after which some parameter was not finite, `path` what had been saved.
    """

    def __init__(self, message: str, step: int, path: Any = None):
        super().__init__(message)
        self.step = step
        self.path = path


class IntegrationError(ZerolossError):
    """The limiting dynamics could not be followed further; `path` holds it so far, or None."""

    def __init__(self, message: str, path: Any = None):
        super().__init__(message)
        self.path = path


class BudgetError(IntegrationError):
    """The budget of a computation is used up; `path` holds what was found until then, or None."""


class SpreadError(IntegrationError):
    """Single runs scatter too widely for their mean to be predicted; `path` holds the attempt."""


class UnsupportedError(ZerolossError, NotImplementedError):
    """The request is meaningful but this version cannot serve it."""


class RunError(ZerolossError):
    """A run folder cannot be used as asked."""


class Interrupted(KeyboardInterrupt):
    """A computation that has a checkpoint was stopped, after it had saved its state.

    `signal` is the number of the signal, SIGTERM where it was asked in another way; `at_once` says that not
    all of the state was saved, as after a second signal.
    """

    def __init__(self, message: str, signal: int, *, at_once: bool = False):
        super().__init__(message)
        self.signal = signal
        self.at_once = at_once

    def __reduce__(self) -> tuple[Any, ...]:  # as processes of a pool hand it on
        return functools.partial(type(self), at_once=self.at_once), (str(self), self.signal)
