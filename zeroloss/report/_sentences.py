"""Results in plain sentences, and the tables of comparisons, trajectories and studies."""

# ruff: noqa: RUF001  # Greek letters and typographic signs are meant

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from zeroloss.drifts import FAST, SLOW
from zeroloss.report._ladders import KINDS, Ladder, NoiseStudy
from zeroloss.report._text import (
    MISSING,
    UNCHANGED,
    Lines,
    alone,
    count,
    greek,
    in_table,
    interval,
    is_plural,
    is_slow,
    kind_of_noise,
    label_of,
    noise_in_words,
    number,
    percent,
    sentence_start,
    speed,
    steps_in_words,
)
from zeroloss.runs import ends, noises_of, over_replicas, reading_order
from zeroloss.studies import Exponent, answer_in_short, what_took_longer, which_answer, why_below_the_limit

TRAJECTORIES = {"descend": "training", "predict": "prediction", "limit": "limit"}
"""What each command computes that follows one trajectory for each noise; also how it looks."""

STUDY_HEAD = (
    "drifts in steps", "p of steps ∝ α^-p", "in theory", "q of steps ∝ σ^-q", "in theory",
    "order of approach in α", "in theory", "order of approach in σ", "seconds",
)  # fmt: skip
"""The columns of the table of a study."""

_TIMED = ("limit", "prediction", "training")
_LEAST_WAY, _STANDARD_ERRORS = 0.01, 4.0  # of a change worth a sentence: of the size, and of the scatter

_Row = Mapping[str, Any]
_Strengths = Mapping[str, Any]


def unfinished(config: Mapping[str, Any], results: xr.DataTree, folder: str = "") -> str:
    """How much of a run is done, and how to go on or why it failed; "" where all noises are done."""
    done, asked = len(noises_of(results)), len(config.get("noise") or ())
    if done >= asked:
        return ""
    text = f"{done} of {asked} noises {'is' if done == 1 else 'are'} done; the results are those until now."
    if failure := results.attrs.get("failure"):
        return f"{text} The next one failed: {failure}"
    return f"{text} zeroloss resume{folder} goes on with the others."


# Comparisons: `row` is one of `comparison_rows`, `unit` the training steps in one unit of slow time, or None.


def measured(rows: Sequence[_Row]) -> list[str]:
    """The quantities in the table of a comparison but the loss, in the order in which people read them."""
    columns = dict.fromkeys(name for row in rows for name in row if name.endswith("_limit"))
    names = [name.removesuffix("_limit") for name in columns]
    return sorted((name for name in names if name not in ("seconds", "loss")), key=reading_order)


def verdict_in_words(row: _Row) -> str:
    """The verdict on the noise of a row, and whether its limit is stochastic."""
    return row["verdict_name"] + (", stochastic" if row.get("stochastic") else "")


def of_the_way(row: _Row) -> bool:
    """Whether distances are relative to the distance that the limit travels, and not to |w|."""
    return (row.get("distance_of") or ("way" if row.get("time_scale") else "|w|")) == "way"


def remarks(row: _Row) -> list[str]:
    """Explanations of surprising numbers in a row."""
    return [greek(text) for text in (why_below_the_limit(row), what_took_longer(row)) if text]


def comparison(row: _Row, unit: float | None, strengths: _Strengths) -> list[str]:
    """The effect of one noise in plain sentences."""
    kind = kind_of_noise(row["noise"], row["verdict_name"], strengths)
    sentences = [_without_drift(row, kind, strengths)] if unit is None else _drifting(row, unit, kind)
    sentences += remarks(row)
    if row.get("diverged_at") is not None:
        sentences.append(
            f"The training diverged at step {count(row['diverged_at'])}: the results end with the last save "
            f"before, at step {count(row['steps'])}."
        )
    return sentences


def headline(rows: Sequence[_Row], units: Sequence[float | None], strengths: _Strengths) -> str:
    """Which answer holds for each noise of a comparison, then the effect of each, and how long it takes."""
    answers = [
        f"{noise_in_words(row['noise'], strengths)}: {answer_in_short(row)}"
        for row, unit in zip(rows, units, strict=True)
        if unit is not None and row.get("diverged_at") is None and answer_in_short(row)
    ]
    sentences = [f"At this step size and noise, for {'; for '.join(answers)}."] if answers else []
    at = " at this step size"
    for row, unit in zip(rows, units, strict=True):
        text = _in_short(row, unit, strengths, at)
        sentences.append(f"{text}.")
        at = "" if at and text.endswith(at) else at  # only the first time
    return " ".join(sentences)


