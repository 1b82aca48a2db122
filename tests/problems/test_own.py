import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import zeroloss as zl
from zeroloss import problems
from zeroloss.errors import InputError, RunError


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "problem.py"
    problems.write_template(path)
    return path


def test_the_template_works_as_it_is(written):
    made = problems.load(str(written))
    assert {"dropout", "label", "input", "minibatch", "weight", "dropconnect"} <= set(made.noises)
    system = made.problem.with_noise(problems.parse_noise(made, "dropout:0.02"))
    point = zl.project(system, made.start)
    assert zl.classify(system, point).name == "non-degenerate"
    assert float(made.observables["size_of_out"](point)) > 0
    assert problems.parse_noise(made, "minibatch").size == 15  # half of them: the default is larger than all
    with pytest.raises(InputError, match="cannot be drawn without replacement from 30"):
        made.problem.with_noise(problems.parse_noise(made, "minibatch:32"))
    wide = problems.load(f"{written}:make", width=70)
    assert wide.start["out"].shape == (70,)


def test_the_template_passes_the_linters_of_this_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    problems.write_template(Path("problem.py"))
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--select", "E,F,B", "--line-length", "110", "problem.py"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_a_template_overwrites_nothing(written):
    before = written.read_text()
    with pytest.raises(RunError, match="is there already"):
        problems.write_template(written)
    assert written.read_text() == before
    with pytest.raises(InputError, match=r"must end in \.py"):
        problems.write_template(written.with_suffix(".txt"))


def test_a_loss_that_is_no_least_squares(tmp_path):
    path = tmp_path / "valley.py"
    path.write_text(
        "import jax.numpy as jnp, zeroloss as zl\n"
        "def valley(height=1.0):\n"
        "    return zl.Loss(lambda w: (w[0] * w[1] - height) ** 2), jnp.array([2.0, 0.5])\n"
    )
    made = problems.load(f"{path}:valley", height=1.0)
    assert set(made.noises) == {
        "weight",
        "anti-correlated",
        "dropconnect",
        "gaussian-dropconnect",
        "langevin",
    }
    system = made.problem.with_noise(zl.WeightNoise(0.1))
    assert zl.classify(system, zl.project(system, made.start)).name == "non-degenerate"


