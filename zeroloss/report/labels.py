"""What measured quantities are called in tables and figures."""

from collections.abc import Iterable

_KNOWN = {
    "regularizer": "regularizer Reg",
    "hessian_trace": "trace of the Hessian",
    "test_error": "test error",
    "loss": "clean loss",
}


def quantities(names: Iterable[str]) -> dict[str, str]:
    """The measured quantities among the columns of a table, with their labels; the loss is left out."""
    found = [name.removesuffix("_limit") for name in names if name.endswith("_limit")]
    found = [name for name in found if name not in ("seconds", "loss")]
    return {name: _KNOWN.get(name, name.replace("_", " ")) for name in found}
