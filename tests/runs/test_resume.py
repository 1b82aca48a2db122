import functools
import itertools
import json
import os
import random
import signal
import time

import numpy as np
import pytest
import xarray as xr
from killing import COMMANDS, contents, finished, kill_and_resume, zeroloss
from typer.testing import CliRunner

import zeroloss as zl
from zeroloss import runs
from zeroloss.cli import app
from zeroloss.errors import InputError, IntegrationError, Interrupted, RunError


class Killed(BaseException):
    pass


def config(**fields):
    return runs.config_from(
        dict(command="descend", problem="hyperbola", noise=["label:0.3"], steps=2000, replicas=2, saves=5)
        | fields
    )


def test_a_run_can_be_opened(tmp_path):
    runs.start(config(noise=["label:0.3", "minibatch:1"]), tmp_path / "run")
    run = zl.open_run(tmp_path / "run")
    assert run.complete and run.status == "complete"
    assert run.verdicts["label:0.3"].startswith("degenerate, deterministic: drift on 1/(alpha^2 sigma^2)")
    assert run.verdicts["minibatch:1"].startswith("trivial: no drift")
    assert run.config["steps"] == 2000 and run.config["versions"]["zeroloss"] == zl.__version__
    dataset = run.results["label:0.3"].dataset
    assert dict(dataset["loss"].sizes) == {"replica": 2, "time": 5}
    assert dataset["time"].attrs["units"] == "training steps"
    assert [event["event"] for event in run.log] == ["started", "computed", "computed", "finished"]
    assert not (tmp_path / "run" / "checkpoint").exists()
    slow = dict(command="limit", problem="hyperbola", noise=["weight"], horizon=0.1, saves=3)
    runs.start(runs.config_from(slow), tmp_path / "limit")
    limit = zl.open_run(tmp_path / "limit")
    assert "slow time" in limit.results["weight"]["time"].attrs["units"]
    assert limit.verdicts["weight"].startswith("non-degenerate")


