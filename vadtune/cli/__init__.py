"""The command line: one module per command, each with ``add_parser`` and ``run``.

Heavy imports (torch, ray, mlflow) stand inside ``run``, so that ``vadtune --help`` is instant. Data goes to stdout,
progress and logs to stderr. Exit codes: 0 done, 1 trials failed, 2 the user's mistake, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import logging
import os
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

from vadtune import __version__
from vadtune.core.errors import ConfigError, VadtuneError

COMMANDS = (
    "init",
    "validate",
    "doctor",
    "search",
    "resume",
    "list",
    "sync",
    "results",
    "export",
    "retest",
    "plot",
    "impute",
    "train",
    "compare",
    "configs",
    "import-config",
    "ui",
    "submit",
    "status",
    "logs",
    "stop",
)


class _Parser(argparse.ArgumentParser):
    """Tells a mistake on one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"vadtune: error: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="on an error, print the traceback too")
    parser = _Parser(prog="vadtune", description="Find the best VAD or VAE for data with missing values.")
    parser.add_argument("--version", action="version", version=f"vadtune {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"vadtune.cli.{name.replace('-', '_')}").add_parser(commands, [common])
    return parser


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the arguments; overrides may stand anywhere, where argparse takes those before the options alone."""
    parser = build_parser()
    args, left = parser.parse_known_args(argv)
    if hasattr(args, "overrides"):
        args.overrides = [*args.overrides, *(word for word in left if _is_override(word))]
        left = [word for word in left if not _is_override(word)]
    if left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    return args


def _is_override(word: str) -> bool:
    return "=" in word and not word.startswith("-")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    # Nothing about a user's work leaves the machine unless the user turns it on.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    args = _parsed(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        code = int(args.run(args))
        sys.stdout.flush()  # here, where a reader that went away is expected
        return code
    except VadtuneError as error:
        if args.debug:
            logging.getLogger(__name__).exception("traceback of the error below")
        problems = error.problems if isinstance(error, ConfigError) else [str(error)]
        for problem in problems:
            print(f"vadtune: error: {problem}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of stdout went away, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("vadtune: interrupted", file=sys.stderr)
        return 130


def console() -> NoReturn:
    """Runs one command and ends the process.

    It ends without taking apart everything that was imported, which takes Python up to two seconds.
    """
    code = main()
    if all(thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
