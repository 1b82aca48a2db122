"""Compiling: both decorators, and programs kept for later processes."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zeroloss._compilation import compiled, compiled_once


@pytest.mark.parametrize("decorator", [compiled, compiled_once])
def test_a_compiled_function(decorator):
    """Same values as without compiling, to rounding; and it works inside `jax.jit`, `vmap` and `grad`."""

    def function(x, power):
        return jnp.sum(jnp.tanh(x) ** power)

    program, x = decorator(function), jnp.linspace(0.0, 1.0, 100)
    np.testing.assert_allclose(program(x, 3), function(x, 3), rtol=1e-14)
    np.testing.assert_allclose(jax.jit(lambda x: program(x, 3))(x), function(x, 3), rtol=1e-14)
    np.testing.assert_allclose(jax.vmap(lambda x: program(x, 3))(x), jnp.tanh(x) ** 3, rtol=1e-14)
    expected = 3 * jnp.tanh(x) ** 2 * (1 - jnp.tanh(x) ** 2)
    np.testing.assert_allclose(jax.grad(program)(x, 3), expected, rtol=1e-12)


def folder_used(**variables):
    """The folder where a fresh process that uses zeroloss keeps its programs."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
    code = "import zeroloss.drifts, jax; print(jax.config.jax_compilation_cache_dir)"
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment | variables, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def test_the_folder_of_compiled_programs(tmp_path):
    """The cache of the user by default, another folder or none on demand; never in place of JAX's own."""
    assert folder_used(XDG_CACHE_HOME=str(tmp_path), ZEROLOSS_CACHE="") == str(
        tmp_path / "zeroloss" / "programs"
    )
    assert folder_used(ZEROLOSS_CACHE=str(tmp_path / "mine")) == str(tmp_path / "mine")
    assert folder_used(ZEROLOSS_CACHE="off") == "None"
    assert folder_used(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "jax")) == str(tmp_path / "jax")
