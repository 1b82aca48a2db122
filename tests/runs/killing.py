"""Runs in processes of their own, killed at random moments, and what is left of them on the disk."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

COMMANDS = {
    "descend": ["descend", "hyperbola", "--noise", "label:0.3", "--steps", "300000", "--replicas", "4"],
    "limit": ["limit", "ellipse", "--noise", "langevin:0.1", "--horizon", "0.5", "--replicas", "30"],
    "predict": ["predict", "hyperbola", "--noise", "weight:0.05", "--steps", "1000", "--saves", "9"],
    "compare": ["compare", "hyperbola", "--noise", "label:0.3", "--noise", "minibatch", "--steps", "300000"],
    "study": ["study", "hyperbola", "--noise", "weight:0.1", "--budget", "0.1"],
}
"""A short run of every long verb."""


_HEARING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


def zeroloss(*arguments, limit_bytes=None, alone=False):
    """Start the command, in a process that may write no file of more than `limit_bytes`.

    With `alone` its processes are a group of their own, as those of a command in a terminal are, which hears
    Ctrl-C even where these tests, put in the background, do not.
    """
    limited = f"ulimit -f {limit_bytes // 1024}; " if limit_bytes else ""
    return subprocess.Popen(
        [
            "bash",
            "-c",
            limited + 'exec "$@"',
            "bash",
            sys.executable,
            *(["-c", _HEARING, sys.executable] if alone else []),
            "-m",
            "zeroloss.cli",
            *map(str, arguments),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=alone,
    )


def finished(process, code=0):
    """What a process printed, once it has ended with this exit code."""
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == code, printed
    return printed


TIMED = ("log.jsonl", "timings.json", "lock", "report.html", "figures")


def contents(folder: Path, without=TIMED):
    """All files of a run and their bytes, those left out whose content a clock makes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in without
    }


def killed_once(marker: Path, compute, path, *arguments):
    """Compute a cell in a process that is killed once it has a checkpoint, the first time."""

    def kill():
        while not list(Path(path).glob("checkpoint/**/state.npz")):
            time.sleep(0.001)
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)

    if not marker.exists():
        threading.Thread(target=kill, daemon=True).start()
    return compute(path, *arguments)


def kill_and_resume(command, folder: Path, kills: int, seconds: float, rng: random.Random):
    """Runs that were killed, and resumed, after random times up to `seconds`, until so many kills have hit.

    Every run is brought to its end; returns their folders.
    """
    hit, folders = 0, []
    while hit < kills:
        run = folder / f"{len(folders)}"
        folders.append(run)
        process = zeroloss(*command, "--out", run, "--save-every", "0.05")
        while hit < kills:
            try:
                process.wait(rng.uniform(0.0, 1.0) * seconds)
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                hit += 1
            started = (run / "config.json").exists()
            again = ["resume", run] if started else [*command, "--out", run]
            process = zeroloss(*again, "--save-every", "0.05")
        finished(process)
    return folders
