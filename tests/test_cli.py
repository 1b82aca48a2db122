import json
import re
import time

import pytest
import xarray as xr
from typer.testing import CliRunner

import zeroloss as zl
from zeroloss import runs
from zeroloss.cli import app
from zeroloss.cli._console import out
from zeroloss.cli._printing import _side_by_side, print_table

runner = CliRunner()
SHORT = ["--steps", "300", "--replicas", "2"]


def run(*arguments, code=0, columns=200):
    result = runner.invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": str(columns)})
    assert result.exit_code == code, result.output
    return result.output


def test_compare_writes_a_whole_run(tmp_path):
    out = tmp_path / "run"
    printed = run(
        "compare", "hyperbola", "--noise", "label:0.5", "--noise", "minibatch", "--out", out, *SHORT
    )
    for words in ("verdict", "degenerate", "trivial", "training steps", "distance", "with compiling"):
        assert words in printed
    assert printed.index("label:0.5: At this step size and noise") < printed.index("verdict")
    config = json.loads((out / "config.json").read_text())
    assert config["noise"] == ["label:0.5", "minibatch"] and config["seed"] == 0
    assert list(xr.open_zarr(out / "results.zarr", consolidated=False)["noise"].values) == config["noise"]
    assert (out / "report.html").stat().st_size > 1e6
    assert list((out / "figures").glob("*.png"))
    exported = [line.rpartition("/")[2] for line in run("export", out, "--csv").splitlines()]
    assert exported[:2] == ["table.csv", "label-0.5_limit.csv"] and "minibatch_training_0.csv" in exported
    assert not any("zero_loss_set" in name for name in exported)  # all its dimensions would be multiplied
    again = run("compare", "hyperbola", "--noise", "label", "--out", out, *SHORT, code=1)
    assert "already holds a run" in again
    run("compare", "hyperbola", "--noise", "minibatch", "--out", out, "--overwrite", *SHORT)
    assert json.loads((out / "config.json").read_text())["noise"] == ["minibatch"]


def test_same_seed_same_results(tmp_path):
    for name in ("one", "two"):
        run("compare", "hyperbola", "--noise", "label:0.5", "--out", tmp_path / name, "--seed", 5, *SHORT)
    one, two = (
        xr.open_datatree(tmp_path / name / "results.zarr", engine="zarr", consolidated=False)
        for name in ("one", "two")
    )
    xr.testing.assert_identical(one["label:0.5/training_0"].dataset, two["label:0.5/training_0"].dataset)


def test_predict_and_how_long():
    arguments = ["hyperbola", "--noise", "weight:0.05", "--step-size", "0.1"]
    printed = run("predict", *arguments, "--steps", "500", "--momentum", "0.5")
    assert "noisy_loss" in printed and "of the way" in printed
    printed = run("how-long", *arguments, "--fraction", "0.5")
    assert "steps until regularizer has gone from" in " ".join(printed.split())
    printed = run("how-long", *arguments, "--of", "log_ratio")
    assert "steps until log_ratio has gone from" in " ".join(printed.split())


def test_classify_prints_the_usual_noises_or_all():
    printed = run("classify", "hyperbola")
    lines = {line.split()[0]: line for line in printed.splitlines() if line.strip()}
    assert "non-degenerate" in lines["weight"] and "1/(ασ²)" in lines["weight"]
    assert "1/(α²σ²)" in lines["label"] and "tr H" in lines["label"]
    assert "trivial" in lines["minibatch"]
    assert not {"langevin", "minibatch+label"} & set(lines) and "--noise all" in printed
    assert "dimension 1 in 2 parameters" in printed
    every = run("classify", "hyperbola", "--noise", "all")
    assert {"minibatch+label", "minibatch+weight", "langevin"} <= {
        line.split()[0] for line in every.splitlines() if line.strip()
    }
    narrow = run("classify", "hyperbola", "--noise", "all", columns=80)
    assert max(map(len, narrow.splitlines())) <= 80 and "…" not in narrow
    for word in ("minibatch+gaussian-dropconnect", "non-degenerate", "1/(α²σ²)", "smaller tr H", "4e+05"):
        assert word in narrow


