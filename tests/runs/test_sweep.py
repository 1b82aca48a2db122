import contextlib
import itertools
import os
import pickle
import signal
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import distributed
import numpy as np
import pytest
from killing import contents, finished, killed_once, zeroloss
from runs_here import Here
from typer.testing import CliRunner

import zeroloss as zl
from zeroloss import report, runs
from zeroloss._checkpoint import lock_folder
from zeroloss.cli import app
from zeroloss.errors import InputError, Interrupted, RunError
from zeroloss.problems import DEFAULT_STRENGTHS

CELL = dict(
    command="descend", problem="hyperbola", noise=["label:0.3"], steps=2000, replicas=2, saves=3,
)  # fmt: skip


def grid(axes, **fields):
    return runs.sweep_config({"cell": CELL | fields, "grid": axes})


def events(cell):
    return [event["event"] for event in zl.open_run(cell.path).log]


def test_the_cells_of_a_grid():
    config = grid({"step_size": [0.1, 0.2], "noise": ["label", "weight:0.1"], "sigma": [0.5], "seed": [1, 2]})
    cells = [config.cell_at(place) for place in config.places()]
    assert len(cells) == 8 and config.shape == (2, 2, 1, 2)
    assert [cell.step_size for cell in cells] == [0.1] * 4 + [0.2] * 4
    assert [cell.seed for cell in cells] == [1, 2] * 4
    assert cells[0].noise == ("label",) and cells[2].noise == ("weight:0.1",)
    assert cells[0].strengths["label"] == 0.5
    assert cells[0].strengths["dropout"] == DEFAULT_STRENGTHS["dropout"]


def test_axes_are_options_of_problems_too():
    config = grid({"set.width": [5, 7], "seed": [3]}, problem="regression_1d", options={"seed": 0})
    cells = [config.cell_at(place) for place in config.places()]
    assert [cell.options for cell in cells] == [{"width": 5, "seed": 3}, {"width": 7, "seed": 3}]


def test_a_problem_keeps_a_seed_of_its_own():
    given = grid({"seed": [1, 2]}, problem="regression_1d", options={"seed": 7})
    assert [given.cell_at(place).options["seed"] for place in given.places()] == [7, 7]
    varied = grid({"set.seed": [1, 2], "seed": [2]}, problem="regression_1d", options={"seed": 0})
    cells = [varied.cell_at(place) for place in varied.places()]
    assert [(cell.options["seed"], cell.seed) for cell in cells] == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"stepsize": [1]}, "'stepsize' is not an axis .* step_size, .* set.NAME"),
        ({"command": ["limit"]}, "'command' is not an axis"),
        ({"set.a/b": [1]}, "'set.a/b' is not an axis"),
        ({"step_size": []}, "no values"),
        ({"step_size": [0.1, 0.1]}, "0.1 twice"),
        ({"step_size": [0.1, -1]}, "step_size: .* greater than 0, got -1"),
        ({"seed": list(range(400)), "steps": list(range(1, 401))}, "160,000 cells"),
        ({}, "grid"),
    ],
)
def test_a_grid_that_is_none_is_refused(axes, said):
    with pytest.raises(InputError, match=said):
        grid(axes)


def test_what_cannot_be_made_is_refused_before_anything_is_done(tmp_path):
    executor = Here()
    with pytest.raises(InputError, match="no option 'width'"):
        runs.sweep(grid({"set.width": [5]}), tmp_path / "sweep", executor=executor)
    with pytest.raises(InputError, match="along the axis 'sigma' would be the same"):
        runs.sweep(grid({"sigma": [0.1, 0.2]}), tmp_path / "sweep", executor=executor)
    with pytest.raises(InputError, match="along the axis 'rate' would be the same"):
        runs.sweep(
            grid({"rate": [0.1, 0.2], "noise": ["label", "weight"]}), tmp_path / "sweep", executor=executor
        )
    with pytest.raises(InputError, match=r"along the axis 'batch' would be the same.*among minibatch:2"):
        runs.sweep(grid({"batch": [1, 2], "noise": ["minibatch:2"]}), tmp_path / "sweep", executor=executor)
    with pytest.raises(InputError, match="unknown noise 'lable'"):
        runs.sweep(grid({"noise": ["label", "lable"]}), tmp_path / "sweep", executor=executor)
    assert not executor.calls and not (tmp_path / "sweep").exists()


