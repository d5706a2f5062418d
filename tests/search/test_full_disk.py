"""A disk that is full when a search starts, or while it runs: one line, and a resume once there is room."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.search.test_interruption import command, environment, finished_trials, trials_of
from tests.search.test_run import tiny

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.chaos]


class Disk:
    """A file system of 20 MB in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._filler = folder, folder / "filler"

    def fill(self, *, free: int = 0) -> None:
        """Leaves so many bytes free."""
        status = os.statvfs(self.folder)
        with contextlib.suppress(OSError):  # a search that runs takes what was left
            self._filler.write_bytes(bytes(max(0, status.f_bavail * status.f_frsize - free)))

    def make_room(self) -> None:
        self._filler.unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("needs to mount a file system")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    with (folder / "log.txt").open("w") as log:
        return subprocess.Popen(command(*arguments), cwd=folder, env=environment(), stdout=log, stderr=log, text=True)


def last_line(folder: Path) -> str:
    log = (folder / "log.txt").read_text()
    assert "Traceback" not in log
    return log.splitlines()[-1]


@pytest.mark.parametrize("free", [0, 16_384, 40_960], ids=["nothing", "a little", "more"])
def test_a_disk_that_is_full_at_the_start_is_told_and_the_search_resumes(free: int, disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny(samples=4)))
    disk.fill(free=free)
    process = started(tmp_path, "search", "tiny.yaml", "--storage", str(disk.folder / "runs"))
    assert process.wait(120) == 2, (tmp_path / "log.txt").read_text()
    assert last_line(tmp_path).startswith("vadtune: error: ")
    assert "make room" in last_line(tmp_path)
    disk.make_room()
    if not free:
        assert list((disk.folder / "runs").iterdir()) == []
        return
    resume = last_line(tmp_path).partition("then: vadtune ")[2].split()
    assert resume[0] == "resume"
    assert started(tmp_path, *resume).wait(120) == 0, (tmp_path / "log.txt").read_text()
    assert len(trials_of(tmp_path)) == 4


def test_a_disk_that_fills_while_a_search_runs_stops_it_until_there_is_room(disk: Disk, tmp_path: Path) -> None:
    tree = tiny(samples=8, scheduler="none")
    tree["train"]["epochs"] = 2000
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    storage = ["--storage", str(disk.folder / "runs"), "--tracking-uri", f"sqlite:///{disk.folder / 'mlflow.db'}"]
    process = started(tmp_path, "search", "tiny.yaml", *storage)
    deadline = time.monotonic() + 120
    while finished_trials(disk.folder) < 3:
        assert process.poll() is None, (tmp_path / "log.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    disk.fill()
    assert process.wait(120) == 2, (tmp_path / "log.txt").read_text()
    assert "the disk of the search is full" in last_line(tmp_path)
    resume = last_line(tmp_path).partition("then: vadtune ")[2].split()
    process = started(tmp_path, *resume)
    assert process.wait(120) == 2, (tmp_path / "log.txt").read_text()
    assert "make room" in last_line(tmp_path)
    disk.make_room()
    assert started(tmp_path, *resume).wait(240) == 0, (tmp_path / "log.txt").read_text()
    trials = trials_of(disk.folder)
    assert [trial.end for trial in trials] == ["completed"] * 8