def test_the_same_config_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        runs.start(config(), tmp_path / name)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_run_shows_where_it_is_while_it_works(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    seen = []
    append = runs._resume.append_trajectory

    def watching(*arguments):
        append(*arguments)
        run = zl.open_run(folder)
        assert run.status == "unfinished"
        seen.append(run.results["label:0.3"].sizes["time"])
        if seen[-1] == 5:
            raise Killed

    monkeypatch.setattr(runs._resume, "append_trajectory", watching)
    with pytest.raises(Killed):
        runs.start(config(saves=40, steps=100_000), folder, every=0.0)
    assert set(seen) == {1, 2, 3, 4, 5}
    so_far = zl.open_run(folder).results["label:0.3"].to_dataset(inherit=False).load()
    monkeypatch.undo()
    runs.resume(folder)
    whole = zl.open_run(folder).results["label:0.3"].to_dataset(inherit=False)
    whole.attrs = {name: whole.attrs[name] for name in so_far.attrs}  # the verdict comes at the end
    xr.testing.assert_identical(whole.isel(time=slice(0, seen[-1])).load(), so_far)


def test_a_half_written_chunk_hides_nothing_else(tmp_path, monkeypatch):
    """Killed while it appends: what had been finished can be looked at, and the run goes on."""
    folder = tmp_path / "run"
    append = runs._resume.append_trajectory

    def dying(folder, group, path, written):
        append(folder, group, path, written)
        if group == "minibatch:1":
            (folder / "partial.zarr" / group / "loss" / "zarr.json").write_text('{"shape": [')
            raise Killed

    monkeypatch.setattr(runs._resume, "append_trajectory", dying)
    both = config(noise=["label:0.3", "minibatch:1"])
    with pytest.raises(Killed):
        runs.start(both, folder, every=0.0)
    run = zl.open_run(folder)
    assert list(run.results.children) == ["label:0.3"]
    monkeypatch.undo()
    runs.resume(folder)
    runs.start(both, tmp_path / "whole")
    assert contents(folder) == contents(tmp_path / "whole")


def test_damaged_results_of_a_complete_run_are_named(tmp_path):
    runs.start(config(), tmp_path)
    chunk = tmp_path / "results.zarr" / "label:0.3" / "loss" / "zarr.json"
    chunk.write_bytes(chunk.read_bytes()[:40])
    with pytest.raises(RunError, match="cannot be read"):
        zl.open_run(tmp_path)


def test_resuming_what_is_complete_changes_nothing(tmp_path):
    results = runs.start(config(), tmp_path)
    before = contents(tmp_path, without=())
    xr.testing.assert_identical(
        runs.resume(tmp_path)["label:0.3"].to_dataset().load(), results["label:0.3"].to_dataset()
    )
    assert contents(tmp_path, without=()) == before


def test_a_checkpoint_that_stayed_behind_damages_nothing(tmp_path):
    """As a process leaves it that ends while it deletes its checkpoint."""
    runs.start(config(), tmp_path / "run")
    before = contents(tmp_path / "run", without=("log.jsonl", "lock"))
    (tmp_path / "run" / "checkpoint").mkdir()
    runs.resume(tmp_path / "run", every=0.0)
    assert contents(tmp_path / "run", without=("log.jsonl", "lock")) == before
    assert zl.open_run(tmp_path / "run").complete


def test_a_noise_is_named_once():
    with pytest.raises(InputError, match="every noise can be named once"):
        config(noise=["label:0.3", "label:0.3"])


def test_what_is_to_be_overwritten_stays_until_there_are_results(tmp_path, monkeypatch):
    """Through a run that was killed before it had any, and one that failed after its first save."""
    runs.start(config(), tmp_path)
    before = contents(tmp_path, without=())
    append = runs._resume.append_trajectory

    def dying(*arguments, error=Killed):
        append(*arguments)
        raise error

    monkeypatch.setattr(runs._resume, "append_trajectory", dying)
    with pytest.raises(Killed):
        runs.start(config(seed=1), tmp_path, overwrite=True, every=0.0)
    failing = functools.partial(dying, error=IntegrationError("for the test", None))
    monkeypatch.setattr(runs._resume, "append_trajectory", failing)
    with pytest.raises(IntegrationError):
        runs.start(config(seed=2), tmp_path, overwrite=True, every=0.0)
    assert contents(tmp_path, without=()) == before


def test_an_unfinished_run_is_not_started_over(tmp_path, monkeypatch):
    def die(*_):
        raise Killed

    monkeypatch.setattr(runs._resume, "append_trajectory", die)
    with pytest.raises(Killed):
        runs.start(config(steps=100_000), tmp_path / "run", every=0.0)
    with pytest.raises(RunError, match=r"an unfinished run; nothing was touched. Go on with it"):
        runs.start(config(), tmp_path / "run")


def test_what_fails_brings_back_what_it_was_to_replace(tmp_path, monkeypatch):
    runs.start(config(), tmp_path)
    before = contents(tmp_path, without=())

    def fail(*_, **__):
        raise IntegrationError("for the test", None)

    monkeypatch.setattr(zl, "descend", fail)
    with pytest.raises(IntegrationError):
        runs.start(config(seed=1), tmp_path, overwrite=True)
    assert contents(tmp_path, without=()) == before
    with pytest.raises(IntegrationError):
        runs.start(config(seed=1), tmp_path / "new")
    assert zl.open_run(tmp_path / "new").status == "failed"


def test_another_config_is_refused_by_the_checkpoint(tmp_path, monkeypatch):
    def die(*_):
        raise Killed

    monkeypatch.setattr(runs._resume, "append_trajectory", die)
    with pytest.raises(Killed):
        runs.start(config(steps=100_000), tmp_path, every=0.0)
    changed = json.loads((tmp_path / "config.json").read_text()) | {"replicas": 3}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    monkeypatch.undo()
    with pytest.raises(RunError, match=r"belongs to another computation: replicas 2 \(here 3\)"):
        runs.resume(tmp_path)


@pytest.mark.parametrize(
    "fields,message",
    [
        (dict(command="fly"), "unknown command 'fly'. Known: limit, predict, descend"),
        (dict(steps=0), "steps: input should be greater than 0, got 0"),
        (dict(steps="many"), "steps: .*got 'many'"),
        (dict(momentum=1.0), "momentum: input should be less than 1, got 1.0"),
        (dict(noise=[]), "noise: "),
        (dict(seed=2**64), "seed: "),
        (dict(colour="red"), "colour: extra inputs are not permitted, got 'red'"),
        (dict(step_size=float("nan")), "step_size: "),
    ],
)
def test_a_wrong_config_is_named(fields, message):
    with pytest.raises(InputError, match=message):
        config(**fields)


def test_exports(tmp_path):
    runs.start(config(noise=["label:0.3", "minibatch:1"]), tmp_path / "run")
    run = zl.open_run(tmp_path / "run")
    files = runs.export_csv(run, tmp_path / "csv")
    assert [path.name for path in files] == ["label-0.3.csv", "minibatch-1.csv"]
    header, first = files[0].read_text().splitlines()[:2]
    assert header.split(",")[:2] == ["replica", "time"] and "hessian_trace" in header
    assert "params" not in header and len(first.split(",")) == len(header.split(","))
    with pytest.raises(RunError, match="is there already"):
        runs.export_csv(run, tmp_path / "csv")
    netcdf = runs.export_netcdf(run, tmp_path / "run.nc")
    tree = xr.open_datatree(netcdf, engine="h5netcdf")
    np.testing.assert_array_equal(tree["minibatch:1"]["params"], run.results["minibatch:1"]["params"])


def test_finding_runs(tmp_path):
    runs.start(config(), tmp_path / "a" / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.json").write_text("{")
    assert runs.find_runs(tmp_path) == [tmp_path / "a" / "b", tmp_path / "c"]
    assert runs.summary(tmp_path / "a" / "b")["status"] == "complete"
    assert "damaged" in runs.summary(tmp_path / "c")["status"]
    with pytest.raises(RunError, match="is not a folder"):
        runs.find_runs(tmp_path / "nowhere")


SMALL = {
    "limit": dict(problem="ellipse", noise=["langevin:0.1"], horizon=0.05, replicas=5, saves=4),
    "predict": dict(noise=["weight:0.05"], steps=200, saves=4),
    "descend": dict(noise=["label:0.3", "minibatch:1"], steps=2000, replicas=2, saves=4),
    "compare": dict(noise=["label:0.3"], steps=500, replicas=2),
    "study": dict(noise=["weight:0.1"], budget=0.05),
}


@pytest.mark.parametrize("command", SMALL)
def test_a_run_that_is_stopped_again_and_again_has_the_same_bytes(command, tmp_path):
    """Each process of the run asks whether to stop, and is told so the third time."""
    values = dict(command=command, problem="hyperbola") | SMALL[command]
    run, asked = tmp_path / "run", itertools.count(1)

    def stop():
        return next(asked) % 3 == 0

    with pytest.raises(Interrupted, match=r"everything until now is saved.*zeroloss resume"):
        runs.start(runs.config_from(values), run, every=1000, stop=stop)
    stops = 1
    while not zl.open_run(run).complete:
        try:
            runs.resume(run, every=1000, stop=stop if stops < 4 else lambda: False)
        except Interrupted:
            stops += 1
    assert stops >= 2
    if command == "study":  # test_checkpoint.py compares its bits, with the choices of its clock
        assert zl.open_run(run).results["weight:0.1"].sizes["measurement"] >= 6
        return
    runs.start(runs.config_from(values), tmp_path / "whole")
    assert contents(run) == contents(tmp_path / "whole")


def test_a_killed_process_leaves_a_run_that_can_be_resumed(tmp_path):
    run, command = tmp_path / "run", [*COMMANDS["descend"], "--save-every", "0"]
    process = zeroloss(*command, "--out", run)
    while process.poll() is None and not (run / "checkpoint" / "noise_0" / "state.npz").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not zl.open_run(run).complete
    runs.resume(run)
    runs.start(runs.configuration(run), tmp_path / "whole")
    assert contents(run) == contents(tmp_path / "whole")


@pytest.mark.ensemble
@pytest.mark.parametrize("verb", COMMANDS)
def test_twenty_kills(verb, tmp_path):
    check_kills(verb, tmp_path, kills=20)


def check_kills(verb, tmp_path, kills):
    """What is left after so many SIGKILLs equals, byte for byte, what a run is that nothing happened to."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command, rng = COMMANDS[verb], random.Random(verb)
    finished(zeroloss(*command, "--out", tmp_path / "warm", "--save-every", "1e9"))
    began = time.perf_counter()
    finished(zeroloss(*command, "--out", whole, "--save-every", "1e9"))
    seconds = time.perf_counter() - began
    for folder in kill_and_resume(command, killed, kills, seconds, rng):
        if verb == "study":  # its bits, given what the clock chose, are compared in test_checkpoint.py
            run = zl.open_run(folder)
            assert run.complete and run.results["weight:0.1"].sizes["measurement"] >= 6
        else:
            assert contents(folder) == contents(whole)


def test_sigterm_saves_and_says_how_to_go_on(tmp_path, monkeypatch):
    append = runs._resume.append_trajectory

    def terminating(*arguments):
        append(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(runs._resume, "append_trajectory", terminating)
    command = [*COMMANDS["descend"], "--save-every", "0", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 128 + signal.SIGTERM
    assert "everything until now is saved. To go on: zeroloss resume" in " ".join(result.stderr.split())
    assert (tmp_path / "run" / "checkpoint" / "noise_0" / "state.npz").exists()


def test_a_full_disk_is_said_and_loses_nothing(tmp_path):
    """No file may grow beyond 20 kB, as on a full disk: the state saved last stays whole."""
    folder = tmp_path / "run"
    command = ["descend", "hyperbola", "--noise", "label:0.3", "--steps", "100000", "--replicas", "100"]
    command += ["--saves", "100", "--save-every", "0.2"]
    process = zeroloss(*command, "--out", folder, limit_bytes=20_480)
    printed = finished(process, code=1)
    assert "cannot write" in printed and "What had been written before is as it was" in " ".join(
        printed.split()
    )
    assert "Traceback" not in printed
    runs.resume(folder)
    runs.start(runs.configuration(folder), tmp_path / "whole")
    assert contents(folder) == contents(tmp_path / "whole")
