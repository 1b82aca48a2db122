"""What people are told while they wait, on a clock made by hand."""

import io
import re
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from zeroloss import _compilation, _progress
from zeroloss._compilation import seconds_compiling
from zeroloss._progress import Pace, progress_bar, show_progress, stage_indicator


@pytest.fixture
def clock(monkeypatch):
    """`clock.now` is the time, `clock.compiling` how much of it JAX has compiled."""
    made = SimpleNamespace(now=0.0, compiling=0.0)
    told = SimpleNamespace(perf_counter=lambda: made.now, monotonic=lambda: made.now)
    monkeypatch.setattr(_progress, "time", told)
    monkeypatch.setattr(_compilation, "seconds_compiling", lambda: made.compiling)
    return made


@pytest.fixture
def printed(monkeypatch):
    """What is printed on standard error where that is not a terminal."""
    made = io.StringIO()
    monkeypatch.setattr(_progress, "messages", Console(file=made, width=200))
    return made


def test_no_estimate_before_it_means_something(clock, printed):
    """An integrator whose first steps are tiny: 3 of 50,000 training steps in half a minute."""
    with show_progress(), progress_bar("prediction", 50_000) as show:
        show(1.0)
        clock.now = 31.0
        show(4.0)
        clock.now = 62.0
        show(20_000.0)
    first, second = printed.getvalue().splitlines()
    assert first == "prediction: 0.0 %, 0.0968 steps/s"
    assert second == "prediction: 40 %, 323 steps/s, 93 s left"


def test_compiling_does_not_count_as_a_rate(clock):
    pace = Pace(100.0, "slow time")
    pace.add(0.0)
    clock.now, clock.compiling = 50.0, 40.0
    pace.add(10.0)
    assert pace.rate == pytest.approx(1.0) and pace.seconds_left == pytest.approx(90.0)
    assert pace.words == "10 %, 1 slow time/s, 90 s left"


def test_an_estimate_needs_seconds_and_a_share(clock):
    pace = Pace(100.0, "steps")
    pace.add(50.0)  # a computation that goes on
    clock.now = 4.0
    pace.add(54.0)
    assert pace.seconds_left is None and pace.words == "54 %, 1 steps/s"
    clock.now = 6.0
    pace.add(56.0)
    assert pace.seconds_left == pytest.approx(44.0)


def test_a_rate_is_that_of_the_last_minute(clock):
    """What was slow at first does not count for good."""
    pace = Pace(10_000.0, "steps")
    for second in range(0, 600, 10):
        clock.now = float(second)
        pace.add(0.01 * second)
    for second in range(600, 701, 10):
        clock.now = float(second)
        pace.add(6.0 + 50.0 * (second - 600))
    assert pace.rate == pytest.approx(50.0, rel=0.05)


@pytest.mark.parametrize(
    ("rate", "words"), [(0.01234, "0.0123"), (12.34, "12.3"), (1_234.5, "1,230"), (999.96, "1,000")]
)
def test_rates_have_three_digits(rate, words):
    assert _progress._three_digits(rate) == words


def test_a_terminal_shows_the_same_words(clock, monkeypatch):
    made = io.StringIO()
    monkeypatch.setattr(_progress, "messages", Console(file=made, width=100, force_terminal=True))
    with show_progress(), progress_bar("training", 1000) as show:
        show(100.0)
        clock.now = 10.0
        show(200.0)
    assert "20 %, 10 steps/s, 80 s left" in re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", made.getvalue())


def test_work_without_progress_says_what_it_does(monkeypatch, printed):
    monkeypatch.setattr(_progress, "_PATIENCE", 0.05)
    with show_progress(), stage_indicator() as set_stage:
        set_stage("label (1 of 2)")
        time.sleep(0.5)
    assert re.fullmatch(r"label \(1 of 2\), \d s so far\n", printed.getvalue())
    with stage_indicator() as set_stage:
        set_stage("nobody")
        time.sleep(0.2)
    assert "nobody" not in printed.getvalue()


def test_short_work_says_nothing(printed):
    with show_progress(), stage_indicator() as set_stage:
        set_stage("label")
    assert printed.getvalue() == ""


def test_compiling_is_measured_and_functions_within_others_count_once():
    @jax.jit
    def inner(x):
        time.sleep(0.2)  # while it is traced
        return jnp.sin(x)

    @jax.jit
    def outer(x):
        return inner(x) + 1

    def seconds(call):
        began, before = time.perf_counter(), seconds_compiling()
        jax.block_until_ready(call())
        return time.perf_counter() - began, seconds_compiling() - before

    whole, compiling = seconds(lambda: outer(jnp.ones(3)))
    assert 0.2 <= compiling <= whole
    _, again = seconds(lambda: outer(jnp.ones(3)))
    assert again == 0.0
