from __future__ import annotations

import os
import weakref

import pytest

from vadtune.core.processes import available_cores, large_imports


def test_available_cores_respects_affinity_and_falls_back_to_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 5}, raising=False)
    assert available_cores() == 3
    monkeypatch.delattr("os.sched_getaffinity")
    assert available_cores() == os.cpu_count()


def test_garbage_from_before_large_imports_is_freed() -> None:
    class Large:
        def __init__(self) -> None:
            self.itself = self

    freed = weakref.ref(Large())
    with large_imports():
        pass
    assert freed() is None