def _in_short(row: _Row, unit: float | None, strengths: _Strengths, at: str) -> str:
    noise, plural = sentence_start(noise_in_words(row["noise"], strengths)), is_plural(row["noise"])
    diverged, half = row.get("diverged_at"), row.get("half_steps")
    if unit is None:
        if _stays(row):
            return f"{noise} {'do' if plural else 'does'} nothing at zero loss"
        text = f"{noise} {'have' if plural else 'has'} no drift on either time scale"
    else:
        verb = "spread" if row.get("stochastic") else "drift"
        where = " training over the zero-loss set" if row.get("stochastic") else ""
        text = f"{noise} {verb}{'' if plural else 's'}{where} on the {speed(row['verdict_name'])} scale"
        if row.get("stochastic") or diverged is not None or half is None:
            text += f", of {steps_in_words(unit)} steps"
        elif row.get("half_of") == "regularizer":
            its = "their" if plural else "its"
            text += f": half of {its} regularization happens in {steps_in_words(half)} steps{at}"
        else:
            effect = f"what {'they do' if plural else 'it does'} to the {label_of(str(row.get('half_of')))}"
            text += f": half of {effect} takes {steps_in_words(half)} steps{at}"
    return text if diverged is None else f"{text}; training diverged at step {count(diverged)}{at}"


def _drifting(row: _Row, unit: float, kind: str) -> list[str]:
    scale = speed(row["verdict_name"])
    steps = f"{greek(row['time_scale'])} ≈ {number(unit)} steps"
    sentences = [which_answer(row), f"{kind}: training drifts on the {scale} scale, {steps}."]
    if row.get("stochastic"):
        sentences.append(
            "The limit is a stochastic differential equation: training spreads over the set, and is compared "
            f"with {count(row['limit_replicas'])} paths of it."
        )
    if row.get("diverged_at") is None:
        for quantity in ("regularizer" if scale == "fast" else "hessian_trace", "test_error"):
            label = "regularizer" if quantity == "regularizer" else label_of(quantity)
            sentences.append((_spread if row.get("stochastic") else _change)(row, quantity, label))
        if row.get("half_unknown"):
            sentences.append(f"How long half of it takes could not be found: {row['half_unknown']}")
    return [sentence for sentence in sentences if sentence]


def _spread(row: _Row, quantity: str, label: str) -> str:
    """The ends of training and of a stochastic limit: mean and standard deviation."""
    names = ("start", "limit", "training", "limit_error", "error", "limit_spread", "training_spread")
    values = [row.get(f"{quantity}_{name}") for name in names]
    if any(value is None for value in values):
        return ""
    start, limit, trained, limit_error, error, limit_spread, spread = map(float, values)  # pyright: ignore
    if max(limit_spread, spread, abs(limit - start), abs(trained - start)) <= UNCHANGED * abs(start):
        return f"In {count(row['steps'])} steps the {label} stayed at {number(start)}."
    return (
        f"After {count(row['steps'])} steps the {label}, {number(start)} at the start, has the mean "
        f"{interval(trained, error)} (standard error) and the standard deviation {number(spread)}; "
        f"the limit says {interval(limit, limit_error)} and {number(limit_spread)}"
        f"{_predicted(row, quantity)}."
    )


def _change(row: _Row, quantity: str, label: str) -> str:
    start, limit, trained = (row.get(f"{quantity}_{where}") for where in ("start", "limit", "training"))
    if start is None or limit is None or trained is None:
        return ""
    change = f"{'fell' if trained < start else 'rose'} from {number(start)} to {number(trained)}"
    if abs(trained - start) <= UNCHANGED * abs(start):
        change = f"stayed at {number(start)}"
    subject = "The" if quantity == "test_error" else f"In {count(row['steps'])} steps the"
    return f"{subject} {label} {change}; the limit says {number(limit)}{_predicted(row, quantity)}."


def _predicted(row: _Row, quantity: str) -> str:
    value = row.get(f"{quantity}_prediction")
    return "" if value is None else f", the prediction {number(value)}"


def _without_drift(row: _Row, kind: str, strengths: _Strengths) -> str:
    distance, error = row.get("distance"), row.get("distance_error")
    if distance is None or row.get("diverged_at") is not None:
        return f"{kind}: no drift on either time scale."
    after = f"after {count(row['steps'])} steps the parameters had"
    if _stays(row):
        noise = sentence_start(noise_in_words(row["noise"], strengths)) + alone(row["noise"])
        moved = f"moved by {number(distance, 1)} of their norm" if distance > 0 else "not moved at all"
        return f"{noise} {'do' if is_plural(row['noise']) else 'does'} nothing: {after} {moved}."
    mean = ""
    if error is not None:
        scatter = f"the scatter of so few runs alone accounts for {percent(error)}"
        mean = f" in the mean of {count(row['replicas'])} runs; {scatter}"
    return (
        f"{kind}: no drift is expected on either time scale; {after} moved by {percent(distance)} of their "
        f"norm{mean}."
    )