@pytest.mark.parametrize("width", [20, 40, 80])
def test_a_table_is_folded_and_not_cut(monkeypatch, width):
    monkeypatch.setattr(out, "width", width)
    cells = ["minibatch+gaussian-dropconnect", "degenerate, stochastic", "5e+05"]
    more = ["weight", "non-degenerate", "inf"]
    with out.capture() as printed:
        print_table(["noise", "verdict", "margin"], [cells, more])
    lines = printed.get().rstrip("\n").splitlines()
    assert max(map(len, lines)) <= width
    shown = "".join(lines[lines.index("─" * len(lines[-1])) + 1 :])
    assert sorted(shown.replace(" ", "")) == sorted("".join([*cells, *more]).replace(" ", ""))


def test_a_comparison_of_many_noises_is_laid_out_in_blocks(monkeypatch):
    monkeypatch.setattr(out, "width", 80)
    blocks = list(_side_by_side([16, 16, 12, 20, 90, 8]))
    assert [index for block in blocks for index in range(6)[block]] == list(range(6))
    assert blocks == [slice(0, 3), slice(3, 4), slice(4, 5), slice(5, 6)]


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["classify", "mnist"], "unknown problem 'mnist'. Known: digits, hyperbola, ellipse"),
        (
            ["how-long", "d60.csv"],
            "'d60.csv' is a file of data, not a problem. On the command line, give it with",
        ),
        (["how-long", "d60.csv"], "--data d60.csv"),
        (["classify", "my data/d60.npz"], "--data 'my data/d60.npz'"),
        (["compare", "d60.parquet", "--steps", "10"], "--data d60.parquet"),
        (
            ["predict", "data/d60.txt"],
            "A file of data (.csv, .npz, .parquet) goes to --data, without a problem.",
        ),
        (["limit", "table"], "problem 'table' needs the option 'path'. On the command line, --data FILE"),
        (["descend", "nowhere.py"], "cannot read the problem"),
        (["study", "--data", "own.py"], "A problem in Python goes without --data: zeroloss classify"),
        (["classify", "hyperbola", "--noise", "coffee"], "Known: label, input, minibatch, weight"),
        (["classify", "hyperbola", "--noise", "label:much"], "must be a number, got 'much'"),
        (["classify", "hyperbola", "--sigma", "-1"], "sigma must be positive"),
        (["classify", "digits", "--rate", "1.0"], "must lie in [0, 1)"),
        (["classify", "digits", "--examples", "5000"], "between 1 and 1796"),
        (["classify", "digits", "--width", "0"], "positive integers"),
        (["compare", "hyperbola", "--step-size", "2.5"], "beyond the stability limit"),
        (["compare", "hyperbola", "--replicas", "1"], "replicas: input should be greater than or equal to 2"),
        (["compare", "hyperbola", "--noise", "label", "--horizon", "-3"], "horizon: input should be greater"),
        (["classify", "hyperbola", "--width", "3"], "problem 'hyperbola' has no option 'widths'"),
    ],
)
def test_errors_are_one_clear_message(arguments, message):
    printed = run(*arguments, code=1)
    assert message in " ".join(printed.split())
    assert "Traceback" not in printed


def test_nothing_is_written_when_the_request_is_wrong(tmp_path):
    out = tmp_path / "run"
    run("compare", "hyperbola", "--step-size", "2.5", "--out", out, code=1)
    assert not out.exists()


def test_overwriting_waits_for_something_better(tmp_path):
    out = tmp_path / "run"
    run("compare", "hyperbola", "--noise", "minibatch", "--out", out, *SHORT)
    before = (out / "report.html").read_text()
    for wrong in (["--step-size", "-1"], ["--replicas", "1"], ["--steps", "0"], ["--noise", "coffee"]):
        run("compare", "hyperbola", "--noise", "label", "--out", out, "--overwrite", *SHORT, *wrong, code=1)
    assert (out / "report.html").read_text() == before and (out / "results.zarr").is_dir()


