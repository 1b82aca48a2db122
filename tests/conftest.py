"""Every test runs in float64, with the shapes and types of all signatures checked by beartype."""

import os

import jax
import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the workers of the tests would wait for each other

jax.config.update("jax_enable_x64", True)

with install_import_hook("zeroloss", "typechecking.checked"):
    import zeroloss
    import zeroloss.cli
    import zeroloss.runs  # noqa: F401


@pytest.fixture(autouse=True)
def _compile_quickly(request):
    """Most tests compile for longer than they run; those marked slow run for longer."""
    quick = request.node.get_closest_marker("slow") is None
    jax.config.update("jax_disable_most_optimizations", quick)


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_functions():
    """Hundreds of compiled functions exhaust the memory maps that Linux allows one process."""
    yield
    jax.clear_caches()
