from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vadtune.core.errors import VadtuneError
from vadtune.core.extras import require


def test_an_installed_module_is_imported() -> None:
    assert require("json.decoder", "images", "data.source: 'mnist'") is sys.modules["json.decoder"]


def test_a_package_that_is_missing_names_its_extra() -> None:
    message = (
        r"data.source: 'mnist' needs no_such_package, which is not installed; install it with: pip install "
        r"'vadtune\[images\]'"
    )
    with pytest.raises(VadtuneError, match=message):
        require("no_such_package.datasets", "images", "data.source: 'mnist'")


def test_a_missing_package_of_the_package_is_its_affair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        require("half_installed", "images", "data.source: 'mnist'")
