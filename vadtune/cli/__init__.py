"""The command line: one function per command, whose docstring is the help text; ``COMMANDS`` lists them.

``arguments`` has the arguments and checks that several commands share, ``output`` prints tables. May import every
other package, but heavy ones (torch, ray, mlflow) only inside functions, so that ``vadtune --help`` is fast. Data goes
to stdout, progress and logs to stderr. Exit codes: 0 success, 1 trials failed, 2 a mistake of the user, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import atexit
import inspect
import logging
import os
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

from vadtune import __version__
from vadtune.cli import cleanup, cluster, compare, models, retest, search_files, searches
from vadtune.cli.output import PrintableFormatter, say_error
from vadtune.core.errors import ConfigError, VadtuneError, unknown_name
from vadtune.core.files import is_full

COMMANDS = {
    "spaces": search_files.spaces,
    "init": search_files.init,
    "validate": search_files.validate,
    "doctor": cluster.doctor,
    "search": searches.search,
    "resume": searches.resume,
    "list": searches.list_searches,
    "sync": searches.sync,
    "prune": cleanup.prune,
    "delete": cleanup.delete,
    "results": searches.results,
    "export": models.export,
    "retest": retest.retest,
    "plot": models.plot,
    "impute": models.impute,
    "train": models.train,
    "compare": compare.compare,
    "configs": search_files.configs,
    "import-config": search_files.import_config,
    "ui": searches.ui,
    "submit": cluster.submit,
    "status": cluster.status,
    "logs": cluster.logs,
    "stop": cluster.stop,
}


class _Parser(argparse.ArgumentParser):
    """Reports a usage error on one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        """Exits with code 2."""
        say_error(f"{message}; see {self.prog} --help")
        self.exit(2)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands; each command's help text is the docstring of its function."""
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="print the traceback of an error (default: off)")
    parser = _Parser(
        prog="vadtune",
        description="Find the best VAD or VAE for data with missing values.",
        epilog="start with: vadtune search digits",
    )
    parser.add_argument("--version", action="version", version=f"vadtune {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        text = inspect.getdoc(command.run) or name  # None under python -OO
        subparser = commands.add_parser(
            name,
            parents=[common],
            help=text.partition("\n")[0].rstrip("."),
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for add in command.arguments:
            add(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the arguments; overrides may follow options, which argparse alone does not support."""
    parser = build_parser()
    name = next(iter(sys.argv[1:] if argv is None else argv), "-")
    if not name.startswith("-") and name not in COMMANDS:
        parser.error(unknown_name("command", name, COMMANDS))
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
    # Usage statistics of Ray and MLflow are off unless the user turns them on.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.umask(os.umask(0o077) | 0o002)  # nothing that is created here can be written by everyone
    args = _parse(argv)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        code = int(args.run(args) or 0)
        sys.stdout.flush()  # inside the try: this may raise BrokenPipeError
        return code
    except VadtuneError as error:
        if args.debug:
            logging.getLogger(__name__).exception("traceback of the error below")
        for problem in error.problems if isinstance(error, ConfigError) else [str(error)]:
            say_error(problem)
        return 2
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):  # as PyTorch reports it
            raise
        say_error("needs more memory than this process may take; take a smaller model, or fewer rows or columns")
        return 2
    except BrokenPipeError:  # the reader of stdout ended, as in `vadtune results digits | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if not is_full(error):
            raise
        say_error(
            f"{error.filename or 'a file or stdout'}: cannot be written ({error.strerror}); make room, run it again"
        )
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("vadtune: interrupted\n")
        return 130


def console() -> NoReturn:
    """Runs one command and exits the process with its code.

    Exits by ``os._exit`` after the exit handlers: tearing down the interpreter with Ray, torch and MLflow imported took
    3.3 s longer (2 cores, busy). ``atexit._run_exitfuncs`` is a private name of CPython (3.11 to 3.13); without it the
    process exits as usual.
    """
    code = main()
    run_exit_handlers = getattr(atexit, "_run_exitfuncs", None)
    only_daemons = all(thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread())
    if run_exit_handlers is not None and only_daemons:
        run_exit_handlers()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
