"""Browse the trials in MLflow's web UI.

Serves the UI of the store on this machine only. With --host and --expose, other machines can reach it too, without a
password. If the store is a server, prints its address.

example: vadtune ui --port 5001
"""

from __future__ import annotations

import argparse
import os
import socket
import sys

from vadtune.cli.arguments import add_tracking_uri
from vadtune.cli.output import logger
from vadtune.core.errors import ConfigError, TrackingError

_LOOPBACK = "127.0.0.1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_tracking_uri(parser)
    parser.add_argument("--port", type=int, default=5000, help="port (default: 5000)")
    parser.add_argument("--host", default=_LOOPBACK, help=f"address to listen on (default: {_LOOPBACK})")
    parser.add_argument("--expose", action="store_true", help="allow a --host that others can reach (default: off)")


def run(args: argparse.Namespace) -> int:
    """Replaces this process by MLflow's server, or prints the address of a remote one."""
    from vadtune.tracking import sqlite_path, tracking_uri, without_secrets

    uri = tracking_uri(args.tracking_uri)
    if uri.startswith(("http://", "https://")):
        print(without_secrets(uri))
        logger.info("the store is a server with its own UI: open the address above")
        return 0
    exposed = args.host not in (_LOOPBACK, "localhost")
    if exposed and not args.expose:
        raise ConfigError(
            f"--host: {args.host} can be reached by others, who may read, change and delete every experiment of "
            f"{without_secrets(uri)} without a password; add --expose if that is meant"
        )
    path = sqlite_path(uri)
    if path is not None and not path.is_file():
        raise TrackingError(
            f"{path}: the store must exist, and does not; run `vadtune search` first, or pass --tracking-uri"
        )
    _check_port(args.host, args.port)
    logger.info("MLflow UI on http://%s:%d (Ctrl-C ends it)", args.host, args.port)
    if exposed:
        logger.warning(
            "exposed without a password to all who reach %s:%d: they can read, change and delete every experiment "
            "of %s, its models and files",
            args.host,
            args.port,
            without_secrets(uri),
        )
    # One worker without a job runner starts in a quarter of the time (9 s instead of 34 s) and serves one person.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri  # not an argument, which other users of the machine could read
    command = [sys.executable, "-m", "mlflow", "server"]
    if exposed:
        command += ["--allowed-hosts", f"{args.host}:{args.port},{socket.gethostname()}:{args.port}"]
    command += ["--host", args.host, "--port", str(args.port), "--workers", "1"]
    if path is not None:
        command += ["--default-artifact-root", (path.parent / "mlruns").as_uri()]
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # the server's libraries warn about each other
    sys.stderr.flush()
    os.execv(sys.executable, command)


def _check_port(host: str, port: int) -> None:
    if not 1 <= port <= 65535:
        raise ConfigError(f"--port: takes a port from 1 to 65535, got {port}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((host, port))
        except OSError as error:
            option = "--port" if host == _LOOPBACK else "--host, --port"
            raise ConfigError(f"{option}: {port} cannot be used ({error.strerror}); pass another") from error
