"""Every test runs in float64, with the shapes and types of all signatures checked by beartype."""

import importlib
import os
import pkgutil
from pathlib import Path

# The workers of the tests would wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Tests compile for longer than they run. All workers, the processes that tests start, and later runs share
# what one of them has compiled, in this folder; `make clean` removes it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parent.parent / ".cache" / "jax")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_enable_x64", True)

with install_import_hook("zeroloss", "typechecking.checked"):
    import zeroloss

    for module in pkgutil.walk_packages(zeroloss.__path__, "zeroloss."):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except ImportError:
            if ".bridges." not in module.name:  # those need frameworks that may be absent
                raise


@pytest.fixture(autouse=True)
def _compile_quickly(request, monkeypatch):
    """Most tests compile for longer than they run; those marked slow run for longer.

    Processes that a test starts compile as it does, and compute the same bits.
    """
    quick = request.node.get_closest_marker("slow") is None
    jax.config.update("jax_disable_most_optimizations", quick)
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", str(int(quick)))


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_functions():
    """Hundreds of compiled functions exhaust the memory maps that Linux allows one process."""
    yield
    jax.clear_caches()
