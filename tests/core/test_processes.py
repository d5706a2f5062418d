from __future__ import annotations

import os

import pytest

from vadtune.core.processes import available_cores


def test_available_cores_respects_affinity_and_falls_back_to_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 5}, raising=False)
    assert available_cores() == 3
    monkeypatch.delattr("os.sched_getaffinity")
    assert available_cores() == os.cpu_count()