def _stays(row: _Row) -> bool:
    distance = row.get("distance")
    return distance is not None and distance <= UNCHANGED and row.get("diverged_at") is None


def comparison_table(rows: Sequence[_Row]) -> Lines:
    """The table of a comparison: a label, and a cell for each noise."""
    lines: Lines = []

    def add(label: str, name: str, write: Callable[[Any], str], optional: bool = False) -> None:
        values = [row.get(name) for row in rows]
        if not optional or any(value is not None for value in values):
            lines.append((label, [MISSING if value is None else write(value) for value in values]))

    def add_number(label: str, name: str, error: str = "", digits: int = 5, optional: bool = False) -> None:
        values = [(row.get(name), row.get(error)) for row in rows]
        if not optional or any(value is not None for value, _ in values):
            lines.append((label, [MISSING if a is None else in_table(a, b, digits) for a, b in values]))

    add("verdict", "verdict_name", str)
    scales = [row.get("time_scale") for row in rows]
    lines.append(("drifts in steps", [greek(scale) if scale else "never" for scale in scales]))
    add("half of it done after", "half_steps", steps_in_words, optional=True)
    add("training steps", "steps", count)
    add("diverged at step", "diverged_at", count, optional=True)
    for name in measured(rows):
        label = label_of(name)
        add_number(f"{label}, start", f"{name}_start")
        add_number(f"{label}, limit", f"{name}_limit", f"{name}_limit_error")
        add_number(f"{label}, predicted", f"{name}_prediction", optional=True)
        add_number(f"{label}, trained", f"{name}_training", f"{name}_error")
        for where, kind in (("limit", "limit"), ("trained", "training")):
            if any(row.get(f"{name}_{kind}_spread") for row in rows):
                add_number(f"{label}, spread {where}", f"{name}_{kind}_spread", digits=4)
    distance = "distance from training"
    add_number(f"{distance}, limit", "distance", "distance_error", 2)
    add_number(f"{distance}, prediction", "prediction_distance", "distance_error", 2, optional=True)
    add_number(f"{distance}, prediction expected", "prediction_estimate", digits=2, optional=True)
    relative_to = ["distance travelled" if of_the_way(row) else "|w|" for row in rows]
    return [*lines, (f"{distance}, relative to", relative_to), *_durations(rows)]


def _durations(rows: Sequence[_Row]) -> Lines:
    """How long limit, prediction and training took, with and without compiling, and their ratios."""
    timed = [name for name in _TIMED if any(row.get(f"seconds_{name}") is not None for row in rows)]
    known = any(row.get(f"seconds_{name}_compiling") is not None for name in timed for row in rows)

    def cell(row: _Row, name: str) -> str:
        seconds, compiling = row.get(f"seconds_{name}"), row.get(f"seconds_{name}_compiling")
        if seconds is None:
            return MISSING
        return f"{seconds:.1f}" + ("" if compiling is None else f" ({compiling:.1f})")

    def seconds(row: _Row, name: str, compiled: bool) -> float | None:
        whole, compiling = row.get(f"seconds_{name}"), row.get(f"seconds_{name}_compiling")
        if not compiled or whole is None:
            return whole
        return None if compiling is None else max(whole - compiling, 0.0)

    def ratio(row: _Row, name: str, compiled: bool) -> str:
        training, other = seconds(row, "training", compiled), seconds(row, name, compiled)
        if training is None or not other:
            return MISSING
        quotient = training / other
        return f"{quotient:.1f}" if quotient >= 1 else f"{quotient:.2g}"

    heading = "seconds (of them compiling)" if known else "seconds"
    lines = [(f"{heading}, {name}", [cell(row, name) for row in rows]) for name in timed]
    for name in (name for name in timed if name != "training"):
        for words, compiled in (("with compiling", False), ("without", True))[: 1 + known]:
            cells = [ratio(row, name, compiled) for row in rows]
            lines.append((f"time of training / {name}, {words}", cells))
    return lines


# Trajectories: one path for each noise.


