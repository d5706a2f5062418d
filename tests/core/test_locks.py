from __future__ import annotations

from pathlib import Path

import pytest

from vadtune.core import locks


def test_a_file_is_locked_by_one_at_a_time(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as one, (tmp_path / "lock").open("w") as other:
        assert locks.try_lock(one.fileno())
        assert not locks.try_lock(other.fileno())
    with (tmp_path / "lock").open("w") as again:
        assert locks.try_lock(again.fileno())


def test_whether_a_file_is_locked_is_told_without_locking_it(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as one, (tmp_path / "lock").open("rb") as other:
        assert not locks.is_locked(other.fileno())
    with (tmp_path / "lock").open("w") as one, (tmp_path / "lock").open("rb") as other:
        assert locks.try_lock(one.fileno())
        assert locks.is_locked(other.fileno())


def test_systems_without_locks_go_on_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    with (tmp_path / "lock").open("w") as one, (tmp_path / "lock").open("w") as other:
        locks.wait_for_lock(one.fileno())
        assert locks.try_lock(one.fileno())
        assert locks.try_lock(other.fileno())
        assert not locks.is_locked(other.fileno())
