from __future__ import annotations

from pathlib import Path

import pytest

from vadtune.core.errors import ConfigError
from vadtune.core.shipped import description_of, find_search_file, shipped_search_files

ROOT = Path(__file__).parent.parent.parent


def test_every_file_of_the_folder_is_found_by_its_name() -> None:
    shipped = shipped_search_files()
    assert set(shipped) == {path.stem for path in (ROOT / "search_spaces").glob("*.yaml")}
    for name, path in shipped.items():
        assert find_search_file(name) == path
        assert path.read_text() == (ROOT / "search_spaces" / f"{name}.yaml").read_text()
        assert description_of(path).endswith(".")


def test_a_path_wins_and_a_folder_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits").mkdir()
    assert find_search_file("digits") == shipped_search_files()["digits"]
    Path("digits").rmdir()
    Path("digits").touch()
    assert find_search_file("digits") == Path("digits")
    assert find_search_file("no/such.yaml") == Path("no/such.yaml")


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match="unknown search file 'digist': did you mean 'digits'") as raised:
        find_search_file("digist")
    assert "paper_mnist" in str(raised.value)
