"""What measured quantities, and noises, are called in tables, figures and sentences."""

from collections.abc import Iterable, Mapping
from typing import Any

from zeroloss.noise import LISTINGS, MiniBatch

_QUANTITIES = {
    "regularizer": "regularizer Reg",
    "hessian_trace": "trace of the Hessian",
    "test_error": "test error",
    "loss": "clean loss",
    "noisy_loss": "mean loss with noise",
}


def label_of(name: str) -> str:
    """What a measured quantity is called."""
    return _QUANTITIES.get(name, name.replace("_", " "))


def quantities(names: Iterable[str]) -> dict[str, str]:
    """The measured quantities among the columns of a table, with their labels; the loss is left out."""
    found = [name.removesuffix("_limit") for name in names if name.endswith("_limit")]
    found = [name for name in found if name not in ("seconds", "loss")]
    return {name: label_of(name) for name in found}


def noise_in_words(name: str, strengths: Mapping[str, Any]) -> str:
    """What `dropout` or `minibatch:32+label:0.1` says, with the strength where it is known."""
    return " and ".join(_one_noise(part.strip(), strengths) for part in name.split("+"))


def kind_in_words(name: str, verdict: str, strengths: Mapping[str, Any]) -> str:
    """The beginning of a sentence that says of which kind a noise is."""
    noise = sentence_start(noise_in_words(name, strengths))
    return f"{noise} {'are' if are_many(name) else 'is'} {verdict}"


def verdict_in_words(row: Mapping[str, Any]) -> str:
    """Of which kind the noise of a row is, and whether the limit is stochastic."""
    return row["verdict_name"] + (", stochastic" if row.get("stochastic") else "")


def speed(verdict: str) -> str:
    """On which of the two time scales noise drifts that is not trivial."""
    return "fast" if verdict == "non-degenerate" else "slow"


def are_many(name: str) -> bool:
    """Whether the words for a noise take the plural."""
    listing = LISTINGS.get(name.partition(":")[0].strip())
    return "+" in name or (listing is not None and listing.plural)


def alone(name: str) -> str:
    """What follows the words for minibatches that no other noise joins."""
    return " alone" if name.partition(":")[0] == MiniBatch.listing.name and "+" not in name else ""


def is_slow(units: str) -> bool:
    """Whether times in these units are slow time, and not training steps."""
    return units.startswith("slow time")


def unused(config: Mapping[str, Any], *, stochastic: bool) -> set[str]:
    """Fields of a config that its run makes no use of: steps beside a horizon, replicas of a single limit."""
    steps = {"steps"} if config.get("horizon") else set()
    return steps | ({"replicas"} if config.get("command") == "limit" and not stochastic else set())


def sentence_start(words: str) -> str:
    """The words with a capital letter at the beginning."""
    return words[:1].upper() + words[1:]


def _one_noise(part: str, strengths: Mapping[str, Any]) -> str:
    name, given, strength = part.partition(":")
    listing = LISTINGS.get(name)
    if listing is None:
        return part
    # A problem may cap the size of its batches, so only a size that was asked for is repeated.
    strength = strength if given else "" if name == MiniBatch.listing.name else strengths.get(name, "")
    return listing.label if strength == "" else listing.with_strength(strength)
