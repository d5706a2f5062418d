"""Commands that messages propose can be pasted as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from vadtune.tracking.commands import next_command


@pytest.mark.parametrize(
    ("folder", "uri", "address", "options"),
    [
        ("runs/tiny-1", "sqlite:///{here}/mlflow.db", None, ""),
        (None, None, None, ""),
        ("other dir/tiny-1", None, None, " --storage 'other dir'"),
        ("/shared/runs/tiny-1", None, "10.0.0.1:6379", " --storage /shared/runs --address 10.0.0.1:6379"),
        ("runs/tiny-1", "http://h:5000?a=1&b=2", None, " --tracking-uri 'http://h:5000?a=1&b=2'"),
        ("s/tiny-1", "http://me:hunter2@h", "auto", " --storage s --address auto # with the same --tracking-uri"),
    ],
)
def test_options_are_repeated_where_they_differ_from_the_defaults(
    folder: str | None,
    uri: str | None,
    address: str | None,
    options: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    at, store = folder and Path(folder), uri and uri.format(here=tmp_path)
    assert next_command("resume tiny-1", folder=at, uri=store, address=address) == f"vadtune resume tiny-1{options}"


def test_a_store_of_the_environment_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@h")
    assert next_command("ui", uri="http://me:hunter2@h") == "vadtune ui"
