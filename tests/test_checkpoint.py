"""Computations that are killed at a random save and go on are bit-identical to those that are not."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import zeroloss as zl
from zeroloss._checkpoint import Checkpoint, lock_folder
from zeroloss.errors import Interrupted, RunError

KEY = jax.random.key(3)
HYPERBOLA = zl.problems.load("hyperbola")
LABEL = HYPERBOLA.problem.with_noise(zl.LabelNoise(0.3))
WEIGHT = HYPERBOLA.problem.with_noise(zl.WeightNoise(0.1))
LANGEVIN = HYPERBOLA.problem.with_noise(zl.Langevin(0.2))
POINT = zl.project(LABEL, HYPERBOLA.start)


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours gets to clean up on its own."""


class Counting(Checkpoint):
    """Saves at every opportunity, and dies after so many of them."""

    def __init__(self, folder, dies_after=None, count=None, **others):
        super().__init__(folder, every=0.0, **others)
        self.dies_after, self.count = dies_after, [0] if count is None else count

    def __truediv__(self, name):
        return Counting(self._folder / name, self.dies_after, self.count, _root=self._root)

    def save_if_due(self, state, items, *others, last=False):
        super().save_if_due(state, items, *others, last=last)
        self.count[0] += 1
        if self.count[0] == self.dies_after:
            raise Killed


def descend(checkpoint, **others):
    return zl.descend(
        LABEL, POINT, 0.05, zl.Saves(2000, count=7), key=KEY, replicas=3, checkpoint=checkpoint, **others
    )


VERBS = {
    "descend": descend,
    "descend with momentum": lambda c: zl.descend(
        LABEL, POINT, zl.SGD(0.05, momentum=0.9), zl.Saves(500, count=5), key=KEY, checkpoint=c
    ),
    "limit": lambda c: zl.limit(WEIGHT, POINT, zl.Saves(0.5, count=9), checkpoint=c),
    "stochastic limit": lambda c: zl.limit(
        LANGEVIN, POINT, zl.Saves(0.2, count=6), key=KEY, replicas=4, checkpoint=c
    ),
    "predict": lambda c: zl.predict(WEIGHT, HYPERBOLA.start, 0.1, zl.Saves(400, count=6), checkpoint=c),
    "predict replicas": lambda c: zl.predict(
        LANGEVIN, POINT, 0.1, zl.Saves(400, count=4), key=KEY, replicas=6, checkpoint=c
    ),
    "compare": lambda c: zl.compare(
        LABEL, POINT, [0.1], key=KEY, steps=zl.Saves(200, count=5), replicas=3, checkpoint=c
    ),
}


def numbers(result):
    """All arrays of a result, wall-clock seconds left out."""
    if isinstance(result, zl.Comparison):
        datasets = result.to_xarray()
        return [each.values for node in datasets.subtree for each in node.dataset.variables.values()]
    return [np.asarray(leaf) for leaf in jax.tree.leaves(result)]


@pytest.mark.parametrize("verb", VERBS)
def test_killed_and_resumed_is_bit_identical(verb, tmp_path):
    whole = Counting(tmp_path / "whole")
    expected = numbers(VERBS[verb](whole))
    reference = numbers(VERBS[verb](zl._checkpoint.NO_CHECKPOINT))
    opportunities = whole.count[0]
    assert opportunities >= 5
    rng = np.random.default_rng(1)
    for trial in range(3):
        folder = tmp_path / f"killed_{trial}"
        first, second = sorted(rng.integers(1, opportunities, 2))
        with pytest.raises(Killed):
            VERBS[verb](Counting(folder, first))
        try:  # a second time, later on
            found = numbers(VERBS[verb](Counting(folder, int(second))))
        except Killed:
            found = numbers(VERBS[verb](Counting(folder)))
        for one, other, third in zip(found, expected, reference, strict=True):
            assert one.dtype == other.dtype and one.tobytes() == other.tobytes() == third.tobytes()


def test_a_study_killed_and_resumed_repeats_the_choices_of_its_clock(tmp_path):
    """The clock chooses replicas and ladders; given what it chose, the study is the same bit for bit."""

    def study(checkpoint):
        return zl.study(WEIGHT, POINT, key=KEY, budget=0.05, drift=0.02, checkpoint=checkpoint)

    with pytest.raises(Killed):
        study(Counting(tmp_path / "killed", 40))
    found = study(Counting(tmp_path / "killed"))
    for path in (tmp_path / "killed").rglob("once/*.json"):  # what the clock said, and nothing else
        copy = tmp_path / "whole" / path.relative_to(tmp_path / "killed")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    whole = study(Counting(tmp_path / "whole"))
    assert len(found.by_step_size) >= 3
    assert found.rows() == whole.rows() and str(found) == str(whole)


def test_nothing_is_computed_twice(tmp_path):
    checkpoint = Counting(tmp_path)
    once = descend(checkpoint)
    again = Counting(tmp_path)
    repeated = descend(again)
    assert again.count[0] == 0  # no step and no save
    np.testing.assert_array_equal(once.loss, repeated.loss)
    again.remove()
    assert not tmp_path.exists()


def test_divergence_is_the_same_after_a_crash(tmp_path):
    def diverge(checkpoint):
        system = HYPERBOLA.problem.with_noise(zl.LabelNoise(20.0))
        with pytest.raises(zl.errors.DivergenceError) as error:
            zl.descend(system, POINT, 0.4, zl.Saves(5000, count=500), key=KEY, checkpoint=checkpoint)
        return error.value

    expected = diverge(zl._checkpoint.NO_CHECKPOINT)
    checkpoint = Counting(tmp_path)
    assert diverge(checkpoint).step == expected.step
    again = diverge(Counting(tmp_path))
    assert again.step == expected.step
    np.testing.assert_array_equal(again.path.loss, expected.path.loss)