def trajectory(config: Mapping[str, Any], noise: str, path: xr.Dataset) -> list[str]:
    """Where one trajectory went, in plain sentences."""
    kind, strengths = TRAJECTORIES[str(config["command"])], config.get("strengths") or {}
    last, slow = float(path["time"].values[-1]), is_slow(str(path["time"].attrs.get("units", "")))
    after = f"In {number(last)} of slow time" if slow else f"In {count(last)} steps"
    changes = []
    for quantity, (start, end, error) in ends(path).items():
        if quantity in ("loss", "noisy_loss"):
            continue
        value = number(end) if error is None else interval(end, error)
        changed = not abs(end - start) <= UNCHANGED * max(abs(start), abs(end)) < np.inf
        change = f"went from {number(start)} to {value}" if changed else f"stayed at {number(start)}"
        if changed and value == number(start) and np.isfinite(end):
            change = f"stayed at {value} but for {percent(abs(end / start - 1))}"
        changes.append(f"the {label_of(quantity)} {change}")
    subject = "training" if kind == "training" else f"the {kind}"
    sentences = _verdict(noise, path, strengths)
    sentences.append(f"{after} of {subject} under {noise_in_words(noise, strengths)} {'; '.join(changes)}.")
    sentences += _half_way(path, slow)
    if "uncertainty_model" in path:
        sentences.append(sentence_start(uncertainty(path)))
    return sentences


def _verdict(noise: str, path: xr.Dataset, strengths: _Strengths) -> list[str]:
    verdict = path.attrs.get("verdict_name")
    if verdict is None:
        unknown = path.attrs.get("verdict_unknown")
        return [] if unknown is None else [f"There is no verdict on {noise}: {unknown}"]
    kind = kind_of_noise(noise, verdict, strengths)
    if verdict == "trivial":
        return [f"{kind}: no drift on either time scale."]
    scale = speed(verdict)
    spread = " and spreads over the zero-loss set" if path.attrs.get("stochastic") else ""
    steps = greek(FAST if scale == "fast" else SLOW)
    return [f"{kind}: training drifts on the {scale} scale, {steps} steps{spread}."]


def _half_way(path: xr.Dataset, slow: bool) -> list[str]:
    """Between which saves the quantity that the noise changes first had gone half of its way."""
    verdict = path.attrs.get("verdict_name")
    quantity = "hessian_trace" if verdict == "degenerate" else "regularizer"
    if quantity not in path or path.attrs.get("stochastic") or verdict == "trivial":
        return []
    _, mean, error = over_replicas(path[quantity])
    change, scatter = mean[-1] - mean[0], 0.0 if error is None else float(error[-1])
    least = max(_LEAST_WAY * np.abs(mean[[0, -1]]).max(), _STANDARD_ERRORS * scatter)
    if not np.isfinite(mean).all() or abs(change) <= least:
        return []
    after = int(np.argmax((mean - mean[0]) / change >= 0.5))
    times = path["time"].values.astype(float)[[after - 1, after]]
    early, late = (number(time) if slow else count(time) for time in times)
    unit = "of slow time" if slow else "steps"
    return [f"The {label_of(quantity)} had gone half of that way after {early} to {late} {unit}."]


def uncertainty(path: xr.Dataset) -> str:
    """How far off a prediction is expected to be."""
    parts = [path[f"uncertainty_{part}"].values[-1] for part in ("integration", "sampling", "model")]
    spread, error = float(path["uncertainty_spread"].values[-1]), float(np.linalg.norm(parts))
    share = percent(error) if np.isfinite(error) else "an unknown share"
    return (
        f"the mean parameters are expected to be off by {share} of the way from the start; single runs lie "
        f"{percent(spread)} of it from their mean."
    )


def trajectory_table(paths: Mapping[str, xr.Dataset]) -> Lines:
    """Where each quantity starts and ends, with a cell for each noise."""
    found = {noise: ends(path) for noise, path in paths.items()}
    lines = []
    for quantity in dict.fromkeys(name for each in found.values() for name in each):
        values = [each.get(quantity) for each in found.values()]
        starts = [MISSING if value is None else in_table(value[0]) for value in values]
        finals = [MISSING if value is None else in_table(*value[1:]) for value in values]
        lines += [(f"{label_of(quantity)}, start", starts), (f"{label_of(quantity)}, end", finals)]
    return lines


# Studies.


