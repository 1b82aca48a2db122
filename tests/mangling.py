"""Files and folders as accidents, and strangers, leave them: cases for Hypothesis, and how to make them."""

import contextlib
import json
import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import zarr
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from zeroloss.errors import ZerolossError

SECONDS = 20  # for one case; all are done in a fraction of one
ROOM = 2 * 2**30  # bytes that a case may take


class Hang(BaseException):
    """A case that did not come to its end."""


def fuzz(check, cases, *strategies):
    """`check(*case)` for so many cases from the strategies, the same ones every time; prints how many."""
    done = [0]

    @settings(
        max_examples=cases,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
    )
    @given(st.tuples(*strategies))
    def run(case):
        done[0] += 1
        with within(SECONDS):
            check(*case)

    with memory(ROOM):
        run()
    print(f"{done[0]} cases")
    assert done[0] >= cases


@contextlib.contextmanager
def only_ours():
    """Errors of ours may come out, with something to read; nothing else may."""
    try:
        yield
    except ZerolossError as error:
        assert str(error).strip()


@contextlib.contextmanager
def within(seconds):
    def stop(*_):
        raise Hang(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def memory(room):
    """Let the process take so many bytes more than it has: what asks for more gets a MemoryError."""
    status = Path("/proc/self/status")
    if not status.exists():
        yield
        return
    has = next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "VmData" in line)
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (has + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


# Values and bytes.

TEXTS = st.text(st.characters(), max_size=12) | st.sampled_from(
    [
        "",
        "\0",
        "\ud800",
        "NaN",
        "none",
        "..",
        "/",
        "a/b",
        "[bold]",
        "$x$",
        "<b>",
        "é" * 300,
        "x.py:make",
        "-1",
    ]
)
NUMBERS = (
    st.integers(-3, 5)
    | st.floats()
    | st.sampled_from([10**18, -(10**18), 2**63, 10**400, 10**8, 1e308, -1e308, 5e-324, True, False])
)
VALUES = st.recursive(
    st.none() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)


@st.composite
def nested(draw):
    """A value deep inside others."""
    value, depth = draw(NUMBERS | TEXTS), draw(st.sampled_from([30, 150, 240, 400, 900]))
    key = draw(st.booleans())
    for _ in range(depth):
        value = {"a": value} if key else [value]
    return value


WILD = VALUES | nested()

_TOKENS = [b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"null", b'"', b"\\", b"{" * 3000, b"[" * 100_000]
_TOKENS += [b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3(", b"\0", b"\n", b"\r", b",", b"=", b"-", b"0", b"\\ud800"]
_PLACE = st.integers(0, 2**16)
_EDIT = st.one_of(
    st.tuples(st.just("flip"), _PLACE, st.integers(0, 7)),
    st.tuples(st.just("cut"), _PLACE, st.none()),
    st.tuples(st.just("insert"), _PLACE, st.binary(min_size=1, max_size=8) | st.sampled_from(_TOKENS)),
    st.tuples(st.just("remove"), _PLACE, st.integers(1, 40)),
    st.tuples(st.just("replace"), _PLACE, st.binary(min_size=1, max_size=8) | st.sampled_from(_TOKENS)),
)
EDITS = st.lists(_EDIT, min_size=1, max_size=3)


def edited(data: bytes, edits) -> bytes:
    """The bytes after some edits."""
    for kind, place, what in edits:
        at = place % (len(data) + 1)
        if kind == "flip":
            flipped = bytes([data[at] ^ 1 << what]) if at < len(data) else b""
            data = data[:at] + flipped + data[at + 1 :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + what + data[at:]
        elif kind == "remove":
            data = data[:at] + data[at + what :]
        else:
            data = data[:at] + what + data[at + len(what) :]
    return data


# Folders.

_WILD = [
    10**18, 10**8, 2**31, -1, 0, 1, 2, 7, None, "", "unknown", [], {}, True, 1.5, [10**18], ["time"], [1, 1],
    "float32", "int64", "string", "bool", "numpy.datetime64", "complex128", "NaN", "array", "group", "time",
    "replica", "seconds since 2000-01-01", "\ud800", "a" * 10_000,
]  # fmt: skip
_WHICH = st.integers(0, 2**16)
_NUMBERS_IN_ARRAYS = st.sampled_from(
    [np.nan, np.inf, -np.inf, 1e308, -1e308, 1e160, 1e30, 1e-320, 1e-200, 0.0, -1.0, 1.0, 2.0**63]
)
DAMAGES = st.lists(
    st.one_of(
        st.tuples(st.just("bytes"), _WHICH, EDITS),
        st.tuples(st.just("metadata"), _WHICH, st.tuples(_WHICH, st.sampled_from(_WILD) | WILD)),
        st.tuples(st.just("metadata"), _WHICH, st.tuples(_WHICH, st.sampled_from(_WILD))),
        st.tuples(st.just("numbers"), _WHICH, st.tuples(_WHICH, _NUMBERS_IN_ARRAYS)),
        st.tuples(st.just("numbers"), _WHICH, st.tuples(_WHICH, _NUMBERS_IN_ARRAYS)),
        st.tuples(st.just("gone"), _WHICH, st.none()),
        st.tuples(st.just("folder"), _WHICH, st.none()),
        st.tuples(st.just("pipe"), _WHICH, st.none()),
        st.tuples(st.just("json"), _WHICH, WILD),
        st.tuples(st.just("link"), _WHICH, st.sampled_from([".", "..", "../..", "nowhere", "itself"])),
        st.tuples(st.just("swapped"), _WHICH, _WHICH),
        st.tuples(st.just("branch gone"), _WHICH, st.none()),
        st.tuples(st.just("branch moved"), _WHICH, TEXTS),
    ),
    min_size=1,
    max_size=2,
)


class Scene:
    """A folder that can be damaged and be brought back; `files` are those to damage, relative to it."""

    def __init__(self, folder: Path, within: str = "."):
        self.folder, self._within = folder, within
        self.whole = contents(folder)
        files = [path for path, held in self.whole.items() if held[0] == "file" and path != "lock"]
        files = [path for path in files if within == "." or path.startswith(within)]
        first = [path for path in files if path.count("/") <= 2 and "/c" not in path]  # what else hangs on
        self.files = first + files

    def damage(self, damages):
        pipes_last = sorted(damages, key=lambda damage: damage[0] == "pipe")  # for nobody can read them
        for kind, which, what in pipes_last:
            path = self.folder / self.files[which % len(self.files)]
            with contextlib.suppress(Exception):  # the one before may have left nothing to damage
                _damage(path, kind, what, self.folder, self.files)

    def restore(self):
        """Bring back what the folder was."""
        now = contents(self.folder)
        for path in sorted(now, reverse=True):
            if now[path] != self.whole.get(path):
                remove(self.folder / path)
        for path, (kind, held) in sorted(self.whole.items()):
            if now.get(path) != (kind, held) or not (self.folder / path).exists():
                if kind == "folder":
                    (self.folder / path).mkdir(parents=True, exist_ok=True)
                else:
                    (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
                    (self.folder / path).write_bytes(held)


def contents(folder: Path):
    """Everything in a folder: the bytes of its files, and where its links point."""
    found = {}
    for where, folders, names in os.walk(folder):
        for name in folders + names:
            path = Path(where) / name
            place = path.relative_to(folder).as_posix()
            if path.is_symlink():
                found[place] = ("link", os.readlink(path))
            elif path.is_dir():
                found[place] = ("folder", None)
            elif not path.is_file():
                found[place] = ("pipe", None)  # to read it would take for ever
            else:
                found[place] = ("file", path.read_bytes())
    return found


def remove(path: Path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.is_symlink() or path.exists():
        path.unlink()


def _damage(path, kind, what, folder, files):
    if kind == "bytes":
        path.write_bytes(edited(path.read_bytes(), what))
    elif kind == "metadata":
        path.write_text(json.dumps(_put(json.loads(path.read_bytes()), *what)))
    elif kind == "numbers":
        _set(path.parent, *what)
    elif kind == "json":
        path.write_text(json.dumps(what))
    elif kind == "swapped":
        path.write_bytes((folder / files[what % len(files)]).read_bytes())
    elif kind == "branch gone" and path.parent != folder:
        shutil.rmtree(path.parent)
    elif kind == "branch moved" and path.parent != folder:
        path.parent.rename(path.parent.parent / what.replace("/", "_"))
    elif kind in ("gone", "folder", "pipe", "link"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to(path.name if what == "itself" else what)


def _set(folder, which, number):
    """Another number at one of the places of an array, or at all of them."""
    if json.loads((folder / "zarr.json").read_bytes()).get("node_type") != "array":
        return
    array = zarr.open_array(folder, mode="r+")
    values = np.array(array[...])
    if values.dtype.kind == "f":
        values.flat[slice(None) if which % 5 == 0 else which % values.size] = number
    elif values.dtype.kind == "i":
        values.flat[which % values.size] = int(np.clip(np.nan_to_num(number), -(2**62), 2**62))
    elif values.dtype.kind == "T":
        values.flat[which % values.size] = str(number)
    array[...] = values


def _put(value, which, new):
    """JSON with another value at one of its places."""
    places = []

    def visit(inner, place):
        places.append(place)
        items = (
            inner.items() if isinstance(inner, dict) else enumerate(inner) if isinstance(inner, list) else ()
        )
        for key, each in items:
            visit(each, (*place, key))

    visit(value, ())
    place = places[which % len(places)]
    if not place:
        return new
    inner = value
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = new
    return value