def test_what_the_cells_found_is_collected(tmp_path):
    config = grid({"step_size": [0.2, 3.0], "noise": ["label", "weight:0.1"]})
    said = []
    results = runs.sweep(config, tmp_path / "sweep", executor=Here(), tell=said.append)
    table = results.to_dataset()
    assert dict(table.sizes) == {"step_size": 2, "noise": 2}
    assert table["status"].values.tolist() == [["complete"] * 2, ["failed"] * 2]
    assert all("stability limit" in reason for reason in table["reason"].values[1])
    assert len(said) == 2 and any("step_size=3, noise=label" in each for each in said)
    cell = zl.open_run(tmp_path / "sweep" / str(table["folder"].values[0, 1]))
    assert cell.config["noise"] == ["weight:0.1"] and cell.config["step_size"] == 0.2
    end = cell.results["weight:0.1"]["hessian_trace"].values[:, -1]
    assert table["hessian_trace_end"].values[0, 1] == end.mean()
    assert np.isnan(table["hessian_trace_end"].values[1]).all()
    opened = zl.open_run(tmp_path / "sweep")
    assert not opened.complete and opened.status == "failed"
    for name, values in opened.results.to_dataset().variables.items():
        assert list(map(str, values.values.ravel())) == list(map(str, table[name].values.ravel())), name


def test_what_studies_found_is_collected(tmp_path):
    config = runs.sweep_config(
        {
            "cell": dict(command="study", problem="hyperbola", noise=["weight:0.1"], budget=0.05),
            "grid": {"noise": ["weight:0.1", "label:0.1"]},
        }
    )
    table = runs.sweep(config, tmp_path / "sweep", executor=Here()).to_dataset()
    assert table["verdict_name"].values.tolist() == ["non-degenerate", "degenerate"]
    assert table["step_size_exponent_theory"].values.tolist() == [1.0, 2.0]
    assert "seconds" not in table and "choices" not in table
    shown = report.write(tmp_path / "sweep").read_text()
    assert "Step size exponent" in shown and "at the end" not in shown


def test_strengths_that_come_to_the_same_somewhere_are_an_axis(tmp_path):
    """A minibatch of more than all examples is half of them."""
    cell = dict(command="limit", problem="sparse_regression", options={"dimension": 9, "examples": 4})
    axes = {"batch": [30, 40, 2], "noise": ["minibatch+label:0.1"]}
    config = runs.sweep_config({"cell": cell | dict(noise=["label"], horizon=0.1, saves=3), "grid": axes})
    results = runs.sweep(config, tmp_path / "sweep", executor=Here())
    assert set(results["status"].values.ravel()) == {"complete"}


def test_what_was_saved_is_kept_where_who_computes_is_lost(tmp_path):
    """And so is what was to be overwritten, until a cell is complete."""

    class Lost(Here):
        def submit(self, fn, path, *args):
            (Path(path) / "saved").mkdir(parents=True)
            future = Future()
            future.set_exception(RuntimeError("killed"))
            return future

    folder, config = tmp_path / "sweep", grid({"seed": [0, 1]})
    runs.sweep(config, folder, executor=Here())
    with pytest.raises(RunError, match=r"workers were lost.*zeroloss resume.*RuntimeError: killed"):
        runs.sweep(config, folder, executor=Lost(), overwrite=True)
    saved = list(folder.glob("cells/*/saved"))
    assert len(saved) == 2 and (folder / ".previous" / "results.zarr").is_dir()
    for each in saved:
        each.parent.rename(tmp_path / each.parent.name)
    runs.resume_sweep(folder, executor=Here())
    assert zl.open_run(folder).complete and not (folder / ".previous").exists()


def test_cells_with_several_noises_have_an_axis_for_them(tmp_path):
    config = grid({"seed": [0, 1]}, noise=["label:0.3", "weight:0.1"])
    results = runs.sweep(config, tmp_path / "sweep", executor=Here())
    assert dict(results["hessian_trace_end"].sizes) == {"seed": 2, "noise": 2}
    assert dict(results["status"].sizes) == {"seed": 2}


