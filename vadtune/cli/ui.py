"""``vadtune ui``: browse the trials in MLflow's own pages."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from typing import Any

logger = logging.getLogger(__name__)


def add_parser(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "ui",
        parents=parents,
        help="browse the trials in MLflow's UI",
        description="Serve MLflow's UI on the store the searches were logged to, on this machine only.",
        epilog="example: vadtune ui --port 5001",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tracking-uri", help="MLflow store (default: MLFLOW_TRACKING_URI, else ./mlflow.db)")
    parser.add_argument("--port", type=int, default=5000, help="port on 127.0.0.1 (default: 5000)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Becomes MLflow's server, or says where the remote one is."""
    from vadtune.errors import TrackingError
    from vadtune.tracking import sqlite_path, tracking_uri, without_secrets

    uri = tracking_uri(args.tracking_uri)
    if uri.startswith(("http://", "https://")):
        print(without_secrets(uri))
        logger.info("the store is a server with a UI of its own: open the address above")
        return 0
    path = sqlite_path(uri)
    if path is not None and not path.is_file():
        raise TrackingError(
            f"{path}: the store must exist, and does not; run `vadtune search` first, or --tracking-uri"
        )
    _check_port(args.port)
    logger.info("MLflow UI on http://127.0.0.1:%d (Ctrl-C ends it)", args.port)
    # One worker and no job runner start in a quarter of the time, and are enough for one person.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(args.port), "--workers", "1"]
    if path is not None:
        command += ["--default-artifact-root", (path.parent / "mlruns").as_uri()]
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of the server's own libraries, about each other
    sys.stderr.flush()
    os.execv(sys.executable, command)


def _check_port(port: int) -> None:
    from vadtune.errors import ConfigError

    if not 1 <= port <= 65535:
        raise ConfigError(f"--port: takes a port from 1 to 65535, got {port}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself does
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(f"--port: {port} cannot be used ({error.strerror}); name another") from error
