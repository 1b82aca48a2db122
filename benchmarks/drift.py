"""What one drift along the zero-loss set costs, in full-batch gradients of the loss, and how that grows.

In float64, with its projection onto the tangent space, compilation excluded; medians of calls taken in turns
with the gradient. "label noise" and "dropout" are the fields that `zeroloss.limit` integrates, "zl.drift" is
`jax.jit(zl.drift)` for label noise, "eager" the same with its checks of the point; "mixed" is with the model
in float32 where that is enough, "64 MiB" with that for intermediate results instead of 256. Memory is what
XLA reserves.

    python benchmarks/drift.py                        # 64-500-500-1, a convolutional network, a transformer
    python benchmarks/drift.py --models large         # ten million parameters, 2000 examples
    python benchmarks/drift.py --growth growth.png    # exponents in N, d, depth and outputs, and a plot
    python benchmarks/drift.py --dense                # also agreement with J as a matrix
"""

import argparse
import functools
import itertools
import math

import jax

jax.config.update("jax_enable_x64", True)

import equinox as eqx  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from structure import convnet, in_turns, transformer  # noqa: E402

import zeroloss as zl  # noqa: E402
from zeroloss._pytrees import flatten  # noqa: E402
from zeroloss.drifts._drift import first_drift, second_drift_of  # noqa: E402
from zeroloss.drifts._reg_and_sigma import expand  # noqa: E402
from zeroloss.zero_sets import GramZeroSet, zero_set_of  # noqa: E402


def perceptron(sizes, examples):
    """A tanh network, its last hidden layer a site."""
    keys = jax.random.split(jax.random.key(0), len(sizes))
    params = [
        {"weights": jax.random.normal(key, shape) / math.sqrt(shape[0]), "biases": jnp.zeros(shape[1])}
        for key, shape in zip(keys[1:], itertools.pairwise(sizes), strict=True)
    ]

    def model(params, x):
        for layer in params[:-1]:
            x = jnp.tanh(x @ layer["weights"] + layer["biases"])
        x = zl.site(x, "hidden")
        return x @ params[-1]["weights"] + params[-1]["biases"]

    return model, params, jax.random.normal(keys[0], (examples, sizes[0]))


MODELS = {
    "mlp": ("64-500-500-1, tanh", lambda: perceptron((64, 500, 500, 1), 1000)),
    "convnet": ("three convolutions with ten outputs, on 28 x 28 x 1", convnet),
    "transformer": ("one block of width 64, 16 tokens, one output", transformer),
    "large": ("784-2500-2500-700-1, tanh", lambda: perceptron((784, 2500, 2500, 700, 1), 2000)),
}


def computed(problem, **options):
    """The same problem, computed in another way."""
    return zl.LeastSquares(problem.model, problem.inputs, problem.targets, **options)


def tasks(model, params, inputs, has_site, only=None):
    """Named functions of no arguments; and of those that are compiled, the bytes that they reserve."""
    problem = zl.LeastSquares(model, inputs, model(params, inputs))
    label = problem.with_noise(zl.LabelNoise(0.1))
    w, unravel = flatten(params)
    rank = problem.targets.size

    def field_of(system, field):
        expansion = expand(system, zero_set_of(system, w, unravel).with_rank(rank))
        return lambda w, expansion=expansion: field(expansion, w)

    compiled = {
        "gradient of the loss": jax.grad(lambda w: problem.loss(unravel(w))),
        "label noise": field_of(label, second_drift_of),
    }
    if has_site:
        dropout = problem.with_noise(zl.Dropout(0.2, at="hidden"))
        compiled["dropout"] = field_of(dropout, lambda e, w: first_drift(e, w, e.zero_set.spaces(w)))
        mixed = computed(problem, precision="mixed").with_noise(zl.Dropout(0.2, at="hidden"))
        compiled["dropout, mixed"] = field_of(mixed, lambda e, w: first_drift(e, w, e.zero_set.spaces(w)))
    else:
        small = computed(problem, max_memory=2**26).with_noise(zl.LabelNoise(0.1))
        compiled["label noise, 64 MiB"] = field_of(small, second_drift_of)
    mixed = computed(problem, precision="mixed").with_noise(zl.LabelNoise(0.1))
    compiled["label noise, mixed"] = field_of(mixed, second_drift_of)
    compiled["zl.drift"] = lambda w: zl.drift(label, unravel(w)).second
    functions, memory = {}, {}
    for name, function in compiled.items():
        if only is None or name in only:
            program = jax.jit(function).lower(w).compile()
            functions[name] = functools.partial(program, w)
            memory[name] = program.memory_analysis().temp_size_in_bytes
    if only is None:
        functions["eager"] = lambda: zl.drift(label, params).second
    return functions, memory


