"""Runs in processes of their own, killed at random moments, and what is left of them on the disk."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "descend": ["descend", "hyperbola", "--noise", "label:0.3", "--steps", "3000000", "--replicas", "4"],
    "limit": ["limit", "ellipse", "--noise", "langevin:0.1", "--horizon", "0.5", "--replicas", "30"],
    "predict": ["predict", "hyperbola", "--noise", "weight:0.05", "--steps", "1000", "--saves", "9"],
    "compare": ["compare", "hyperbola", "--noise", "label:0.3", "--noise", "minibatch", "--steps", "300000"],
    "study": ["study", "hyperbola", "--noise", "weight:0.1", "--budget", "0.1"],
}
"""A short run of every long verb."""


def zeroloss(*arguments, cache, limit_bytes=None):
    """Start the command; compiled programs are kept in the folder `cache` from one process to the next."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "OPENBLAS_NUM_THREADS": "1",
    }
    limited = f"ulimit -f {limit_bytes // 1024}; " if limit_bytes else ""
    return subprocess.Popen(
        [
            "bash",
            "-c",
            limited + 'exec "$@"',
            "bash",
            sys.executable,
            "-m",
            "zeroloss.cli",
            *map(str, arguments),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
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


def kill_and_resume(
    command, folder: Path, cache: Path, kills: int, seconds: float, rng: random.Random
) -> int:
    """Start a run, kill it after up to `seconds`, resume it, and so on; return how many kills hit."""
    process = zeroloss(*command, "--out", folder, "--save-every", "0.05", cache=cache)
    hit = 0
    for _ in range(kills):
        time.sleep(rng.uniform(0.3, 1.0) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        hit += process.returncode == -signal.SIGKILL
        process.stdout.close()
        started = (folder / "config.json").exists()
        again = ["resume", folder] if started else [*command, "--out", folder]
        process = zeroloss(*again, "--save-every", "0.05", cache=cache)
    finished(process)
    return hit
