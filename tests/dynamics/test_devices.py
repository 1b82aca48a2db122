"""Several devices, as host devices of another process: the same results as on one."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zeroloss as zl

BEGIN = """
import jax
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)  # compiling takes longer than running
import json
import jax.numpy as jnp
import numpy as np
import zeroloss as zl
"""


def answer(program):
    """What a program prints, as JSON, in a process with four devices."""
    done = subprocess.run([sys.executable, "-c", BEGIN + program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("replicas", "used"), [(6, 3), (8, 4), (7, 1)])
def test_replicas_are_spread_over_devices(replicas, used):
    """Over as many as divide their number, wherever the start is."""
    devices, spread = answer(f"""
from zeroloss.dynamics._training import ensemble_of
from zeroloss.optimizers import SGD

problem = zl.LeastSquares(lambda w, x: w[0] * w[1] * x, jnp.ones(3), jnp.ones(3))
system = problem.with_noise(zl.LabelNoise(0.2))
start = jax.device_put(jnp.array([2.0, 0.5]), jax.devices()[1])
_, states = ensemble_of(system, start, SGD(0.05), {replicas}, jax.random.key(0))
path = zl.descend(system, start, 0.05, zl.Saves(200, count=2), key=jax.random.key(0), replicas={replicas})
print(json.dumps([len(states.params.devices()), path.params[:, -1].tolist()]))
""")
    problem = zl.LeastSquares(lambda w, x: w[0] * w[1] * x, jnp.ones(3), jnp.ones(3))
    system, start = problem.with_noise(zl.LabelNoise(0.2)), jnp.array([2.0, 0.5])
    here = zl.descend(system, start, 0.05, zl.Saves(200, count=2), key=jax.random.key(0), replicas=replicas)
    assert devices == used
    np.testing.assert_allclose(np.array(spread), here.params[:, -1], rtol=1e-12)


def test_examples_may_be_spread_over_devices():
    """One system, its examples on four devices: drift, limit, prediction and training."""
    devices, one, four = answer("""
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from zeroloss.zero_sets import _selection

_selection._LARGEST_JACOBIAN = 0  # through the structure of the model
first, last = jax.random.split(jax.random.key(0))
params = {"in": jax.random.normal(first, (3, 16)), "out": jax.random.normal(last, (16,))}

def model(params, inputs):
    return zl.site(jnp.tanh(inputs @ params["in"]), "hidden") @ params["out"]

inputs = jax.random.normal(jax.random.key(2), (8, 3))
targets = model(params, inputs)
spread = NamedSharding(Mesh(np.array(jax.devices()), ("examples",)), PartitionSpec("examples"))

def results(inputs, targets):
    problem = zl.LeastSquares(model, inputs, targets)
    label, dropout = problem.with_noise(zl.LabelNoise(0.1)), problem.with_noise(zl.Dropout(0.1, at="hidden"))
    beside = jax.tree.map(lambda leaf: 1.01 * leaf, params)
    found = [
        zl.drift(label, params).second,
        zl.drift(dropout, params).first,
        zl.limit(label, params, zl.Saves(0.5, count=2)).final,
        zl.limit(dropout, params, zl.Saves(0.5, count=2)).final,
        zl.project(label, beside),
        zl.predict(label, beside, 0.05, zl.Saves(100, count=2)).final,
        zl.descend(dropout, beside, 0.05, 100, key=jax.random.key(3)).final,
    ]
    return [ravel_pytree(each)[0].tolist() for each in found]

on_four = jax.device_put((inputs, targets), spread)
print(json.dumps([len(on_four[0].devices()), results(inputs, targets), results(*on_four)]))
""")
    assert devices == 4
    for ours, theirs in zip(four, one, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9 * np.linalg.norm(theirs))
