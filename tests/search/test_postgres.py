"""A search logged as a team logs it: to a real MLflow server on a real PostgreSQL."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.search.servers import Postgres, Server, postgres, postgres_programs
from tests.search.test_chaos import (
    check_every_sample_once,
    check_histories,
    ended,
    finished_trials,
    search_file,
    started,
    wait_for,
)
from tests.search.test_interruption import command, environment
from vadtune.tracking.queries import resolve_search
from vadtune.tracking.store import connect

PROGRAMS = postgres_programs()
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.chaos,
    pytest.mark.skipif(PROGRAMS is None, reason="needs PostgreSQL's initdb: apt-get install postgresql"),
    pytest.mark.skipif(importlib.util.find_spec("psycopg2") is None, reason="needs psycopg2-binary, an extra of dev"),
]


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    assert PROGRAMS is not None
    with postgres(PROGRAMS) as here:
        yield here


@pytest.fixture
def server(database: Postgres, tmp_path: Path) -> Iterator[Server]:
    here = Server(tmp_path, database.uri)
    here.start()
    here.wait()
    yield here
    here.kill()


def test_a_database_that_is_away_for_a_while_loses_nothing(database: Postgres, server: Server, tmp_path: Path) -> None:
    epochs = 4500  # so long that no machine is done before the server has told
    search_file(tmp_path, 8, epochs=epochs)
    log = tmp_path / "log.txt"
    search = started(tmp_path, "search", "tiny.yaml", "--tracking-uri", server.uri)
    wait_for(lambda: finished_trials(tmp_path) >= 2, search, log)
    database.stop()
    told = "the tracking store does not answer, results are kept until it does"
    wait_for(lambda: told in log.read_text() and finished_trials(tmp_path) >= 5, search, log)  # it goes on without
    database.start()
    ended(search, tmp_path)
    assert "the tracking store answers again" in log.read_text()
    check_every_sample_once(server.trials(), 8)
    check_histories(server.uri, server.trials(), epochs=epochs)
    client = connect(server.uri)
    found = resolve_search(client, server.uri, "tiny")
    assert found.status == "FINISHED"
    assert {artifact.path for artifact in client.list_artifacts(found.run_id)} == {"search.yaml", "summary.json"}

    # And read past the server, as an administrator may; the password is shown nowhere.
    done = subprocess.run(
        command("results", "tiny", "--format", "csv"),
        cwd=tmp_path,
        env={**environment(), "MLFLOW_TRACKING_URI": database.uri},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 9
    assert database.password not in done.stdout + done.stderr + log.read_text()
