from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vadtune.core.errors import VadtuneError
from vadtune.core.extras import require
from vadtune.data import SOURCES


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


@pytest.mark.parametrize(
    ("section", "module", "extra"),
    [({"source": "mnist"}, "torchvision", "images"), ({"source": "sfm", "path": "{folder}/sfm"}, "h5py", "hdf5")],
)
def test_a_source_names_the_extra_it_needs(
    section: dict[str, str], module: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sfm.h5").write_bytes(b"")
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Absent(module), *sys.meta_path])
    config = SOURCES[section["source"]].model_validate(
        {key: value.format(folder=tmp_path) for key, value in section.items()}
    )
    with pytest.raises(VadtuneError, match=rf"needs {module}, which is not installed; .*vadtune\[{extra}\]"):
        config.load()


class _Absent:
    """Finds a package that is not installed."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == self._package:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
