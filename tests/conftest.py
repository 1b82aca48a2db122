"""Every test runs in float64, with the shapes and types of all signatures checked by beartype."""

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_enable_x64", True)

with install_import_hook("zeroloss", "typechecking.checked"):
    import zeroloss
    import zeroloss.cli
    import zeroloss.runs  # noqa: F401