def test_no_cell_is_done_twice(tmp_path):
    folder, config = tmp_path / "sweep", grid({"seed": [0, 1, 2]})
    executor = Here(broken=(2,))
    runs.sweep(config, folder, executor=executor)
    first = runs.cells_of(config, folder)
    assert [cell.status for cell in first] == ["complete", "failed", "complete"]
    assert "RuntimeError: the process is gone" in first[1].reason
    again = Here()
    results = runs.resume_sweep(folder, executor=again)
    assert [call[0] for call in again.calls] == [str(first[1].path)]
    assert set(results["status"].values) == {"complete"} and zl.open_run(folder).complete
    for cell in runs.cells_of(config, folder):
        assert events(cell) == ["started", "computed", "finished"]
    alone = runs.config_from(CELL | {"seed": 1})
    runs.start(alone, tmp_path / "alone")
    assert contents(tmp_path / "alone") == contents(first[1].path)


def test_a_sweep_replaces_another_only_when_told_to(tmp_path):
    folder, config = tmp_path / "sweep", grid({"seed": [0]})
    runs.sweep(config, folder, executor=Here())
    with pytest.raises(RunError, match="already holds a run"):
        runs.sweep(config, folder, executor=Here())
    other = grid({"seed": [5, 6]})
    before = contents(folder, without=())
    with pytest.raises(InputError, match="memory must be a size"):
        runs.sweep(other, folder, executor=runs.worker_processes(memory="lots"), overwrite=True)
    assert contents(folder, without=()) == before
    runs.sweep(other, folder, executor=Here(), overwrite=True)
    assert [cell.status for cell in runs.cells_of(other, folder)] == ["complete"] * 2


def test_a_stopped_sweep_says_how_to_go_on(tmp_path):
    class Stopping(Here):
        def submit(self, fn, /, *args, **kwargs):
            if len(self.calls) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().submit(fn, *args, **kwargs)

    folder, config = tmp_path / "sweep", grid({"seed": [0, 1, 2]})
    with pytest.raises(Interrupted, match=r"2 of 3 cells are complete.*zeroloss resume") as stop:
        runs.sweep(config, folder, executor=Stopping())
    assert stop.value.signal == signal.SIGTERM
    assert zl.open_run(folder).results["status"].values.tolist() == ["complete", "complete", "waiting"]
    runs.resume_sweep(folder, executor=Here())
    assert zl.open_run(folder).complete


@pytest.mark.parametrize("executor", [ThreadPoolExecutor(1), Here()], ids=["thread", "here"])
def test_cells_save_when_their_sweep_is_stopped(tmp_path, monkeypatch, executor):
    """Signals do not reach a thread; where there is none, they reach the cell first."""
    folder, config = tmp_path / "sweep", grid({"seed": [0, 1]})
    exists, asked = os.path.exists, itertools.count(1)

    def asking(path):
        """Send the signal when the first cell asks for the fourth time whether to stop."""
        if str(path).endswith(".stop") and next(asked) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            while isinstance(executor, ThreadPoolExecutor) and not exists(path):
                time.sleep(0.01)
        return exists(path)

    monkeypatch.setattr(os.path, "exists", asking)
    with pytest.raises(Interrupted, match=r"the state of the others is saved.*zeroloss resume") as stopped:
        runs.sweep(config, folder, executor=executor, every=1000)
    monkeypatch.undo()
    assert stopped.value.signal == signal.SIGTERM and not stopped.value.at_once
    begun, waiting = runs.cells_of(config, folder)
    assert (begun.status, waiting.status) == ("unfinished", "waiting")
    assert events(begun) == ["started", "stopped"]
    assert list(begun.path.glob("checkpoint/**/state.npz"))
    runs.resume_sweep(folder, executor=Here())
    assert zl.open_run(folder).complete
    assert events(begun) == ["started", "stopped", "resumed", "computed", "finished"]
    runs.start(config.cell_at(begun.place), tmp_path / "alone")
    assert contents(tmp_path / "alone") == contents(begun.path)


def test_ctrl_c_in_a_terminal_saves_all_cells(tmp_path):
    """There it is sent to all processes of a group, to which the workers do not belong."""
    folder = tmp_path / "sweep"
    process = zeroloss(
        "sweep", "descend", "hyperbola", "--noise", "label:0.3", "--steps", "100000000", "--out", folder,
        "--grid", "seed=0,1", "--workers", "2", "--save-every", "0.05", alone=True,
    )  # fmt: skip
    while process.poll() is None and len(list(folder.glob("cells/*/checkpoint/**/state.npz"))) < 2:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert "0 of 2 cells are complete; the state of the others is saved" in finished(process, code=130)
    assert [events(cell) for cell in runs.cells_of(runs.configuration(folder), folder)] == [
        ["started", "stopped"]
    ] * 2


