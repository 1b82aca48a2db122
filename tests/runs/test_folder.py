import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray as xr
from made_runs import CONFIGS

import zeroloss as zl
from zeroloss import runs
from zeroloss._files import replacing
from zeroloss.errors import InputError, RunError


def config(**fields):
    return runs.config_from(CONFIGS["compare"] | fields)


@pytest.fixture(scope="module")
def comparisons():
    problem = zl.problems.load("hyperbola")
    options = {"key": jax.random.key(0), "steps": zl.Saves(200, count=5), "replicas": 3}
    return {
        "label:0.3": zl.compare(
            problem.problem.with_noise(zl.LabelNoise(0.3)), problem.start, [0.1], **options
        ),
        "minibatch": zl.compare(problem.problem.with_noise(zl.MiniBatch(1)), problem.start, [0.1], **options),
    }


def test_results_open_with_xarray_alone(tmp_path, comparisons):
    runs.create(tmp_path / "run", config())
    runs.write_results(tmp_path / "run", runs.gather(comparisons))
    table = xr.open_zarr(tmp_path / "run" / "results.zarr", consolidated=False)
    assert list(table["noise"].values) == ["label:0.3", "minibatch"]
    assert list(table["verdict_name"].values) == ["degenerate", "trivial"]
    tree = xr.open_datatree(tmp_path / "run" / "results.zarr", engine="zarr", consolidated=False)
    np.testing.assert_array_equal(
        tree["label:0.3/training_0"]["hessian_trace"],
        comparisons["label:0.3"].trainings[0].path.hessian_trace,
    )


def test_config_holds_versions(tmp_path):
    runs.create(tmp_path / "run", config(seed=3))
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["seed"] == 3 and {"zeroloss", "jax", "numpy"} <= set(written["versions"])


def test_a_run_is_not_overwritten_unless_told(tmp_path, comparisons):
    folder = tmp_path / "run"
    runs.create(folder, config(seed=1))
    runs.write_results(folder, runs.gather(comparisons))
    with pytest.raises(RunError, match="already holds a run; nothing was touched"):
        runs.create(folder, config(seed=2))
    assert runs.read(folder)[0]["seed"] == 1
    (folder / "notes.txt").write_text("mine")
    runs.create(folder, config(seed=2), overwrite=True)
    assert json.loads((folder / "config.json").read_text())["seed"] == 2
    assert not (folder / "results.zarr").exists()
    assert (folder / "notes.txt").read_text() == "mine"


def test_other_folders_are_never_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="holds no run"):
        runs.create(tmp_path, config(), overwrite=True)
    with pytest.raises(RunError, match="is a file"):
        runs.create(tmp_path / "thesis.tex", config())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_unreadable_runs(tmp_path):
    with pytest.raises(RunError, match="no readable run"):
        runs.read(tmp_path / "missing")
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(RunError, match="no readable run"):
        runs.read(tmp_path)


@pytest.fixture
def stored(tmp_path, comparisons):
    """The folder of a comparison."""
    runs.create(tmp_path, config(noise=list(comparisons)))
    runs.write_results(tmp_path, runs.gather(comparisons))
    return tmp_path


@pytest.mark.parametrize("name", ["loss", "params", "time"])
def test_arrays_far_larger_than_what_is_stored_are_not_read(stored, name):
    metadata = stored / "results.zarr" / "minibatch" / "limit" / name / "zarr.json"
    said = json.loads(metadata.read_text())
    metadata.write_text(json.dumps(said | {"shape": [10**18, *said["shape"][1:]]}))
    with pytest.raises(RunError, match=r"are said to have .*e\+1[89] bytes"):
        runs.read(stored)


def test_what_is_missing_from_results_is_named(stored):
    shutil.rmtree(stored / "results.zarr" / "label:0.3" / "training_0" / "distance")
    with pytest.raises(RunError, match=r"'label:0.3/training_0' lacks 'distance'"):
        runs.read(stored)
    shutil.rmtree(stored / "results.zarr" / "label:0.3")
    with pytest.raises(RunError, match=r"there is no group 'label:0.3/limit'"):
        runs.read(stored)