def test_a_bad_second_noise_is_found_before_the_first_is_trained():
    printed = run(
        "compare",
        "digits",
        "--width",
        5,
        "--examples",
        10,
        "--noise",
        "label",
        "--noise",
        "minibatch:50",
        code=1,
    )
    assert "cannot be drawn" in printed and "training runs" not in printed


def test_options_from_a_file(tmp_path):
    (tmp_path / "run.toml").write_text(
        'problem = "hyperbola"\nnoise = "label:0.4"\nsteps = 500\nreplicas = 3\nstep-size = 0.2\n'
        "momentum = 0.5\nnesterov = true\nset = []\n"
    )
    run("descend", "--config", tmp_path / "run.toml", "--out", tmp_path / "run", "--steps", "400")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["noise"] == ["label:0.4"] and config["step_size"] == 0.2
    assert config["steps"] == 400 and config["replicas"] == 3
    assert config["momentum"] == 0.5 and config["nesterov"] is True


@pytest.mark.parametrize(
    "text,message",
    [
        ("colour = 1", "descend has no option 'colour'. Its options: problem, noise"),
        ("steps = [1, 2]", "steps takes one value, got [1, 2]"),
        ("[steps]\nmany = 1", "steps takes one value"),
        ("steps = ", "is not TOML"),
        ("\0", "is not TOML"),
    ],
)
def test_wrong_files_of_options_are_one_clear_message(tmp_path, text, message):
    (tmp_path / "run.toml").write_text(text)
    printed = run("descend", "hyperbola", "--config", tmp_path / "run.toml", code=1)
    assert message in " ".join(printed.split())
    printed = run("descend", "hyperbola", "--config", tmp_path / "nowhere.toml", code=1)
    assert "cannot read" in printed


def test_runs_can_be_shown_listed_and_exported(tmp_path):
    folder = tmp_path / "run"
    short = ["--noise", "label:0.3", "--steps", "300", "--replicas", "2", "--quiet"]
    printed = run("descend", "hyperbola", *short, "--out", folder)
    assert "after 300 steps" in printed and "training runs" not in printed
    assert "two parameters with product 1" in printed
    assert "two parameters with product 1" in run("descend", "hyperbola", *short)
    assert "descend hyperbola: complete" in run("show", folder)
    shown = json.loads(run("show", folder, "--json"))
    assert shown["status"] == "complete" and shown["results"][0]["time"] == 300
    assert json.loads(run("list", tmp_path, "--json"))[0]["run"] == str(folder)
    assert "complete" in run("list", tmp_path)
    assert "label-0.3.csv" in run("export", folder, "--csv")
    assert "is there already" in " ".join(run("export", folder, "--csv", code=1).split())
    assert "choose one of" in run("export", folder, code=2)
    assert "results.nc" in run("export", folder, "--netcdf")
    assert "descend hyperbola" not in run("resume", folder, "--quiet")
    assert "no readable run" in run("show", tmp_path / "nowhere", code=1)


def test_noises_are_shown_in_the_order_of_the_request(tmp_path):
    noises = ["--noise", "weight:0.1", "--noise", "minibatch", "--noise", "label"]
    run("descend", "hyperbola", *noises, *SHORT, "--out", tmp_path / "run")
    printed = run("show", tmp_path / "run")
    assert printed.index("weight:0.1") < printed.index("minibatch") < printed.index("label")
    rows = json.loads(run("show", tmp_path / "run", "--json"))["results"]
    assert [row["noise"] for row in rows] == ["weight:0.1", "minibatch", "label"]


def test_a_comparison_of_which_no_noise_is_finished_is_shown(tmp_path):
    values = dict(command="compare", problem="hyperbola", noise=["label"])
    runs.create(tmp_path / "run", runs.config_from(values))
    half = xr.Dataset({"loss": ("time", [0.0])})
    half = half.assign_coords(time=[0.0])
    half.to_zarr(tmp_path / "run" / "partial.zarr", group="label/limit", consolidated=False)
    assert "No noise has been compared to the end yet" in run("show", tmp_path / "run")
    assert json.loads(run("show", tmp_path / "run", "--json"))["results"] == []
    assert "has no results yet" in " ".join(run("report", tmp_path / "run", code=1).split())


