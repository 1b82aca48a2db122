import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroloss as zl
from zeroloss.errors import InputError
from zeroloss.noise import parts
from zeroloss.problems import PROBLEMS, parse_noise


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_noise_of_every_problem_by_its_name_alone(name):
    problem = zl.problems.load(name)
    assert problem.name == name and problem.description
    for noise in problem.noises:
        system = problem.problem.with_noise(parse_noise(problem, noise))
        system.check(problem.start)
        assert system.noise_law(problem.start).sigma >= 0
    for observable in problem.observables.values():
        assert jnp.isfinite(observable(problem.start))


def test_strengths():
    problem = zl.problems.load("digits", outputs=10, smoothing=0.1)
    batch, label = parts(parse_noise(problem, "minibatch:16 + label:0.2"))
    assert batch.size == 16 and label.sigma == 0.2
    assert parse_noise(problem, "dropout").rate == 0.01
    assert parse_noise(problem, "dropout", {"dropout": 0.3}).rate == 0.3
    assert parse_noise(problem, "gaussian-dropout", {"dropout": 0.3}).sigma == 0.1
    batch, labels = parts(parse_noise(problem, "minibatch+sampled-labels"))
    assert isinstance(labels, zl.SampledLabels) and batch.size == 32


@pytest.mark.parametrize(
    "noise,message",
    [
        ("coffee", "unknown noise 'coffee' for problem 'digits'. Known: dropout, .*, langevin"),
        ("", "unknown noise ''"),
        ("label+", "unknown noise ''"),
        ("label:", "must be a number, got ''"),
        ("label:loud", "must be a number, got 'loud'"),
        ("label:-1", "noise 'label:-1': sigma must be positive"),
        ("label:nan", "noise 'label:nan': sigma must be positive"),
        ("dropout:1", "noise 'dropout:1': rate is the probability"),
        ("minibatch:1.5", "noise 'minibatch:1.5': the size of a minibatch"),
        ("minibatch:inf", "noise 'minibatch:inf': the size of a minibatch"),
        ("sampled-labels:0.3", "'sampled-labels' takes no strength"),
    ],
)
def test_what_is_wrong_with_a_noise_is_said(noise, message):
    with pytest.raises(InputError, match=message):
        parse_noise(zl.problems.digits(outputs=10, smoothing=0.1), noise)


@pytest.mark.parametrize(
    "name,options,message",
    [
        ("cifar", {}, "Known: digits, hyperbola"),
        ("hyperbola", {"seed": 1}, "no option 'seed'. Its options: none"),
        ("ellipse", {"width": 1}, "no option 'width'"),
        ("digits", {"outputs": 2}, "outputs must be 1 or 10"),
        ("digits", {"smoothing": 0.1}, "smoothing is for 10 outputs"),
        ("digits", {"smoothing": 1.0, "outputs": 10}, "strictly between 0 and 1"),
        ("digits", {"widths": ()}, "widths"),
        ("digits", {"examples": 1797}, "examples"),
        ("sparse_regression", {"examples": 100}, "examples must be an integer between 1 and 99"),
        ("sparse_regression", {"nonzeros": 0}, "nonzeros"),
        ("matrix_sensing", {"rank": 9}, "rank must be an integer between 1 and 8"),
        ("matrix_sensing", {"measurements": 64}, "measurements"),
        ("matrix_completion", {"observed": 7}, "observed must be an integer between 8 and 64"),
        ("matrix_completion", {"width": 0}, "width must be a positive integer"),
        ("phase_retrieval", {"measurements": 20}, "measurements"),
        ("regression_1d", {"activation": "relu"}, "activation must be one of gelu, tanh"),
        ("regression_1d", {"scale": 0.0}, "scale must be positive"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(InputError, match=message):
        zl.problems.load(name, **options)


@pytest.mark.parametrize("name", [name for name in PROBLEMS if name not in ("hyperbola", "ellipse")])
def test_a_seed_fixes_everything_and_another_changes_it(name):
    def arrays(seed):
        problem = zl.problems.load(name, seed=seed)
        return jax.tree.leaves((problem.start, problem.problem.inputs, problem.problem.targets))

    one, again, other = arrays(0), arrays(0), arrays(1)
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_noise_of_ones_own_has_no_default_strength():
    problem = zl.problems.hyperbola()
    problem = problem._replace(noises=problem.noises | {"bright": zl.WeightNoise})
    assert parse_noise(problem, "bright:0.2").sigma == 0.2
    assert parse_noise(problem, "bright", {"bright": 0.3}).sigma == 0.3
    with pytest.raises(InputError, match="'bright' has no default strength: give it one, such as bright:"):
        parse_noise(problem, "bright")
