"""Every test runs in float64, with the shapes and types of all signatures checked by beartype."""

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_enable_x64", True)

with install_import_hook("zeroloss", "typechecking.checked"):
    import zeroloss
    import zeroloss.cli
    import zeroloss.runs  # noqa: F401


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_functions():
    """Hundreds of compiled functions exhaust the memory maps that Linux allows one process."""
    yield
    jax.clear_caches()