def test_other_types_than_float64(tmp_path):
    start = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), POINT)

    def train(checkpoint):
        return zl.descend(LABEL, start, 0.01, zl.Saves(100, count=5), key=KEY, checkpoint=checkpoint)

    with pytest.raises(Killed):
        train(Counting(tmp_path, 3))
    found, expected = train(Counting(tmp_path)), train(zl._checkpoint.NO_CHECKPOINT)
    assert jax.tree.leaves(found.params)[0].dtype == "bfloat16"
    assert np.asarray(found.params).tobytes() == np.asarray(expected.params).tobytes()


@pytest.mark.parametrize(
    "change,named",
    [
        (dict(key=jax.random.key(4)), "keys"),
        (dict(step_size=0.06), "step_sizes"),
        (dict(steps=zl.Saves(2001, count=7)), "steps 2000 (here 2001)"),
        (dict(replicas=4), "replicas 3 (here 4)"),
        (dict(system=HYPERBOLA.problem.with_noise(zl.LabelNoise(0.31))), "system"),
        (dict(params=POINT * 1.1), "start"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_checkpoint_of_another_call_is_refused(tmp_path, change, named):
    arguments = dict(
        system=LABEL, params=POINT, step_size=0.05, steps=zl.Saves(2000, count=7), key=KEY, replicas=3
    )
    zl.descend(**arguments, checkpoint=Counting(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.npz")}
    with pytest.raises(RunError, match="belongs to another computation") as error:
        zl.descend(**arguments | change, checkpoint=Counting(tmp_path))
    assert named in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.npz")} == before


def test_a_checkpoint_of_another_version_is_refused(tmp_path, monkeypatch):
    descend(Counting(tmp_path))
    monkeypatch.setattr(zl._checkpoint, "version", lambda name: "0.0.7")
    with pytest.raises(RunError, match=r"made by .*zeroloss '0.1.0' \(here '0.0.7'\)"):
        descend(Counting(tmp_path))


@pytest.mark.parametrize("size", [0, 1, 100, -50, -1])
@pytest.mark.parametrize("which", ["state.npz", "saved/00000000.npz"])
def test_a_truncated_file_is_named_and_left_alone(tmp_path, which, size):
    descend(Counting(tmp_path))
    path = tmp_path / which
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(RunError, match="cannot be read") as error:
        descend(Counting(tmp_path))
    assert str(path) in str(error.value)
    assert path.exists()


def test_changed_bytes_are_noticed(tmp_path):
    """The files carry checksums: not one changed byte of the states gets through."""
    descend(Counting(tmp_path))
    path, rng = tmp_path / "state.npz", np.random.default_rng(0)
    whole, expected = path.read_bytes(), descend(zl._checkpoint.NO_CHECKPOINT)
    for at in rng.integers(0, len(whole), 40):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            found = descend(Counting(tmp_path))
        except RunError:
            continue
        np.testing.assert_array_equal(found.loss, expected.loss)


def test_a_file_in_the_place_of_another_is_noticed(tmp_path):
    descend(Counting(tmp_path))
    one, other = sorted((tmp_path / "saved").glob("*.npz"))[1:3]
    one.write_bytes(other.read_bytes())
    with pytest.raises(
        RunError, match=f"{one.name} cannot be read: its contents were changed after it was saved"
    ):
        descend(Counting(tmp_path))


def test_two_processes_cannot_share_a_folder(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from zeroloss._checkpoint import lock_folder\n"
        "with lock_folder(Path(sys.argv[1])):\n    print('in', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "in\n"
        with pytest.raises(RunError, match="another process is working in"):
            descend(Counting(tmp_path))
    finally:
        other.kill()
        other.wait()
    with lock_folder(tmp_path):  # the dead keep nobody out
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(tmp_path, number):
    class Signalled(Checkpoint):
        def save_if_due(self, state, items, *others, last=False):
            if len(items) == 4:
                os.kill(os.getpid(), number)
                time.sleep(0.05)
            super().save_if_due(state, items, *others, last=last)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"{signal.Signals(number).name}; the state is saved") as stop:
        descend(Signalled(tmp_path, every=1e6))
    assert stop.value.signal == number and signal.getsignal(number) is before
    assert (tmp_path / "state.npz").exists()
    np.testing.assert_array_equal(
        descend(Counting(tmp_path)).loss, descend(zl._checkpoint.NO_CHECKPOINT).loss
    )


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="cannot write"):
        descend(Checkpoint(tmp_path / "file" / "folder"))
    assert (tmp_path / "file").read_text() == "mine"


def test_once_keeps_what_was_computed_first(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.computed_once("choice", lambda: [1, 2.5]) == [1, 2.5]
    assert Checkpoint(tmp_path).computed_once("choice", lambda: [3]) == [1, 2.5]
    held = tmp_path / "once" / "choice.json"
    assert json.loads(json.loads(held.read_text())["value"]) == [1, 2.5]
    held.write_text(held.read_text().replace("2.5", "3.5"))
    with pytest.raises(RunError, match="changed after it was saved"):
        Checkpoint(tmp_path).computed_once("choice", lambda: [3])


def test_a_disk_that_is_full_during_a_prediction_is_no_missing_prediction(tmp_path):
    class Full(Counting):
        def __truediv__(self, name):
            return Full(self._folder / name, _root=self._root)

        def save_if_due(self, state, items, *others, last=False):
            if "prediction" in str(self._folder):
                raise RunError("cannot write")
            super().save_if_due(state, items, *others, last=last)

    with pytest.raises(RunError, match="cannot write"):
        VERBS["compare"](Full(tmp_path))
