"""Whatever is in a file that zeroloss reads: a result or an error of ours comes out, and no file is lost.

`make test` tries some cases of each kind, the same every time, in about a minute; `make ensembles` tries over
20 000 in all, the sum of the second column of `CASES`. Each test prints how many it has tried, and fails
where they are fewer.
"""

import io
import json
import shutil
import zipfile

import numpy as np
import pytest
import typer
from hypothesis import strategies as st
from made_runs import CONFIGS, write, write_sweep
from mangling import (
    DAMAGES,
    EDITS,
    TEXTS,
    VALUES,
    WILD,
    Scene,
    contents,
    edited,
    fuzz,
    only_ours,
    remove,
)
from typer.testing import CliRunner

import zeroloss as zl
from zeroloss import problems, report, runs
from zeroloss.cli import app
from zeroloss.errors import InputError, RunError, ZerolossError

pytestmark = pytest.mark.filterwarnings("ignore")

CASES = {
    "config": (120, 6000),
    "toml": (120, 4000),
    "csv": (150, 4000),
    "npz": (100, 2000),
    "folder": (100, 4000),
    "report": (8, 500),
    "resume": (4, 200),
}


class Killed(BaseException):
    pass


@pytest.fixture(params=[pytest.param(0, id="some"), pytest.param(1, id="many", marks=pytest.mark.ensemble)])
def cases(request):
    """How many cases there are of each kind."""
    return {kind: few_and_many[request.param] for kind, few_and_many in CASES.items()}


def invoke(*arguments):
    """A command, which may say that something is wrong, but not fall over."""
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 1, 2), result.exit_code
    assert "Traceback" not in result.output
    if result.exit_code:
        assert result.stderr.strip()
    return result


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    found = {kind: Scene(write(folder / kind, kind)) for kind in CONFIGS}
    return found | {"sweep": Scene(write_sweep(folder / "sweep"))}


def test_the_runs_are_sound(scenes, tmp_path):
    for kind, scene in scenes.items():
        printed = invoke("show", scene.folder).stdout
        unfinished = "unfinished" in kind
        assert ("unfinished" if unfinished else "complete") in printed
        assert "label:0.3" in printed or "langevin:0.1" in printed or "weight:0.05" in printed
        assert zl.open_run(scene.folder).complete != unfinished
        assert contents(scene.folder) == scene.whole
    for kind in scenes:
        copy = shutil.copytree(scenes[kind].folder, tmp_path / kind)
        assert report.write(copy).stat().st_size > 1e6


# config.json


def changed(config):
    """A config with some of its values changed, left out, or added."""
    change = st.tuples(st.sampled_from([*config, "colour", "options", "versions"]), st.none() | WILD | VALUES)
    return st.lists(change, min_size=1, max_size=3).map(
        lambda changes: {k: v for k, v in (config | dict(changes)).items() if v is not None}
    )


CONFIG_VALUES = st.sampled_from(list(CONFIGS.values())).flatmap(changed) | WILD
CONFIG_BYTES = st.one_of(
    CONFIG_VALUES.map(lambda value: json.dumps(value).encode()),
    st.tuples(
        st.sampled_from(list(CONFIGS.values())).map(lambda value: json.dumps(value).encode()), EDITS
    ).map(lambda case: edited(*case)),
    st.binary(max_size=40),
)