def study(found: NoiseStudy, strengths: _Strengths) -> list[str]:
    """The results of a study for one noise in plain sentences."""
    if found.bound is not None:
        return [_bound(found, found.bound, strengths)]
    kind = kind_of_noise(found.noise, found.verdict_name, strengths)
    kind += ", with a stochastic limit" if found.stochastic else ""
    scale, steps = speed(found.verdict_name), greek(found.time_scale or "none")
    sentences = [f"{kind}: in theory training drifts on the {scale} scale, {steps} steps."]
    drift = "root-mean-square drift" if found.stochastic else "drift"
    subject = f"Steps for a fixed {drift}, {percent(found.drift)} of |w|,"
    for each in KINDS:
        ladder = found.ladder(each)
        if ladder is None:
            sentences.append(f"There is no ladder of {each}s.")
            continue
        sentences += [_growth(ladder, subject), _closing(ladder)]
        subject = "Steps"
    return sentences


def _bound(found: NoiseStudy, bound: Mapping[str, float], strengths: _Strengths) -> str:
    noise = sentence_start(noise_in_words(found.noise, strengths)) + alone(found.noise)
    distance = bound["distance"]
    moved = f"moved by less than {number(distance, 2)}\u00a0|w|" if distance > 0 else "not moved"
    return (
        f"{noise} {'do' if is_plural(found.noise) else 'does'} nothing on either time scale: after "
        f"{count(bound['steps'])} steps of size {number(bound['step_size'])} training had {moved} along the "
        f"set of zero loss (95 % confidence, {bound['replicas']:.0f} runs)."
    )


def _growth(ladder: Ladder, subject: str) -> str:
    exponent, symbol, name = ladder.exponent, ladder.symbol, "p" if ladder.kind == "step size" else "q"
    if exponent is None:
        return f"{subject} were measured at too few values of {symbol} to fit how they grow."
    theory = "" if exponent.theory is None else f"; theory says {exponent.theory:g}"
    theory += ", which lies outside this interval" if theory and not exponent.agrees else ""
    value = interval(exponent.value, exponent.half_width)
    return f"{subject} grow as {symbol}^-{name} with {name} = {value}{theory}."


def _closing(ladder: Ladder) -> str:
    name = "step size" if ladder.kind == "step size" else "σ"
    text = f"At the largest {name} training takes {_against_limit(ladder, 0)}"
    if len(ladder.x) > 1:
        text += f", at the smallest {_against_limit(ladder, -1)}"
    if ladder.approach is None:
        return f"{text}. With which order the gap closes is not resolved."
    return f"{text}: the gap closes with order {_with_theory(ladder.approach.order)}."


def _against_limit(ladder: Ladder, index: int) -> str:
    gap, error = float(ladder.gap[index]), float(ladder.steps_error[index])
    if abs(gap) <= 2 * error:
        return f"as many steps as the limit, within {percent(np.expm1(abs(gap) + 2 * error))}"
    return f"{percent(abs(np.expm1(gap)))} {'fewer' if gap < 0 else 'more'} steps than the limit"


def _with_theory(exponent: Exponent) -> str:
    theory = "" if exponent.theory is None else f" (theory {exponent.theory:g})"
    return interval(exponent.value, exponent.half_width) + theory


def slopes(ladder: Ladder) -> tuple[str, str]:
    """The slope fitted to the steps of a ladder, and that of the limit; "" where there is none."""
    exponent = ladder.exponent
    if exponent is None:
        return "", ""
    fitted = f"measured: slope {interval(-exponent.value, exponent.half_width)}"
    return fitted, "" if exponent.theory is None else f"limit: slope −{exponent.theory:g}"


def order_of_approach(ladder: Ladder) -> str:
    """The order with which the gap of a ladder closes."""
    if ladder.approach is None:
        return "order of approach not resolved"
    return f"order of approach {_with_theory(ladder.approach.order)}"


def study_table(found: Sequence[NoiseStudy]) -> Lines:
    """The table of a study: a line for each noise, with a cell for each column of `STUDY_HEAD`."""

    def pair(exponent: Exponent | None, missing: str = MISSING) -> list[str]:
        if exponent is None:
            return [missing, MISSING]
        theory = MISSING if exponent.theory is None else f"{exponent.theory:g}"
        return [interval(exponent.value, exponent.half_width), theory]

    lines = []
    for each in found:
        cells = [greek(each.time_scale) if each.time_scale else "never"]
        for ladder in (each.ladder(kind) for kind in KINDS):
            cells += pair(ladder.exponent if ladder else None)
        for ladder in (each.ladder(kind) for kind in KINDS):
            order = ladder.approach.order if ladder and ladder.approach else None
            cells += pair(order, "not resolved" if ladder else MISSING)
        # Theory has no order of the approach in sigma.
        lines.append((each.noise, [*cells[:-1], f"{each.seconds:.0f}"]))
    return lines
