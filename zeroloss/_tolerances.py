"""The tolerances and limits that several files share, each with its reason."""

TINY = 1e-300
"""The least value of a number to divide by, where rounding may make it zero: near the smallest float64."""

ON_SET = 1e-8
"""Largest relative residual of a point on the zero-loss set: the root of float64 rounding.

A loss known to machine precision shows the distance to the set to half of its digits.
"""

PROJECTED = 1e-10
"""Largest relative residual of a point that `project` returns: clear of `ON_SET` by rounding."""

NEWTON_ITERATIONS = 30
"""Iterations of Newton from a point beside the set, where it may first wander."""

RETRACTION_ITERATIONS = 12
"""Iterations of Newton from a point near the set, where it converges quadratically."""

RETRACTION_TOLERANCE = 1e-7
"""A correction below this, relative to |w|, is the last: the next would be of the order of its square."""

LARGEST_HESSIAN = 2000
"""Parameters up to which the whole Hessian is formed: 32 MB, and some seconds for its spectrum."""

MOST_ITERATIONS = 3000
"""Iterations of conjugate gradients or LSMR; a system that needs more is too ill-conditioned for them."""

RANK_OF_HESSIAN = 1e-8
"""Share of the largest eigenvalue below which an eigenvalue of the Hessian counts as zero.

Differentiation and the distance to the set, at most `ON_SET`, leave errors of this order.
"""

RANK_BY_ITERATION = 1e-11
"""The same for the Hessian by iteration: the curvature of a direction that iterations resolve."""

RANK_OF_GRAM = 1e-12
"""The same for the Gram matrix, which holds rounding errors of 1e-16 times some hundred residuals."""

FALL_OF_GRAM = 1e-20
"""Share of the largest eigenvalue at the start below which, along a path of fixed rank, the rank has fallen.

Below rounding: an eigenvalue of K is the square of a singular value of the Jacobian, and so is its accuracy.
For the Hessian the rank tolerance serves.
"""

ZERO = 1e-6
"""A dimensionless measure of motion below this counts as no motion."""

SHOWN_STEPS = 20_000
"""Training steps that `compare` shows at most of a noise that moves nothing."""

BOUND_STEPS = 100_000
"""Training steps that `study` takes at most to bound the motion by such a noise: more bound it better."""