def test_config(cases, scenes, tmp_path):
    """Configs of which anything may be wrong, alone and with the results of a run."""

    def check(data, which, look):
        kind = list(scenes)[which] if which < len(scenes) else None
        folder = tmp_path / "alone" if kind is None else scenes[kind].folder
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_bytes(data)
        before = contents(folder)
        with only_ours():
            runs.configuration(folder)
        look_at(folder, look)
        assert contents(folder) == before
        if kind is not None:
            scenes[kind].restore()

    looks = st.sampled_from(["open", "open", "show", "json", "list"])
    fuzz(check, cases["config"] // 2, CONFIG_BYTES, st.integers(0, 3 * len(CONFIGS)), looks)

    def check_values(values):
        with only_ours():
            runs.config_from(values)

    fuzz(check_values, cases["config"] // 2, CONFIG_VALUES.filter(lambda value: isinstance(value, dict)))


def look_at(folder, how):
    """Look at a run in one of the ways there are."""
    if how == "show":
        invoke("show", folder)
    elif how == "json":
        invoke("show", folder, "--json")
    elif how == "list":
        invoke("list", folder)
    else:
        assert set(runs.summary(folder)) == {"run", "command", "problem", "noise", "status"}
        with only_ours():
            run = zl.open_run(folder)
            assert run.status in ("complete", "unfinished", "failed") and isinstance(run.log, list)
            runs.configuration(folder)


# TOML

COMMANDS = ("compare", "study", "predict", "descend", "limit", "classify", "how-long", "sweep descend")


def names_of_options(name):
    """What a file of options for a command may say."""
    found = typer.main.get_command(app)
    for word in name.split():
        found = found.commands[word]
    return [each.opts[0].lstrip("-") for each in found.params if each.name not in ("config", "help")]


OPTIONS = {name: names_of_options(name) for name in COMMANDS}
SENSIBLE = {"problem": "hyperbola", "noise": ["label:0.3"], "seed": 1}
GRID = {"grid": ["replicas=1,2"], "out": "sweep"}
OFTEN = [
    1, 3, 0, -1, 0.5, True, "label", ["label", "weight"], [3, 4], ["a=1", "b=[2"], ["=", ""],
    ["steps=" + "[" * 9999], "x.csv", "mlp:3", "problem.py:make", "a\0b", {"many": 1}, [[1], 2], float("nan"),
    float("inf"), 2**70, 10**400, "1", "yes",
]  # fmt: skip


def toml(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(str(k))} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return '"none"' if value is None else json.dumps(value, ensure_ascii=False)


def file_of_options(command):
    """TOML with options of a command, mostly known ones, of whatever kind."""
    names = st.sampled_from(OPTIONS[command] * 3 + ["colour", "help", "config"])
    values = st.dictionaries(names, st.sampled_from(OFTEN) | VALUES, min_size=1, max_size=2)
    sound = SENSIBLE | (GRID if command.startswith("sweep") else {})
    return values.map(
        lambda values: "\n".join(
            f"{name} = {toml(value)}" for name, value in (sound | values).items()
        ).encode("utf-8", "surrogatepass")
    )


TOML = st.sampled_from(COMMANDS).flatmap(
    lambda command: st.tuples(st.just(command), file_of_options(command))
)
WHOLE = st.just([])


def test_toml(cases, tmp_path, monkeypatch):
    """Files of options: of other kinds, unknown, or no TOML. What comes after reading them is left out."""

    def refuse(*_, **__):
        raise InputError("read, and that is all")

    monkeypatch.setattr(problems, "load", refuse)
    monkeypatch.setattr(runs, "start", refuse)
    monkeypatch.setattr(runs, "sweep", refuse)
    monkeypatch.setattr(runs, "worker_processes", refuse)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "run.toml"

    def check(command_and_data, edits, own):
        command, data = command_and_data
        file.write_bytes(edited(data, edits))
        before = contents(tmp_path)
        assert invoke(*command.split(), *own, "--config", file).exit_code in (0, 1, 2)
        assert contents(tmp_path) == before

    own = st.sampled_from([[], ["hyperbola"], ["--noise", "label"], ["--seed", "2"]])
    fuzz(check, cases["toml"], TOML, WHOLE | WHOLE | EDITS, own)


# Tables

ODD = [
    "",
    "nan",
    "-inf",
    "1e999",
    "1e308",
    "-1e200",
    "9" * 400,
    "true",
    "NA",
    '"',
    '"1"',
    "1;2",
    "2020-01-01",
    "1j",
]
CELLS = st.floats(-9, 9, width=16).map(str) | st.sampled_from(ODD) | TEXTS
PLAIN = st.floats(-9, 9, width=16).map(str) | st.integers(0, 1).map(str)
HEADERS = st.sampled_from(["a", "b", "c", "", "targets", "0", "Unnamed: 0", '"', "é"])


@st.composite
def csv(draw):
    columns, rows = draw(st.integers(0, 4)), draw(st.integers(0, 8))
    cells = draw(st.sampled_from([PLAIN, PLAIN, CELLS]))
    ragged = draw(st.integers(0, 9)) == 0
    lines = [draw(st.lists(HEADERS, min_size=columns, max_size=columns))]
    for _ in range(rows):
        low, high = (0, 6) if ragged else (columns, columns)
        lines.append(draw(st.lists(cells, min_size=low, max_size=high)))
    end = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    text = end.join(draw(st.sampled_from([",", ",", ";"])).join(line) for line in lines)
    return text.encode("utf-8", "surrogatepass")


MODELS = ["mlp:5", "mlp:", "mlp:0", "mlp:2,2", "tree", "mlp:" + "9" * 30, "mlp:" + "9" * 400, 5, None]
EXAMPLES = [1, 2, 3, 0, -1, 10**400, 1.5, float("nan"), True, "3", []]
TABLE_OPTIONS = st.one_of(
    st.fixed_dictionaries({"target": st.sampled_from(["a", "b", "targets", "", "nothing", 3]) | TEXTS}),
    st.fixed_dictionaries({"model": st.sampled_from(MODELS) | TEXTS}),
    st.fixed_dictionaries({"examples": st.sampled_from(EXAMPLES)}),
    st.fixed_dictionaries({"seed": st.sampled_from([0, 1, -1, 2**70, -(2**63), 1.5, "1", None])}),
    st.fixed_dictionaries({"colour": st.just("red")}),
)


SOUND = "a,b,targets\n" + "".join(f"{0.5 * i},{i * i % 7},{i % 3}\n" for i in range(9))


def load_table(file, data, options):
    file.write_bytes(data)
    with only_ours():
        made = problems.load("table", path=str(file), **options)
        assert all(np.isfinite(each).all() for each in (made.problem.inputs, made.problem.targets))
    assert file.read_bytes() == data


def test_csv(cases, tmp_path):
    def check(data, edits, options):
        load_table(tmp_path / "table.csv", edited(data, edits), options)

    tables = csv() | st.just(SOUND.encode())
    fuzz(check, cases["csv"], tables, WHOLE | WHOLE | EDITS, st.just({}) | TABLE_OPTIONS)


KINDS = ["f8", "f8", "f8", "f4", "i8", "u1", "?", "c16", "S3", "U2", "M8[s]", "O", "i4,f8", "V3"]
SHAPES = [(6, 2), (6,), (6,), (6, 2), (6, 1), (6, 0), (0, 2), (), (1,), (1, 2), (3, 2, 2), (5,)]
SAID = [f"{10**12}, 2", f"{10**12},", "3000000000, 2", "-1,", f"6, {2**70}", "'a',"]
ENDINGS = [".npy", ".npy", ".npy", "", ".txt"]


@st.composite
def npz(draw):
    """An archive with arrays of some kinds and shapes, or with headers that say what is not there."""
    held, packing = io.BytesIO(), draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    some = st.lists(st.sampled_from(["inputs", "targets", "x"]), max_size=3)
    with zipfile.ZipFile(held, "w", packing) as file:
        for name in dict.fromkeys(draw(st.just(["inputs", "targets"]) | some)):
            kind, shape = draw(st.sampled_from(KINDS)), draw(st.sampled_from(SHAPES))
            if draw(st.booleans()):
                kind, shape = "f8", (6,) if name == "targets" else (6, 2)
            array = np.resize(np.arange(-7.0, 7.0), shape)
            array = np.zeros(shape, kind) if kind[0] in "iV" else array.astype(kind)
            written = io.BytesIO()
            np.lib.format.write_array(written, array, allow_pickle=True)
            data = written.getvalue()
            if draw(st.integers(0, 5)) == 0:
                said = draw(st.sampled_from(SAID))
                header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({said}), }}".ljust(117) + "\n"
                data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(96)
            file.writestr(zipfile.ZipInfo(name + draw(st.sampled_from(ENDINGS))), data)
    return held.getvalue()


