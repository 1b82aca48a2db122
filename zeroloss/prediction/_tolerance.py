"""How exactly a mean path is followed, and at what cost."""

import dataclasses

from zeroloss._arguments import relative_tolerance
from zeroloss.errors import InputError

MOST_GRADIENTS = 1e6


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """The accuracy of a prediction, and a bound on its cost.

    `zeroloss.predict` and `zeroloss.how_long` take a number in its place: 1e-3 and `zl.Tolerance(1e-3)` are
    the same.

    **Arguments:**

    - `rtol`: by how much predictor and corrector may differ in a step of the integrator, relative to the
      distance travelled, or to |w| / 10 where that is larger. In (0, 0.01].
    - `max_gradients`: the largest cost of a path, in gradients of the clean loss over all examples, as
      much as so many steps of training a single run. It is an estimate: a step of the integrator counts as
      60, a draw of a sampled average as 4. Algebra of m x m matrices is not counted. Each run of the ensemble
      of `zeroloss.predict` may cost as much again.

    **Raises:** `InputError` for an `rtol` or a number of gradients outside of these bounds.

    ```python
    path = zl.predict(system, params, 0.1, 10_000, rtol=zl.Tolerance(1e-4, max_gradients=1e5))
    ```
    """

    rtol: float = 1e-3
    max_gradients: float = MOST_GRADIENTS

    def __post_init__(self) -> None:
        relative_tolerance(self.rtol)
        if not self.max_gradients > 0:
            raise InputError(f"max_gradients must be positive, got {self.max_gradients}.")


def as_tolerance(value: float | Tolerance) -> Tolerance:
    """`value` itself if it is a `Tolerance`; otherwise the tolerance with this `rtol`."""
    return value if isinstance(value, Tolerance) else Tolerance(value)