def test_what_was_not_saved_is_not_said_to_be(tmp_path):
    class Losing(Here):
        def submit(self, fn, /, *args, **kwargs):
            if len(self.calls) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().submit(fn, *args, **kwargs)

    folder, config = tmp_path / "sweep", grid({"seed": [0, 1]})
    with pytest.raises(Interrupted, match="the last saved state of the others is kept") as stop:
        runs.sweep(config, folder, executor=Losing(broken=(1,)))
    assert stop.value.at_once
    assert [cell.status for cell in runs.cells_of(config, folder)] == ["failed", "waiting"]
    again = pickle.loads(pickle.dumps(stop.value))
    assert (str(again), again.signal, again.at_once) == (str(stop.value), signal.SIGTERM, True)


def test_cells_can_be_stopped_from_outside(tmp_path):
    class Told(Here):
        def submit(self, fn, /, *args, **kwargs):
            (tmp_path / "sweep" / ".stop").touch()
            return super().submit(fn, *args, **kwargs)

    folder, config = tmp_path / "sweep", grid({"seed": [0, 1]})
    runs.sweep(config, folder, executor=Here())
    with pytest.raises(Interrupted, match="0 of 2 cells are complete"):
        runs.sweep(config, folder, executor=Told(), overwrite=True)
    assert [cell.status for cell in runs.cells_of(config, folder)] == ["waiting"] * 2
    runs.resume_sweep(folder, executor=Here())
    assert zl.open_run(folder).complete and not (folder / ".stop").exists()


def test_cells_that_outlive_their_sweep_are_waited_for(tmp_path):
    folder, config = tmp_path / "sweep", grid({"seed": [0, 1]})
    runs.sweep(config, folder, executor=Here(broken=(2,)))
    cell = runs.cells_of(config, folder)[1]
    with lock_folder(cell.path):
        before = contents(folder, without=())
        for again in (
            lambda: runs.resume_sweep(folder, executor=Here()),
            lambda: runs.sweep(config, folder, executor=Here(), overwrite=True),
        ):
            with pytest.raises(RunError, match=r"1 cells of .* are still being computed"):
                again()
        assert contents(folder, without=()) == before | {".stop": b""}
    runs.resume_sweep(folder, executor=Here())
    assert zl.open_run(folder).complete and not (folder / ".stop").exists()


def test_a_sweep_of_which_nothing_completes_replaces_nothing(tmp_path):
    folder, config = tmp_path / "sweep", grid({"seed": [0]})
    runs.sweep(config, folder, executor=Here())
    before = contents(folder, without=())
    with pytest.raises(RunError, match=r"none of the 2 cells.*is back.*stability limit"):
        runs.sweep(grid({"step_size": [3.0, 4.0]}), folder, executor=Here(), overwrite=True)
    assert contents(folder, without=()) == before


def test_an_unfinished_sweep_is_to_be_gone_on_with(tmp_path):
    folder, config = tmp_path / "sweep", grid({"seed": [0, 1]})
    runs.sweep(config, folder, executor=Here(broken=(2,)))
    with pytest.raises(RunError, match=r"unfinished run.*zeroloss resume"):
        runs.sweep(config, folder, executor=Here())


def test_any_executor_will_do(tmp_path):
    config = grid({"seed": [0, 1]})
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        results = runs.sweep(config, tmp_path / "sweep", executor=executor)
    assert set(results["status"].values) == {"complete"}


class Killing(Executor):
    """Hands on to an executor; the process of the first call is killed once its cell has a checkpoint."""

    def __init__(self, executor, marker):
        self.executor, self.marker = executor, marker

    def submit(self, fn, /, *args, **kwargs):
        marker, self.marker = self.marker, None
        if marker is None:
            return self.executor.submit(fn, *args, **kwargs)
        return self.executor.submit(killed_once, marker, fn, *args)


