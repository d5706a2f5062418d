"""``vadtune ui``: browse the trials in MLflow's own pages."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from typing import Any

logger = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"


def add_parser(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "ui",
        parents=parents,
        help="browse the trials in MLflow's UI",
        description="Serve MLflow's UI on the store the searches were logged to; on this machine only, unless told "
        "otherwise by --host with --expose.",
        epilog="example: vadtune ui --port 5001",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tracking-uri", help="MLflow store (default: MLFLOW_TRACKING_URI, else ./mlflow.db)")
    parser.add_argument("--port", type=int, default=5000, help="port (default: 5000)")
    parser.add_argument("--host", default=_LOOPBACK, help=f"address to listen on (default: {_LOOPBACK})")
    parser.add_argument(
        "--expose", action="store_true", help="needed with a --host others reach: all of the store is theirs then"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Becomes MLflow's server, or says where the remote one is."""
    from vadtune.core.errors import ConfigError, TrackingError
    from vadtune.tracking import sqlite_path, tracking_uri, without_secrets

    uri = tracking_uri(args.tracking_uri)
    if uri.startswith(("http://", "https://")):
        print(without_secrets(uri))
        logger.info("the store is a server with a UI of its own: open the address above")
        return 0
    others = args.host not in (_LOOPBACK, "localhost")
    if others and not args.expose:
        raise ConfigError(
            f"--host: {args.host} can be reached by others, who may read, change and delete every experiment of "
            f"{without_secrets(uri)} without a password; add --expose if that is meant"
        )
    path = sqlite_path(uri)
    if path is not None and not path.is_file():
        raise TrackingError(
            f"{path}: the store must exist, and does not; run `vadtune search` first, or --tracking-uri"
        )
    _check_port(args.host, args.port)
    logger.info("MLflow UI on http://%s:%d (Ctrl-C ends it)", args.host, args.port)
    if others:
        logger.warning(
            "exposed without a password to all who reach %s:%d: reading, changing and deleting every experiment of %s, "
            "its models and files",
            args.host,
            args.port,
            without_secrets(uri),
        )
    # One worker and no job runner start in a quarter of the time, and are enough for one person.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri  # not among the arguments, which all users of the machine can read
    command = [sys.executable, "-m", "mlflow", "server"]
    if others:
        command += ["--allowed-hosts", f"{args.host}:{args.port},{socket.gethostname()}:{args.port}"]
    command += ["--host", args.host, "--port", str(args.port), "--workers", "1"]
    if path is not None:
        command += ["--default-artifact-root", (path.parent / "mlruns").as_uri()]
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of the server's own libraries, about each other
    sys.stderr.flush()
    os.execv(sys.executable, command)


def _check_port(host: str, port: int) -> None:
    from vadtune.core.errors import ConfigError

    if not 1 <= port <= 65535:
        raise ConfigError(f"--port: takes a port from 1 to 65535, got {port}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself does
        try:
            probe.bind((host, port))
        except OSError as error:
            where = "--port" if host == _LOOPBACK else "--host, --port"
            raise ConfigError(f"{where}: {port} cannot be used ({error.strerror}); name another") from error