def disagreement(model, params, inputs):
    """How far the drift of label noise is from that of J as a matrix: structured, and in mixed precision."""
    problem = zl.LeastSquares(model, inputs, model(params, inputs))
    system = problem.with_noise(zl.LabelNoise(0.1))
    w, unravel = flatten(params)
    mixed = zero_set_of(computed(problem, precision="mixed").with_noise(zl.LabelNoise(0.1)), w, unravel)
    ways = (zero_set_of(system, w, unravel), mixed, GramZeroSet(problem, unravel))
    ours, rough, dense = (
        eqx.filter_jit(second_drift_of)(expand(system, way.with_rank(problem.targets.size)), w)
        for way in ways
    )
    return [float(jnp.linalg.norm(each - dense) / jnp.linalg.norm(dense)) for each in (ours, rough)]


def show(name, repeats, dense):
    """The table of one model."""
    what, make = MODELS[name]
    model, params, inputs = make()
    functions, memory = tasks(model, params, inputs, name in ("mlp", "large"))
    number = sum(leaf.size for leaf in jax.tree.leaves(params))
    outputs = model(params, inputs).size // len(inputs)
    square = (len(inputs) * outputs) ** 2 * 8 / 2**20
    print(f"\n{what}: {len(inputs)} examples, {number:,} parameters; an m x m matrix has {square:.0f} MiB")
    seconds = in_turns(functions, repeats)
    unit = seconds["gradient of the loss"]
    for task, each in seconds.items():
        line = f"  {task:22s} {1e3 * each:10.1f} ms {each / unit:8.1f} gradients"
        if outputs > 1:
            line += f" {each / unit / outputs:7.1f} per output"
        if task in memory:
            line += f" {memory[task] / 2**20:9.0f} MiB"
        print(line, flush=True)
    if dense and name == "mlp":
        structured, mixed = disagreement(model, params, inputs)
        print(f"  from J as a matrix it differs by {structured:.1e}, mixed by {mixed:.1e}", flush=True)


def growth(path, repeats):
    """Seconds of a drift of label noise over examples, parameters, depth and outputs, with exponents."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ladders = {
        "examples N, 64-500-500-1": [(n, (64, 500, 500, 1), n) for n in (250, 500, 1000, 2000, 4000)],
        "parameters d, 500 examples": [
            (64 * width + width * width, (64, width, width, 1), 500) for width in (250, 500, 1000, 2000, 3000)
        ],
        "hidden layers of width 300, 500 examples": [
            (depth, (64, *[300] * depth, 1), 500) for depth in (1, 2, 4, 8)
        ],
        "outputs k, 64-300-300-k, 250 examples": [(k, (64, 300, 300, k), 250) for k in (1, 2, 4, 8)],
    }
    figure, axes = plt.subplots(2, 2, figsize=(9, 7.2), layout="constrained")
    for axis, (name, measurements) in zip(axes.flat, ladders.items(), strict=True):
        drifts, gradients = [], []
        for _, sizes, examples in measurements:
            made = perceptron(sizes, examples)
            functions, _ = tasks(*made, False, ("gradient of the loss", "label noise"))
            seconds = in_turns(functions, repeats)
            drifts.append(seconds["label noise"])
            gradients.append(seconds["gradient of the loss"])
        scale = np.array([each for each, _, _ in measurements], float)
        for what, measured in (("drift", drifts), ("gradient", gradients)):
            exponents = np.diff(np.log(measured)) / np.diff(np.log(scale))
            fitted = np.polyfit(np.log(scale), np.log(measured), 1)[0]
            pairs = ", ".join(f"{each:.2f}" for each in exponents)
            print(f"{name}: {what} grows with exponent {fitted:.2f} (between neighbours {pairs})", flush=True)
            axis.loglog(scale, measured, "o-", label=f"{what}, exponent {fitted:.2f}")
        axis.set_xticks(
            scale, [f"{each:,.0f}" if each < 1e5 else f"{each:.1e}" for each in scale], fontsize=8
        )
        axis.minorticks_off()
        axis.set_xlabel(name)
        axis.set_ylabel("seconds")
        axis.legend()
    figure.savefig(path, dpi=150)


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--models", nargs="+", choices=list(MODELS), default=["mlp", "convnet", "transformer"]
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dense", action="store_true", help="compare 64-500-500-1 with J as a matrix")
    parser.add_argument("--growth", metavar="PNG", help="measure growth instead, and draw it here")
    options = parser.parse_args()
    if options.growth:
        growth(options.growth, options.repeats)
        return
    for name in options.models:
        show(name, options.repeats, options.dense)


if __name__ == "__main__":
    main()
