"""Commands that messages propose: with the options that the user needs to paste them as they are."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from vadtune.tracking.redact import HIDDEN, without_secrets
from vadtune.tracking.store import tracking_uri


def next_command(words: str, *, folder: Path | None = None, uri: str | None = None, address: str | None = None) -> str:
    """Returns a command of vadtune with the options that differ from their defaults here.

    Args:
        words: The command and its own arguments, such as ``resume RUN``.
        folder: A run folder, whose parent ``--storage`` names; None for a command without that option.
        uri: The MLflow store; None for a command without that option, or where run.json names the store.
        address: The Ray cluster; None for the Ray of this machine, or a command without that option.
    """
    parts = ["vadtune", words]
    if folder is not None and (storage := folder.absolute().parent) != Path("runs").absolute():
        here = storage.is_relative_to(Path.cwd())
        parts += ["--storage", shlex.quote(os.path.relpath(storage) if here else str(storage))]
    if address is not None:
        parts += ["--address", shlex.quote(address)]
    if uri is not None and uri != tracking_uri(None):
        parts += [store_option(uri)]
    return " ".join(parts)


def into(uri: str) -> str:
    """Returns ``--into URI``, with that very word where the URI holds a secret."""
    shown = without_secrets(uri)
    return f"--into {'URI' if HIDDEN in shown else shlex.quote(shown)}"


def store_option(uri: str) -> str:
    """Returns ``--tracking-uri URI``, or where the URI holds a secret a comment of the shell in its place."""
    shown = without_secrets(uri)
    return "# with the same --tracking-uri" if HIDDEN in shown else f"--tracking-uri {shlex.quote(shown)}"
