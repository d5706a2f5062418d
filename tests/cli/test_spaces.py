"""The shipped search files: listed, printed, and named in place of a path."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vadtune.cli import main
from vadtune.core.shipped import find_search_file, shipped_search_files


def test_the_list_has_a_line_per_file_with_its_description(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spaces"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(lines) == sorted(path.stem for path in shipped_search_files().values())
    assert {"digits", "paper_mnist"} <= set(lines)
    assert all(lines.values())


def test_a_printed_file_is_the_file_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spaces", "digits"]) == 0
    printed = capsys.readouterr().out
    assert printed == find_search_file("digits").read_text()
    assert yaml.safe_load(printed)["name"] == "digits"


@pytest.mark.parametrize("command", ["validate digits search.samples=4", "configs digits model.latent=3 --samples 1"])
def test_a_name_stands_for_the_file(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    out = ["--out", "out"] if command.startswith("configs") else []
    assert main([*command.split(), *out]) == 0
    assert capsys.readouterr().out


def test_an_existing_file_wins_over_a_shipped_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits").write_text("name: mine\ndata: {source: iris}\nmodel: {latent: {int: [1, 3]}}\n")
    assert main(["validate", "digits"]) == 0
    assert "ok, 1 searched parameters" in capsys.readouterr().out