@pytest.mark.parametrize(
    "values,message",
    [
        ({"noise": "label"}, "noise: input should be a valid tuple, got 'label'"),
        ({"options": [[[]]]}, "options: input should be a valid dictionary"),
        ({"steps": "many"}, "steps: input should be a valid integer"),
        ({"colour": 1}, "colour: extra inputs are not permitted"),
        ({"problem": "half a pair: \ud83d"}, "characters that no text can have"),
        ({"versions": {"jax": 1}}, "versions.jax: input should be a valid string"),
    ],
)
def test_damaged_configs_are_refused(tmp_path, values, message):
    runs.create(tmp_path, config())
    whole = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(whole | values))
    with pytest.raises(RunError, match=message):
        runs.read(tmp_path)


@pytest.mark.parametrize("versions", [{"zeroloss": "0.1.0"}, {"zeroloss": "\x1b[2J"}, None, []])
def test_a_run_of_another_format_says_what_to_do(tmp_path, versions):
    (tmp_path / "config.json").write_text(json.dumps({"command": "descend", "versions": versions}))
    message = r"has format 1, of zeroloss .*which reads format 2. Read the run with the version that wrote it"
    with pytest.raises(RunError, match=message) as raised:
        runs.read(tmp_path)
    assert str(raised.value).isprintable()


def test_the_run_to_be_overwritten_survives_a_stop_at_any_moment(tmp_path, comparisons, monkeypatch):
    """Setting it aside is stopped after each of its renames in turn, and goes on."""
    folder = tmp_path / "run"
    runs.create(folder, config(seed=1))
    runs.write_results(folder, runs.gather(comparisons))
    parts = {path.name for path in folder.iterdir()}
    rename = Path.rename
    for _ in parts:

        def stopping(self, target):
            rename(self, target)
            raise KeyboardInterrupt

        monkeypatch.setattr(Path, "rename", stopping)
        with pytest.raises(KeyboardInterrupt):
            runs.create(folder, config(seed=2), overwrite=True)
        monkeypatch.undo()
    runs.create(folder, config(seed=2), overwrite=True)
    runs._folder.restore_previous(folder)
    assert {path.name for path in folder.iterdir()} == parts
    assert runs.read(folder)[0]["seed"] == 1 and runs.noises_of(runs.read(folder)[1]) == list(comparisons)


def test_nothing_is_written_through_a_link(tmp_path):
    """Of a stranger's folder: the page would be written into what the link names."""
    mine = tmp_path / "thesis.tex"
    mine.write_text("years of work")
    (tmp_path / "report.html.part").symlink_to(mine)
    with replacing(tmp_path / "report.html") as file:
        file.write(b"a page")
    assert mine.read_text() == "years of work" and (tmp_path / "report.html").read_bytes() == b"a page"
    assert not (tmp_path / "report.html").is_symlink()


@pytest.mark.parametrize("character", ["\x1b", "\x07", "\r", "\x9b", "\x00"])
def test_what_would_steer_a_terminal_is_no_name(character):
    with pytest.raises(InputError, match="characters that no text can have"):
        runs.config_from({"command": "descend", "problem": f"digits{character}", "noise": ["label"]})


@pytest.mark.parametrize(
    "name", ["seconds", "params_norm", "uncertainty_x", "seconds_to_go", "spectrum", "function", "replica"]
)
def test_names_that_are_ours_are_refused(name):
    problem = zl.problems.load("hyperbola")
    system = problem.problem.with_noise(zl.LabelNoise(0.3))
    with pytest.raises(InputError, match=f"cannot be called '{name}'"):
        zl.limit(system, problem.start, zl.Saves(1.0, observables={name: lambda w: w[0]}))
