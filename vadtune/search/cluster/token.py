"""Ray's token file: whoever reads it can run code as its owner, so nobody else may."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from vadtune.core.reading import read_bounded


def token_file() -> Path:
    """Returns the file that Ray reads its token from."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def uses_token() -> bool:
    """Returns whether Ray asks for a token, as it does unless that is switched off."""
    return os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"


def has_token() -> bool:
    """Returns whether this process has a token."""
    if os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return True
    try:
        return bool(read_bounded(token_file()).strip())
    except OSError:
        return False


def protect_token() -> None:
    """Makes the token file readable by its owner alone, and writes one where there is none.

    Ray would write one that everyone on the machine can read. An error is left to Ray, which needs the file.
    """
    if not uses_token() or os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = token_file()
    with contextlib.suppress(OSError):
        if path.exists():
            if path.stat().st_mode & 0o077:
                path.chmod(0o600)
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
