"""The command of a submitted search, run by a shell as the head does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vadtune.config import SearchFile, load_search
from vadtune.core.shipped import find_search_file
from vadtune.search.cluster import jobs

SHOWS = """#!{python}
import os, sys
from vadtune.config import load_search
search = load_search(__import__("pathlib").Path(sys.argv[4]))
print(search.name, search.search.samples, *sys.argv[1:4], *sys.argv[5:], os.listdir(os.environ["TMPDIR"]))
"""


def test_a_job_reads_its_search_file_and_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[str] = []

    class Client:
        def __init__(self, address: str) -> None:
            pass

        def submit_job(self, *, entrypoint: str, metadata: Any) -> str:
            commands.append(entrypoint)
            return "raysubmit_1"

    monkeypatch.setattr(jobs, "JobSubmissionClient", Client)
    search: SearchFile = load_search(find_search_file("digits"), ["search.samples=7"])
    jobs.Jobs("http://127.0.0.1:1").submit(search, storage="/shared runs", tracking_uri=None)
    (tmp_path / "bin").mkdir()
    (tmp_path / "tmp").mkdir()
    (tmp_path / "bin" / "python").write_text(SHOWS.format(python=sys.executable))
    (tmp_path / "bin" / "python").chmod(0o755)
    path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run(["sh", "-c", *commands], env=env, capture_output=True, text=True, check=False)
    assert done.stdout == "digits 7 -m vadtune search --address auto --storage /shared runs []\n", done.stderr
