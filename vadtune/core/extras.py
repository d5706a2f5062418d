"""Imports of optional dependencies, with an error that names the extra to install."""

from __future__ import annotations

import importlib
from types import ModuleType

from vadtune.core.errors import VadtuneError


def require(module: str, extra: str, needed_by: str) -> ModuleType:
    """Imports a module of an optional dependency.

    Args:
        module: Dotted name, such as ``torchvision.datasets``.
        extra: The extra of vadtune that installs it, such as ``images``.
        needed_by: The option and its value that need it, such as ``data.source: 'mnist'``.

    Raises:
        VadtuneError: The package is not installed. Other errors of the import are passed on.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:  # the package is installed, but one that it needs is not
            raise
        raise VadtuneError(
            f"{needed_by} needs {package}, which is not installed; install it with: pip install 'vadtune[{extra}]'"
        ) from error