@pytest.mark.parametrize(
    "code,message",
    [
        ("def make(:\n", r"problem\.py, line 1: invalid syntax"),
        ("import nothing_like_it\n", r"problem\.py, line 1: ModuleNotFoundError"),
        ("x = 1\ndef make():\n    return 1 / 0\n", r"problem\.py, line 3: ZeroDivisionError"),
        ("import sys\nsys.exit(3)\n", r"problem\.py, line 2: SystemExit"),
        ("other = 1\n", r"has no function 'make'"),
        ("make = 3\n", r"has no function 'make'"),
        ("def make():\n    return 3\n", "must return .* it returned int"),
        ("def make():\n    return 3, 4\n", "it returned a tuple of int, int"),
        ("def make(height):\n    return 3\n", "TypeError: make.. missing 1 required"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(tmp_path, code, message):
    (tmp_path / "problem.py").write_text(code)
    with pytest.raises(InputError, match=message):
        problems.load(str(tmp_path / "problem.py"))


def test_unknown_options_and_files(written):
    with pytest.raises(InputError, match=r"has no option 'depth'. Its options: width, examples, seed"):
        problems.load(str(written), depth=3)
    with pytest.raises(InputError, match="cannot read the problem"):
        problems.load(str(written.with_name("nowhere.py")))


def table(path, rows=30, columns=4, signs=False):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(rows, columns))
    target = np.sign(inputs[:, 0]) if signs else inputs @ np.arange(columns) + 3
    names = [f"x{i}" for i in range(columns)] + ["y"]
    lines = [",".join(names)] + [",".join(map(repr, map(float, row))) for row in np.c_[inputs, target]]
    path.write_text("\n".join(lines) + "\n")
    return inputs, target


@pytest.mark.parametrize("signs", [False, True])
def test_a_table_is_fitted(tmp_path, signs):
    inputs, _ = table(tmp_path / "data.csv", signs=signs)
    made = problems.load("table", path=str(tmp_path / "data.csv"), model="mlp:8,8", examples=20)
    assert made.problem.inputs.shape == (20, 4) and "dropout" in made.noises
    assert made.description == "y in data.csv, 20 examples, tanh network 4-8-8-1"
    every = np.concatenate([made.problem.inputs])
    standardized = (inputs - inputs.mean(axis=0)) / inputs.std(axis=0)
    assert all(np.isclose(standardized, row).all(axis=1).any() for row in every)
    assert set(np.unique(made.problem.targets)) == {-1.0, 1.0} if signs else True
    point = zl.project(made.problem.with_noise(zl.LabelNoise(0.1)), made.start)
    assert float(made.problem.loss(point)) < 1e-12
    error = float(made.observables["test_error"](point))
    assert 0 <= error <= 1 if signs else error > 0


def test_arrays_and_another_column(tmp_path):
    inputs, target = table(tmp_path / "data.csv")
    np.savez(tmp_path / "data.npz", inputs=inputs, targets=target)
    one = problems.load("table", path=str(tmp_path / "data.csv"))
    two = problems.load("table", path=str(tmp_path / "data.npz"))
    np.testing.assert_allclose(one.problem.targets, two.problem.targets, rtol=1e-12)
    np.testing.assert_allclose(one.problem.inputs, two.problem.inputs, rtol=1e-12)
    other = problems.load("table", path=str(tmp_path / "data.csv"), target="x2")
    assert other.description.startswith("x2 in data.csv, 22 examples")


def test_parquet(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    table(tmp_path / "data.csv")
    pandas.read_csv(tmp_path / "data.csv").to_parquet(tmp_path / "data.parquet")
    one, two = (problems.load("table", path=str(tmp_path / f"data.{end}")) for end in ("csv", "parquet"))
    np.testing.assert_array_equal(one.problem.targets, two.problem.targets)


OWN = """
    from __future__ import annotations

    import dataclasses

    import jax.numpy as jnp
    import zeroloss as zl

    @dataclasses.dataclass
    class Sizes:
        width: int = 3

    def make(seed=0):
        model = lambda w, x: x @ w
        watch = {"watched": lambda w: %s}
        return zl.LeastSquares(model, jnp.ones((1, 3)), jnp.ones(1)), jnp.ones(Sizes().width), watch
"""


@pytest.mark.parametrize(("watched", "said"), [("w", "one number.*shape \\(3,\\)"), ("w['a']", "line 15")])
def test_what_is_watched_is_tried_before_anything_is_computed(tmp_path, watched, said):
    path = tmp_path / "own.py"
    path.write_text(textwrap.dedent(OWN % watched))
    with pytest.raises(InputError, match=said):
        problems.load(str(path))


def test_a_file_may_have_dataclasses_and_a_seed(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(textwrap.dedent(OWN % "w[0]"))
    assert problems.load(str(path)).start.shape == (3,)
    assert "seed" in problems.options_of(str(path))


@pytest.mark.parametrize(
    "text,options,message",
    [
        ("a,b\n1,2\n", {}, "has 1 rows"),
        ("a,b\n1,2\n3,4\n5,7\n", {"target": "c"}, "has no column 'c'. Its columns: a, b"),
        ("a,b\n1,2\nred,4\n", {}, "the column 'a' holds no numbers"),
        (
            "a,b\n1,2\n,4\n3,5\n",
            {},
            "'a' is missing, infinite or beyond .* in 1 of 3 rows, first in row 2",
        ),
        ("a,b\n1,2\ninf,4\n3,5\n", {}, "'a' is missing, infinite"),
        ("a,b\n1,2\n3,2\n", {}, "the target is 2 in all 2 rows"),
        ("a,b\n1,2\n3,4\n5,7\n", {"examples": 4}, "examples is 4, and .* has 3 rows"),
        ("a,b\n" + "1,2\n3,4\n" * 5, {"model": "mlp:1", "examples": 8}, "has 4 parameters, too few to fit 8"),
        (
            "a,b\n1,2\n3,4\n1,2\n5,6\n1,7.5\n3,4\n",
            {"examples": 6},
            "rows 1 and 5 .* have equal inputs but the targets 2 and 7.5, .*; 3 of the 6 rows",
        ),
        ("a,b\n1,2\n3,4\n", {"model": "cnn"}, "model must be mlp:"),
        ("a,b\n1,2\n3,4\n", {"model": "mlp:0"}, "positive integer"),
        ("a\n1\n", {}, "two or more columns"),
        ("", {}, "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, text, options, message):
    (tmp_path / "data.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        problems.load("table", path=str(tmp_path / "data.csv"), **options)


WORDS = "a,b\n1,x\n%s,y\n3,x\n4,y\n"
CLASSES = {"loss": "cross-entropy"}


@pytest.mark.parametrize("column", [["cat", "dog", "bird"], [3, 1, 7]], ids=["words", "numbers"])
def test_a_column_of_classes(tmp_path, column):
    rows = [f"{i},{i * i % 7},{column[i % 3]}" for i in range(12)]
    (tmp_path / "data.csv").write_text("a,b,kind\n" + "\n".join(rows))
    made = problems.load("table", path=str(tmp_path / "data.csv"), examples=8, smoothing=0.2, **CLASSES)
    targets = np.asarray(made.problem.targets)
    wrong = 0.2 / 3
    np.testing.assert_allclose(np.sort(targets, axis=1), np.tile([wrong, wrong, 0.8 + wrong], (8, 1)))
    assert set(made.observables) == {"test_error", "test_loss", "calibration_error"}
    assert "sampled-labels" in made.noises and "3 classes of kind" in made.description
    order = np.random.default_rng(0).permutation(12)
    expected = np.unique(column, return_inverse=True)[1][order[:8] % 3]
    np.testing.assert_array_equal(targets.argmax(axis=1), expected)
    system = made.problem.with_noise(zl.WeightNoise(0.1))
    assert zl.classify(system, zl.project(system, made.start)).name == "non-degenerate"


@pytest.mark.parametrize(
    "text,options,message",
    [
        ("a,b\n1,2\n2,2.5\n3,2\n4,2.5\n", CLASSES, "'b' is 2.5 in row 2, and cross-entropy needs classes"),
        ("a,b\n1,2\n2,3\n3,4\n4,2\n", CLASSES, "'b' has 3 different values in 4 rows, too many"),
        ("a,b\n1,x\n2,\n3,y\n4,y\n", CLASSES, "'b' is missing in row 2"),
        (WORDS % "2", CLASSES | {"smoothing": 1.0}, "smoothing must lie strictly between"),
        (WORDS % "1", CLASSES | {"examples": 4}, "rows 1 and 2 .* have equal inputs"),
        ("a,b\n1,1\n2,1\n3,2\n4,2\n", {"smoothing": 0.1}, "smoothing is for cross-entropy"),
        ("a,b\n1,1\n2,1\n3,2\n4,2\n", {"loss": "hinge"}, "loss must be squares or cross-entropy"),
        ("a,b\n1,1\n2,1\n3,2\n4,2\n", {"activation": "sine"}, "activation must be one of tanh, relu"),
    ],
)
def test_what_is_wrong_with_a_column_of_classes_is_said(tmp_path, text, options, message):
    (tmp_path / "data.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        problems.load("table", path=str(tmp_path / "data.csv"), **options)


def test_what_is_wrong_with_arrays_is_said(tmp_path):
    np.savez(tmp_path / "data.npz", inputs=np.ones((3, 2)), targets=np.ones(4))
    with pytest.raises(InputError, match=r"they have \(4,\) and \(3, 2\)"):
        problems.load("table", path=str(tmp_path / "data.npz"))
    np.savez(tmp_path / "data.npz", inputs=np.array([{}], dtype=object), targets=np.ones(4))
    with pytest.raises(InputError, match="cannot be read"):
        problems.load("table", path=str(tmp_path / "data.npz"))  # a pickle in it is not opened
    with pytest.raises(InputError, match="there is no file"):
        problems.load("table", path=str(tmp_path / "nowhere.csv"))
    with pytest.raises(InputError, match="needs the option 'path'"):
        problems.load("table")