def test_npz(cases, tmp_path):
    def check(data, edits, options):
        load_table(tmp_path / "table.npz", edited(data, edits), options)

    fuzz(check, cases["npz"], npz(), WHOLE | WHOLE | EDITS, st.just({}) | TABLE_OPTIONS)


# Folders of runs


def test_folders(cases, scenes, tmp_path):
    """Looked at in every way, and exported to elsewhere: nothing in the run changes."""
    looks = ("open", "open", "show", "show", "json", "list", "csv", "netcdf")

    def check(kind, damages, look):
        scene, elsewhere = scenes[kind], tmp_path / "elsewhere"
        scene.damage(damages)
        before = contents(scene.folder)
        try:
            if look in ("csv", "netcdf"):
                with only_ours():
                    run = zl.open_run(scene.folder)
                    if look == "csv":
                        runs.export_csv(run, elsewhere)
                    else:
                        runs.export_netcdf(run, elsewhere / "run.nc")
            else:
                look_at(scene.folder, look)
            assert contents(scene.folder) == before
        finally:
            remove(elsewhere)
            scene.restore()

    fuzz(check, cases["folder"], st.sampled_from(list(scenes)), DAMAGES, st.sampled_from(looks))


def test_reports(cases, scenes, tmp_path):
    """The page of a run, or one of two, adds files and changes none."""

    def check(kind, damages, several):
        scene = scenes[kind]
        scene.damage(damages)
        before = contents(scene.folder)
        try:
            with only_ours():
                if several:
                    report.write_several([scene.folder, scenes["descend"].folder], tmp_path / "several.html")
                else:
                    report.write(scene.folder)
            after = contents(scene.folder)
            assert {path: after.get(path) for path in before} == before
            assert {path.split("/")[0] for path in set(after) - set(before)} <= {"figures", "report.html"}
        finally:
            remove(tmp_path / "several.html")
            scene.restore()

    several = st.sampled_from([False, False, True])
    fuzz(check, cases["report"], st.sampled_from(list(scenes)), DAMAGES, several)


