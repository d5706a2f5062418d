"""A real MLflow server and a real PostgreSQL, on loopback, in processes of their own that are ended by their ids."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.search.cluster import free_port, kill_tree
from tests.search.test_interruption import environment
from vadtune.tracking.queries import Trial, list_trials, resolve_search
from vadtune.tracking.store import connect


class Server:
    """A real MLflow server on loopback, whose store outlives it.

    Args:
        folder: For its artifacts, its log, and its database.
        store: Another database.
    """

    def __init__(self, folder: Path, store: str | None = None) -> None:
        self._folder, self._port = folder, free_port()
        self._store = store or f"sqlite:///{folder / 'server.db'}"
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        arguments = ["--port", str(self._port), "--workers", "1"]
        arguments += ["--artifacts-destination", str(self._folder / "artifacts")]
        env = {
            **environment(),
            "MLFLOW_BACKEND_STORE_URI": self._store,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        with (self._folder / "server.txt").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", *arguments],
                cwd=self._folder,
                env=env,
                stdout=log,
                stderr=log,
                text=True,
            )

    def wait(self) -> None:
        deadline = time.monotonic() + 90
        while True:
            try:
                connect(self.uri)
                return
            except Exception:
                assert time.monotonic() < deadline, (self._folder / "server.txt").read_text()
                time.sleep(0.3)

    def kill(self) -> None:
        if self._process is not None:
            kill_tree(self._process)
            self._process = None

    def trials(self, name: str = "tiny") -> list[Trial]:
        client = connect(self.uri)
        return list_trials(client, resolve_search(client, self.uri, name))


def postgres_programs() -> Path | None:
    """Returns the folder of PostgreSQL's programs; Debian keeps them out of PATH."""
    found = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").exists()]
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).resolve().parent
    return max(found, key=lambda path: float(path.parent.name), default=None)


class Postgres:
    """A throw-away PostgreSQL on loopback, with a password.

    Args:
        programs: The folder of its programs.
        folder: For its files; owned by whoever runs it.
        user: Who runs it: PostgreSQL refuses to be root.
    """

    def __init__(self, programs: Path, folder: Path, user: str | None) -> None:
        self._programs, self._folder, self._user, self._port = programs, folder, user, free_port()
        self.password = secrets.token_hex(8)
        self.uri = f"postgresql+psycopg2://mlflow:{self.password}@127.0.0.1:{self._port}/postgres"
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "password").write_text(self.password)
        arguments = ["--pgdata", str(folder / "data"), "--username", "mlflow", "--pwfile", str(folder / "password")]
        self._program("initdb", *arguments, "--auth", "scram-sha-256", "--no-sync", "--encoding", "UTF8").wait(120)

    def _program(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._folder / "log.txt").open("a") as log:
            command = [str(self._programs / name), *arguments]
            return subprocess.Popen(
                command,
                cwd=self._folder,
                stdout=log,
                stderr=log,
                user=self._user,
                group=self._user and pwd.getpwnam(self._user).pw_gid,
                env={"LC_ALL": "C"},
            )

    def start(self) -> None:
        settings = [f"port={self._port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={self._folder}"]
        settings += ["fsync=off", "dynamic_shared_memory_type=mmap"]
        options = [word for setting in settings for word in ("-c", setting)]
        self._process = self._program("postgres", "-D", str(self._folder / "data"), *options)
        deadline = time.monotonic() + 60
        ready = "database system is ready to accept connections"
        before = (self._folder / "log.txt").read_text().count(ready)
        while (self._folder / "log.txt").read_text().count(ready) == before:
            assert self._process.poll() is None, (self._folder / "log.txt").read_text()
            assert time.monotonic() < deadline, (self._folder / "log.txt").read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        """Ends it at once, connections and all; what was committed stays."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(60)
            self._process = None


@contextlib.contextmanager
def postgres(programs: Path) -> Iterator[Postgres]:
    """A running PostgreSQL; all of it is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # a short path that another user may enter
    user = None
    if os.geteuid() == 0:
        known = {entry.pw_name for entry in pwd.getpwall()}
        user = "postgres" if "postgres" in known else "nobody"
        shutil.chown(folder, user)
    here = Postgres(programs, folder, user)
    try:
        here.start()
        yield here
    finally:
        here.stop()
        shutil.rmtree(folder)