def test_the_version():
    assert run("--version") == f"zeroloss {zl.__version__}\n"


def test_json_for_machines():
    rows = json.loads(run("classify", "hyperbola", "--noise", "label", "--json"))
    assert rows[0]["verdict"] == "degenerate"
    rows = json.loads(run("limit", "hyperbola", "--noise", "label", "--horizon", "0.1", "--json"))
    assert rows[0]["unit"].startswith("slow time") and rows[0]["hessian_trace_end"] < 4.25
    found = json.loads(run("how-long", "hyperbola", "--noise", "weight:0.05", "--step-size", "0.1", "--json"))
    assert found["weight:0.05"]["steps"] > 0


def test_a_problem_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "Wrote problem.py" in run("new", "problem.py")
    arguments = ["problem.py", "--noise", "label:0.1", "--set", "width=20", "--set", "examples=5"]
    assert "make in problem.py, 120 parameters" in run("classify", *arguments)
    run("descend", *arguments, *SHORT, "--out", "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["problem"] == f"{tmp_path / 'problem.py'}:make" and config["options"]["width"] == 20
    (tmp_path / "run" / "checkpoint").mkdir()  # as if it had not been complete
    run("resume", "run")
    (tmp_path / "run" / "checkpoint").mkdir()
    (tmp_path / "problem.py").write_text((tmp_path / "problem.py").read_text() + "\n# changed\n")
    assert "has changed since the run began" in " ".join(run("resume", "run", code=1).split())


def test_work_that_takes_long_says_what_it_does(monkeypatch):
    monkeypatch.setattr("zeroloss._progress._PATIENCE", 0.0)
    monkeypatch.setattr("zeroloss._progress._SECONDS_PER_LINE", 0.01)
    for name in ("project", "classify"):
        work = getattr(zl, name)
        slow = lambda *given, work=work, **more: (time.sleep(0.5), work(*given, **more))[1]  # noqa: E731
        monkeypatch.setattr(zl, name, slow)
    said = runner.invoke(app, ["classify", "hyperbola", "--noise", "label", "--noise", "weight"]).stderr
    assert re.search(r"projecting the start onto the zero-loss set, \d+ s so far", said)
    assert re.search(r"classifying label \(1 of 2\), \d+ s so far", said)
    assert re.search(r"classifying weight \(2 of 2\), \d+ s so far", said)
    assert runner.invoke(app, ["classify", "hyperbola", "--noise", "label", "--quiet"]).stderr == ""


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("zeroloss cla", ["classify"]),
        ("zeroloss classify dig", ["digits"]),
        ("zeroloss classify own", ["own.py", "own_problems/"]),
        (
            "zeroloss classify digits --noise minibatch:32+drop",
            ["minibatch:32+dropout", "minibatch:32+dropconnect"],
        ),
        ("zeroloss how-long digits --frac", ["--fraction"]),
    ],
)
def test_the_tab_key(words, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").touch()
    (tmp_path / "own_problems").mkdir()
    asked = {"_ZEROLOSS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    completed = runner.invoke(app, [], env=asked, prog_name="zeroloss")
    assert completed.stdout.split() == found


def test_data_of_ones_own(tmp_path):
    rows = "\n".join(f"{a},{a * a % 7},{a % 3}" for a in range(12))
    (tmp_path / "data.csv").write_text(f"a,b,c\n{rows}\n")
    data = ["--data", tmp_path / "data.csv", "--target", "b", "--model", "mlp:10"]
    assert "b in data.csv, 9 examples, tanh network 2-10-1" in run("classify", *data, "--noise", "label")
    assert "choose one of PROBLEM and --data" in run("classify", "digits", *data, code=2)
    assert "name a PROBLEM, or give --data" in run("classify", code=2)
    assert "--target and --model are for --data" in run("classify", "digits", "--target", "b", code=2)