# Checkpoints


def test_resume(cases, tmp_path, monkeypatch):
    """From a damaged checkpoint the same results come out, or an error, and then nothing has changed."""
    config = runs.config_from(
        {"command": "descend", "problem": "hyperbola", "noise": ["label:0.3", "minibatch:1"], "steps": 2000}
        | {"replicas": 2, "saves": 6}
    )
    runs.start(config, tmp_path / "whole")
    append, appended = runs._resume.append_trajectory, []

    def dying(*arguments):
        append(*arguments)
        appended.append(arguments)
        if len(appended) == 9:
            raise Killed

    monkeypatch.setattr(runs._resume, "append_trajectory", dying)
    with pytest.raises(Killed):
        runs.start(config, tmp_path / "run", every=0.0)
    monkeypatch.undo()
    scene, expected = (
        Scene(tmp_path / "run", within="checkpoint/"),
        contents(tmp_path / "whole" / "results.zarr"),
    )
    assert len(scene.files) >= 3

    def check(damages):
        scene.damage(damages)
        before = contents(scene.folder)
        try:
            runs.resume(scene.folder)
            assert contents(scene.folder / "results.zarr") == expected
        except ZerolossError as error:
            assert isinstance(error, RunError) and str(error)
            after = contents(scene.folder)
            changed = {place for place in before if after.get(place) != before[place]}
            # What is finished saves its state again, or is done again where that is gone.
            assert all(place == "log.jsonl" or place.startswith("checkpoint/noise_0/") for place in changed)
            assert changed <= set(after)
        finally:
            scene.restore()

    fuzz(check, cases["resume"], DAMAGES)
