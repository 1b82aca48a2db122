"""How long training takes: closed forms on the hyperbola, and refusals."""

import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import HYPERBOLA_POINT

import zeroloss as zl
from zeroloss.errors import InputError, UnsupportedError

HYPERBOLA = zl.LeastSquares(lambda w, x: w[0] * w[1] * x, jnp.ones(1), jnp.ones(1))
ALPHA, SIGMA = 1e-3, 1e-2


def time_until(cosh, rate):
    """Slow time until cosh 2s is `cosh`, where sinh 2s falls like exp(-rate t) (theory.md, section 6)."""
    start = np.sinh(2 * np.log(2))
    return np.log(start / np.sqrt(cosh**2 - 1)) / rate


@pytest.mark.parametrize("fraction", [0.5, 0.9])
@pytest.mark.parametrize(
    "noise,rate,power", [(zl.WeightNoise, 2, 1), (zl.LabelNoise, 1, 2)], ids=["weight", "label"]
)
def test_hyperbola(noise, rate, power, fraction):
    """Reg of weight noise, and half of tr H, is cosh 2s, which falls from 2.125 to 1."""
    system = HYPERBOLA.with_noise(noise(SIGMA))
    found = zl.how_long(system, HYPERBOLA_POINT, ALPHA, fraction=fraction)
    expected = time_until(2.125 - fraction * 1.125, rate) / (ALPHA**power * SIGMA**2)
    # Settled to 1 % of the whole change: of what is left at 90 %, a tenth, and half of that in the time.
    assert found.steps == pytest.approx(expected, rel=0.03 if fraction == 0.5 else 0.06)
    unit = 1 if power == 1 else 2
    assert (found.start, found.end) == pytest.approx((2.125 * unit, unit), rel=0.01)
    shares = (found.first, found.second)
    assert shares[power - 1] > 0.99 and sum(shares) == pytest.approx(1)
    assert found.quantity in str(found)


def test_a_coarser_tolerance_changes_the_answer_by_a_percent_or_so():
    system = HYPERBOLA.with_noise(zl.WeightNoise(0.1))
    fine, coarse = (zl.how_long(system, HYPERBOLA_POINT, 0.05, rtol=rtol).steps for rtol in (1e-4, 1e-2))
    assert coarse == pytest.approx(fine, rel=0.02)


def test_until_a_value_is_reached():
    system = HYPERBOLA.with_noise(zl.WeightNoise(SIGMA))

    def first(w):
        return w[0]

    found = zl.how_long(system, HYPERBOLA_POINT, ALPHA, of=first, value=1.5)
    cosh = (1.5**2 + 1 / 1.5**2) / 2
    assert found.steps == pytest.approx(time_until(cosh, 2) / (ALPHA * SIGMA**2), rel=0.01)
    assert found.quantity == "first" and np.isnan(found.end)


def test_a_schedule_that_begins_at_zero():
    """Labels act at the rate alpha^2: a warm-up of 1000 steps is worth a third of them, and costs 667."""
    step_size = 0.05

    def warm_up(step):
        return step_size * jnp.minimum(step / 1000, 1.0)

    system = HYPERBOLA.with_noise(zl.LabelNoise(0.3))  # quadratic in the noise: nothing is sampled
    found = zl.how_long(system, HYPERBOLA_POINT, warm_up)
    constant = zl.how_long(system, HYPERBOLA_POINT, step_size)
    # An error of rtol |w| = 0.002 in the way, which is some 0.5 by then, is one of 0.4 % in the time.
    assert found.steps == pytest.approx(constant.steps + 667, rel=0.01)
    assert constant.steps < 3000  # so that the warm-up counts


@pytest.mark.parametrize(
    "noise,arguments,error,message",
    [
        (zl.MiniBatch(1), {}, InputError, "does nothing"),
        (zl.Langevin(0.1), {}, UnsupportedError, "no mean path"),
        (zl.LabelNoise(0.1), {"fraction": 1.0}, InputError, "fraction must lie"),
        (zl.LabelNoise(0.1), {"of": "sharpness"}, InputError, "of must be one of"),
        (zl.LabelNoise(0.1), {"rtol": 0.1}, InputError, "rtol must lie"),
        (zl.LabelNoise(0.1), {"value": -1.0, "most_steps": 1000}, InputError, "has not reached"),
    ],
    ids=["trivial", "stochastic", "fraction", "quantity", "tolerance", "unreached"],
)
def test_refusals(noise, arguments, error, message):
    with pytest.raises(error, match=message):
        zl.how_long(HYPERBOLA.with_noise(noise), HYPERBOLA_POINT, 0.05, **arguments)