@contextlib.contextmanager
def local_cluster():
    options = dict(threads_per_worker=1, memory_limit="4GiB", dashboard_address=None)
    with (
        distributed.LocalCluster(n_workers=1, **options) as cluster,
        runs.dask_executor(cluster.scheduler_address) as executor,
    ):
        yield executor


def sweep_with_a_kill(tmp_path, workers, config):
    """A sweep of which the first cell loses its process; its cells, and its results."""
    folder, marker = tmp_path / "sweep", tmp_path / "killed"
    with workers as executor:
        results = runs.sweep(config, folder, executor=Killing(executor, marker), every=0.0)
    assert marker.exists()
    cells = runs.cells_of(config, folder)
    first, *others = [events(cell) for cell in cells if cell.status == "complete"]
    assert first == ["started", "resumed", "computed", "finished"]
    assert all(history == ["started", "computed", "finished"] for history in others)
    return cells, results


@pytest.mark.parametrize("workers", [local_cluster, lambda: runs.worker_processes(workers=1)])
def test_a_killed_worker_loses_no_more_than_its_cell_since_the_checkpoint(tmp_path, workers):
    config = grid({"seed": [0, 1]}, steps=20_000, saves=30)
    cells, _ = sweep_with_a_kill(tmp_path, workers(), config)
    assert [cell.status for cell in cells] == ["complete"] * 2
    runs.start(config.cell_at(cells[0].place), tmp_path / "alone")
    assert contents(tmp_path / "alone") == contents(cells[0].path)


def test_a_call_that_kills_every_worker_fails(monkeypatch):
    monkeypatch.setattr(runs._executors, "_DEATHS", 2)
    with runs.worker_processes(workers=1) as executor:
        call = executor.submit(os._exit, 1)
        with pytest.raises(RunError, match="its process died 2 times"):
            call.result()


def test_workers_are_bounded_and_end_with_their_block():
    said = []
    with runs.worker_processes(workers=1, memory="2GiB", tell=said.append) as executor:
        assert said == ["1 worker process on this machine, with at most 2.0GiB of memory each."]
        assert executor.submit(os.getpgrp).result() != os.getpgrp()
        with pytest.raises(MemoryError):
            executor.submit(bytes, 3 * 2**30).result()
        number, sleeping = executor.submit(os.getpid).result(), executor.submit(time.sleep, 1000)
        assert not sleeping.done()
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)
    for wrong in (dict(workers=0), dict(memory="lots")):
        with pytest.raises(InputError), runs.worker_processes(**wrong):
            pass


@pytest.mark.ensemble
def test_forty_eight_cells_with_a_kill_and_a_failure(tmp_path):
    """The largest step size is stable with momentum, and not without: one cell fails."""
    axes = {"step_size": [*np.linspace(0.05, 0.9, 23).tolist(), 2.2], "momentum": [0.0, 0.5]}
    config = grid(axes, noise=["label:0.01"], steps=1_000_000, replicas=4)
    cells, results = sweep_with_a_kill(tmp_path, runs.worker_processes(workers=2), config)
    assert len(cells) == 48
    assert np.argwhere(results["status"].values == "failed").tolist() == [[23, 0]]
    assert "stability limit" in results["reason"].values[23, 0]
    assert np.isfinite(results["hessian_trace_end"].values).sum() == 47


def command_line(*arguments, code=0):
    result = CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_the_command_line_sweeps(tmp_path):
    folder = tmp_path / "sweep"
    command = ["sweep", "descend", "hyperbola", "--noise", "label:0.3", "--steps", "1000", "--out", folder]
    printed = command_line(
        *command, "--grid", "step_size=0.2,3", "--grid", "seed=0,1", "--workers", 2, code=1
    )
    assert "2 of 4 cells are complete" in printed and "stability limit" in printed
    assert "2 worker processes on this machine, with at most" in printed
    shown = command_line("show", folder)
    assert "failed" in shown and "step_size" in shown
    assert (folder / "report.html").is_file()
    assert "2 of 4" in command_line("resume", folder, "--workers", 1, code=1)
    assert "already holds an unfinished run" in command_line(*command, "--grid", "seed=0", code=1)
    both = ["--scheduler", "tcp://127.0.0.1:1", "--workers", "1"]
    assert "cannot be combined with --scheduler" in command_line("resume", folder, *both, code=1)
