"""Runs commands on hostile files in processes of their own, with bounds on time and memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SECONDS, BYTES = 5, 10**9  # of the processor, since others use the machine too; and of memory
_ADDRESS_SPACE = 12 * 2**30  # protects the machine where a bound fails; libraries map a lot that they never use


class Ended(NamedTuple):
    """How a command ended: exit code, what it printed, seconds of the processor and bytes of memory."""

    code: int
    output: str
    errors: str
    seconds: float
    memory: int


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))


def run(*args: str, folder: Path) -> Ended:
    """Runs ``vadtune`` with arguments in a folder."""
    output, errors = folder / ".output", folder / ".errors"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vadtune", *args]
    with output.open("wb") as out, errors.open("wb") as err:
        process = subprocess.Popen(
            command, cwd=folder, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=environment, preexec_fn=_limit
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    texts = [path.read_bytes().decode(errors="surrogateescape") for path in (output, errors)]
    for path in (output, errors):
        path.unlink()
    return Ended(process.returncode, *texts, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def refused(*args: str, folder: Path) -> str:
    """Runs a command that must end with exit code 2 and one line, soon and in little memory; returns the line."""
    before = sorted(folder.rglob("*"))
    ended = run(*args, folder=folder)
    assert ended.code == 2, ended
    assert ended.output == ""
    assert ended.errors.startswith("vadtune: error: "), ended.errors[:2000]
    assert ended.errors.count("\n") == 1, ended.errors[:2000]
    assert len(ended.errors) < 3000
    assert ended.seconds < SECONDS, ended
    assert ended.memory < BYTES, ended
    assert sorted(folder.rglob("*")) == before, "nothing is left behind"
    return ended.errors
