"""What commands print and create: no control characters, the values of JSON, chosen rows and columns, budgets."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.finished_search import FinishedSearch
from tests.hostile import run
from vadtune.artifacts.model_folder import read_manifest
from vadtune.cli import main
from vadtune.cli.output import PrintableFormatter
from vadtune.config import load_trial
from vadtune.core.text import one_line, printable, quoted
from vadtune.reports.tables import to_text
from vadtune.search.cluster.token import protect_token

HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b31m\u202egnp\r\x00\udc80"


def is_clean(text: str) -> bool:
    return all(character == "\n" or character.isprintable() for character in text)


def test_a_text_is_made_printable() -> None:
    assert is_clean(printable(HOSTILE))
    assert printable("a\x1b[31mb\u00e9 \u4e2d") == "a\\x1b[31mb\u00e9 \u4e2d"
    assert printable("a\nb\t", keep="\n") == "a\nb\\t"
    assert one_line("a\nb\r\nc") == "a b c"
    assert len(one_line("x" * 10_000_000)) == 2000
    assert quoted("x" * 100) == f"'{'x' * 57}...'"


@pytest.mark.slow
def test_no_control_character_reaches_the_terminal(tmp_path: Path) -> None:
    name = "\x1b]0;title\x07\x1b[2Ja\rb\u202e"
    (tmp_path / f"{name}.yaml").write_text("name: tiny\ndata: {source: iris}\n")
    (tmp_path / "other.yaml").write_text('name: tiny\ndata: {source: "\\e[2J\\a"}\n"x\\e[2J": 1\n')
    (tmp_path / "table.csv").write_text('a,"\x1b[2J"\n1,\x1b]0;x\x07\n')
    for command in (
        ["validate", f"{name}.yaml"],
        ["validate", f"{name}.yaml", f"model.{name}=1"],
        ["validate", "other.yaml"],
        ["validate", f"none{name}.yaml"],
        ["spaces", name],
        ["init", "table.csv", "--out", "x.yaml"],
        ["init", "iris", "--out", f"{name}new.yaml"],
        [name],
        ["results", "x", f"--{name}"],
        ["results", name, "--tracking-uri", f"sqlite:///{name}.db"],
    ):
        ended = run(*command, folder=tmp_path)
        assert is_clean(ended.output), ended
        assert is_clean(ended.errors), ended
        assert "Traceback" not in ended.errors


def test_logs_and_tables_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    record = logging.LogRecord("vadtune", logging.INFO, __file__, 1, "%s\nnext", (HOSTILE,), None)
    assert is_clean(PrintableFormatter("%(message)s").format(record))
    from rich.console import Console

    assert is_clean(to_text([{HOSTILE: 1.0, "b": HOSTILE}], Console(width=1000)))


def test_json_has_truth_values_and_numbers(search: FinishedSearch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results", "tiny", "--tracking-uri", search.uri, "--format", "json"]) == 0
    rows = {row["trial"]: row for row in json.loads(capsys.readouterr().out)}
    row = rows["trial-0001"]
    assert row["model.skip"] is False
    assert row["model.layer_norm"] is False
    assert (row["model.latent"], row["train.net_lr"], row["rank"]) == (2, 0.002, 1) or row["rank"] in (1, 2, 3)
    assert rows["trial-0003"]["model.skip"] is None, "a linear decoder has none"
    assert not [value for row in rows.values() for value in row.values() if value in ("True", "False", "None")]


def test_results_are_sorted_cut_and_reduced(search: FinishedSearch, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*options: str) -> list[dict[str, object]]:
        assert main(["results", "tiny", "--tracking-uri", search.uri, "--format", "json", *options]) == 0
        return list(json.loads(capsys.readouterr().out))

    assert [row["latent"] for row in shown("--sort", "latent", "--columns", "latent")] == [1, 2, 3, 4]
    top = shown("--sort", "model.latent", "--reverse", "--top", "2", "--columns", "trial,latent,end")
    assert [list(row) for row in top] == [["trial", "latent", "end"]] * 2
    assert [row["latent"] for row in top] == [4, 3]
    assert [row["rank"] for row in shown("--top", "3")] == [1, 2, 3]
    ranks = [row["rank"] for row in shown("--reverse")]
    assert ranks == [3, 2, 1, None], "what has no value comes last"
    assert main(["results", "tiny", "--tracking-uri", search.uri, "--columns", "trial, latent"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["trial", "latent"]


def test_one_trial_is_exported_by_its_name(search: FinishedSearch, tmp_path: Path) -> None:
    worst = max(search.scores, key=lambda name: search.scores[name] if name != "trial-0004" else 0.0)
    out = tmp_path / "one"
    options = ["--tracking-uri", search.uri, "--trial", worst, "--refit", "none", "--out", str(out)]
    assert main(["export", "tiny", *options]) == 0
    assert [path.name for path in out.glob("0*")] == [f"01-{worst}"]


def test_an_exported_configuration_says_what_it_was_trained_with(search: FinishedSearch, tmp_path: Path) -> None:
    out = tmp_path / "best"
    options = ["--tracking-uri", search.uri, "--trial", "trial-0001", "--out", str(out)]
    assert main(["export", "tiny", *options]) == 0
    (folder,) = out.glob("01-*")
    heading = (folder / "config.yaml").read_text().splitlines()[0]
    epochs = load_trial(folder / "config.yaml").train.epochs
    assert heading.startswith(f"# Trained again for {epochs} epochs on 127 rows; searched: 4 epochs on 105 rows. More")
    assert read_manifest(folder)["provenance"]["budget"] == heading.removeprefix("# ")


def test_what_is_created_cannot_be_written_by_everyone(tmp_path: Path) -> None:
    code = "import os, sys; os.umask(0); from vadtune.cli import main; sys.exit(main(sys.argv[1:]))"
    root = Path(__file__).parents[2]
    commands = [["init", "iris", "--out", "new/x.yaml"], ["configs", "new/x.yaml", "--samples", "1", "--out", "c"]]
    for command in commands:
        subprocess.run(
            [sys.executable, "-c", code, *command],
            cwd=tmp_path,
            check=True,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
    created = list(tmp_path.rglob("*"))
    assert len(created) >= 4
    assert not [path for path in created if path.stat().st_mode & stat.S_IWOTH]


def test_rays_token_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".ray" / "auth_token"
    protect_token()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    token = path.read_text()
    assert len(token) == 64
    path.chmod(0o644)
    protect_token()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == token
    path.unlink()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    protect_token()
    assert not path.exists()
