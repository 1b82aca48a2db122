"""A run in words and numbers: the verdict on each noise in plain sentences, and the table."""

from collections.abc import Mapping, Sequence
from typing import Any

from zeroloss.report.notation import MISSING, greek, number
from zeroloss.report.series import Axis, measured

_NOISES = {
    "dropout": "dropout at rate {}",
    "label": "label noise with sigma {}",
    "weight": "weight noise with sigma {}",
    "minibatch": "minibatches of {}",
}
_STILL = 1e-6  # what changed by less, relative to itself, did not change


def noise_in_words(name: str, strengths: Mapping[str, Any]) -> str:
    """What `dropout` or `minibatch:32+label:0.1` says, with the strength where it is known."""
    return " and ".join(_one_noise(part.strip(), strengths) for part in name.split("+"))


def verdict(row: Mapping[str, Any], axis: Axis, strengths: Mapping[str, Any]) -> list[str]:
    """What one noise does, in plain sentences, for one row of the table."""
    noise = noise_in_words(row["noise"], strengths)
    noise = noise[:1].upper() + noise[1:]
    plural = noise.startswith("Minibatches") or " and " in noise
    says = f"{noise} {'are' if plural else 'is'} {row['regime']}"
    sentences = _drifting(row, axis, says) if axis.slow else _standing(row, noise, plural, says)
    if row.get("diverged_at") is not None:
        sentences.append(
            f"The training diverged at step {_count(row['diverged_at'])}: what is shown of it ends with "
            f"the last save before, at step {_count(row['steps'])}."
        )
    return sentences


def table(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """The rows of the table people read: a label, and a cell for each noise.

    `rows` are those of `Comparison.rows()`, one for each noise. What is missing becomes a dash.
    """
    lines: list[tuple[str, list[str]]] = []

    def add(label: str, template: str, *names: str) -> None:
        cells = [[row.get(name) for name in names] for row in rows]
        lines.append((label, [MISSING if None in cell else template.format(*cell) for cell in cells]))

    add("verdict", "{}", "regime")
    scales = [row.get("time_scale") for row in rows]
    lines.append(("drifts in steps", [greek(each) if each else "never" for each in scales]))
    add("training steps", "{:,.0f}", "steps")
    if any(row.get("diverged_at") is not None for row in rows):
        add("diverged at step", "{:,.0f}", "diverged_at")
    for quantity, label in measured(rows).items():
        for where in ("start", "limit"):
            add(f"{label}, {where}", "{:.5g}", f"{quantity}_{where}")
        if all(row.get(f"{quantity}_error") is None for row in rows):
            add(f"{label}, trained", "{:.5g}", f"{quantity}_training")
        else:
            names = f"{quantity}_training", f"{quantity}_error"
            add(f"{label}, trained", "{:.5g} ± {:.1g}", *names)
    add("distance limit-training", "{:.2g} ± {:.1g}", "distance", "distance_error")
    lines.append(
        ("... relative to", ["distance travelled" if row.get("time_scale") else "|w|" for row in rows])
    )
    add("seconds for the limit", "{:.1f}", "seconds_limit")
    add("seconds for the training", "{:.1f}", "seconds_training")
    add("ratio", "{:.1f}", "ratio")
    return lines


def _one_noise(part: str, strengths: Mapping[str, Any]) -> str:
    name, given, strength = part.partition(":")
    if name not in _NOISES:
        return part
    # A problem may cap the size of its batches, so only a size that was asked for is repeated.
    strength = strength if given else "" if name == "minibatch" else strengths.get(name, "")
    if strength == "":
        return _NOISES[name].split(" at ")[0].split(" with ")[0].split(" of ")[0]
    return _NOISES[name].format(strength)


def _drifting(row: Mapping[str, Any], axis: Axis, says: str) -> list[str]:
    fast = row["regime"] == "non-degenerate"
    scale = f"{greek(row['time_scale'])} ≈ {number(axis.steps_per_unit)} steps"
    sentences = [f"{says}: training drifts on the {'fast' if fast else 'slow'} scale, {scale}."]
    if row.get("diverged_at") is not None:
        return sentences
    main, name = ("regularizer", "regularizer") if fast else ("hessian_trace", "trace of the Hessian")
    change = _change(row, main)
    if change:
        sentences.append(f"In {_count(row['steps'])} steps the {name} {change}.")
    change = _change(row, "test_error")
    if change:
        sentences.append(f"The test error {change}.")
    distance, error = row.get("distance"), row.get("distance_error")
    if distance is not None and error is not None:
        sentences.append(
            f"The mean of {_count(row['replicas'])} runs ends {_percent(distance)} of the distance "
            f"travelled away from the limit; the scatter of so few runs alone accounts for {_percent(error)}."
        )
    return sentences


def _standing(row: Mapping[str, Any], noise: str, plural: bool, says: str) -> list[str]:
    distance, steps = row.get("distance"), _count(row["steps"])
    if distance is None:
        return [f"{says}: no drift on either time scale."]
    moved = f"after {steps} steps the parameters had moved by {number(distance, 1)} of their norm."
    if distance == 0:
        moved = f"after {steps} steps the parameters had not moved at all."
    if distance > _STILL:
        return [f"{says}: no drift is expected on either time scale; {moved}"]
    alone = " alone" if row["noise"].partition(":")[0] == "minibatch" else ""
    return [f"{noise}{alone} {'do' if plural else 'does'} nothing: {moved}"]


def _change(row: Mapping[str, Any], quantity: str) -> str:
    start, limit, trained = (row.get(f"{quantity}_{where}") for where in ("start", "limit", "training"))
    if start is None or limit is None or trained is None:
        return ""
    if abs(trained - start) <= _STILL * abs(start):
        return f"stayed at {number(start)}; the limit says {number(limit)}"
    verb = "fell" if trained < start else "rose"
    return f"{verb} from {number(start)} to {number(trained)}; the limit says {number(limit)}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _percent(share: float) -> str:
    return f"{number(100 * share, 2)}\u00a0%"
